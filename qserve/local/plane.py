"""The plane of local mode: the same submissions and moves as with a broker, carried out in this process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from math import inf
from typing import Any

from qserve.base.clock import clock
from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.base.promise import Promise
from qserve.base.settings import Settings
from qserve.calls.compose import Composer, Submission
from qserve.calls.ref import Call, ItemRef, Ref
from qserve.exceptions import AppNotFound
from qserve.local.memory import Delivery, Queue, Requests
from qserve.wire.application import ApplicationRecord
from qserve.wire.codec import Codec
from qserve.wire.moves import Move
from qserve.wire.outcome import State

log = get_logger(__name__)
record_here: ContextVar[ApplicationRecord | None] = ContextVar("qserve_record_here", default=None)
"""The application version that the running user code belongs to; its calls stay within that version."""


class LocalPlane:
    """Carries calls within this process, for any number of threads and event loops.

    Everything that changes requests is an operation. Operations run one at a time, in whichever thread finds that one
    is waiting.

    Parameters:
      settings: Defaults for deadlines and for how long results are kept; the key signs what must be pickled.
    """

    def __init__(self, settings: Settings) -> None:
        self.codec = Codec(settings.keyring)
        self.keys = Keys(settings.namespace)
        self._composer = Composer(settings, self.keys, self.codec, self.application)
        self._records: dict[str, ApplicationRecord] = {}
        self._requests = Requests()
        self._operations: deque[Callable[[], object]] = deque()
        self._operating = threading.Lock()
        self._alarm = threading.Event()
        self._alarm_ms = inf
        self._closed = False
        threading.Thread(target=self._watch_deadlines, name="qserve-deadlines", daemon=True).start()

    # -- calls -------------------------------------------------------------------------------------

    def submit(self, call: Call) -> Ref[Any]:
        """Start a call."""
        submission = self._composer.compose(call)
        kind = ItemRef if call.stream else Ref
        ref = kind(submission.request_id, self, owned=True)
        if submission.outcome is not None:
            ref.settle(submission.outcome)
        else:
            self._operate(partial(self._accept, submission, ref))
        return ref

    def wait(self, ref: Ref[Any], timeout_s: float | None) -> bool:
        """Block until ``ref`` is done; return False if ``timeout_s`` passed first."""
        self.follow(ref)
        return ref.done.wait(timeout_s)

    def follow(self, ref: Ref[Any]) -> None:
        """Settle ``ref``, which may be a copy of another one, when its request has ended."""
        if not ref.done.is_set():
            self._operate(partial(self._requests.follow, self.keys.request(ref.request_id), ref))

    def cancel(self, ref: Ref[Any]) -> None:
        """Cancel an open request; calls that are running go on, but have no effect."""
        self._operate(partial(self._requests.close, self.keys.request(ref.request_id), State.CANCELLED))

    def add_credit(self, request_id: str, items: int) -> None:
        """Let the producer of a streamed result send this many more items."""
        self._operate(partial(self._requests.take, self.keys.request(request_id), items))

    def release(self, request_id: str) -> None:
        """Delete a result that will not be asked for again, before the next operation."""
        self._operations.append(partial(self._requests.forget, self.keys.request(request_id)))

    # -- applications ------------------------------------------------------------------------------

    def application(self, app: str) -> ApplicationRecord:
        """Return an application's record; inside one of its deployments, that of the running version.

        Raises:
          AppNotFound: No application of that name is deployed; the message names those that are.
        """
        own = record_here.get()
        if own is not None and own.name == app:
            return own
        try:
            return self._records[app]
        except KeyError:
            known = ", ".join(sorted(self._records)) or "none"
            raise AppNotFound(f"no application named {app!r} is deployed; deployed are: {known}") from None

    def activate(self, record: ApplicationRecord) -> None:
        """Send an application's calls to this version."""
        self._records[record.name] = record

    def deactivate(self, app: str) -> None:
        """Refuse new calls of an application; accepted ones go on."""
        self._records.pop(app, None)

    def attach(self, record: ApplicationRecord, deployment: str, accept: Callable[[Delivery], None]) -> None:
        """Deliver a deployment's calls to ``accept``, which must not block, as many as may run at the same time."""
        queue = Queue(record.version, record.deployments[deployment].max_ongoing, accept)
        self._requests.queues[record.stream(self.keys, deployment)] = queue

    def detach(self, record: ApplicationRecord) -> None:
        """Stop delivering calls to the deployments of a version."""
        for deployment in record.deployments:
            self._requests.queues.pop(record.stream(self.keys, deployment), None)

    def when_idle(self, record: ApplicationRecord, callback: Callable[[], object]) -> None:
        """Call ``callback``, which must not block, once a version has no open requests."""
        self._operate(partial(self._requests.when_idle, record.version, callback))

    def close(self) -> None:
        """Cancel all open requests, and refuse new ones."""
        self._records.clear()
        self._operate(partial(self._requests.close_all, State.CANCELLED))
        self._closed = True
        self._alarm.set()

    # -- deliveries --------------------------------------------------------------------------------

    def is_open(self, delivery: Delivery) -> bool:
        """Return whether the request of a call is still open."""
        return self._requests.is_open(delivery.request)

    def commit(self, delivery: Delivery, state: str, payload: bytes, moves: Sequence[Move]) -> None:
        """End a call, and apply its effects if its request is still open."""
        self._operate(partial(self._requests.commit, delivery, state, payload, moves))

    def emit(self, delivery: Delivery, payload: bytes) -> Promise[bool]:
        """Send one item; the promise is set to True once another may be sent, and to False if none is wanted."""
        may_continue: Promise[bool] = Promise()
        self._operate(partial(self._requests.emit, delivery.request, payload, may_continue))
        return may_continue

    # -- operations --------------------------------------------------------------------------------

    def _operate(self, operation: Callable[[], object]) -> None:
        # This never blocks, because the garbage collector may cancel a dropped stream in the middle of another
        # operation. A thread that finds the lock held leaves: the holder checks again after releasing it.
        self._operations.append(operation)
        while self._operations and self._operating.acquire(blocking=False):
            try:
                while self._operations:
                    self._operations.popleft()()
            except Exception:
                log.exception("an operation of the local plane failed")
            finally:
                self._operating.release()

    def _accept(self, submission: Submission, ref: Ref[Any]) -> None:
        self._requests.submit(submission, ref)
        if submission.deadline_ms < self._alarm_ms:
            self._alarm_ms = submission.deadline_ms
            self._alarm.set()

    def _watch_deadlines(self) -> None:
        while not self._closed:
            left_s = None if self._alarm_ms == inf else max(0.0, (self._alarm_ms - clock.judge_ms()) / 1000)
            if self._alarm.wait(left_s):
                self._alarm.clear()
            else:
                self._operate(self._expire)

    def _expire(self) -> None:
        self._alarm_ms = self._requests.expire()
        self._alarm.set()
