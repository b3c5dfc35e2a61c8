"""The plane of a local run: no broker, the same submissions and moves, within this process."""

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
"""The application version of the running user code: its calls stay within that version."""


class LocalPlane:
    """Calls, results and cancellation within this process, for any number of threads and loops.

    Whatever changes requests is an act. Acts run one after another, each of them whole, in whichever thread
    gets to it.

    Parameters:
      settings: Defaults for deadlines and the life of results; its key signs what must be pickled.
    """

    def __init__(self, settings: Settings) -> None:
        self.codec = Codec(settings.keyring)
        self.keys = Keys(settings.namespace)
        self._composer = Composer(settings, self.keys, self.codec, self.application)
        self._records: dict[str, ApplicationRecord] = {}
        self._requests = Requests()
        self._acts: deque[Callable[[], object]] = deque()
        self._acting = threading.Lock()
        self._alarm = threading.Event()
        self._alarm_ms = inf
        self._closed = False
        threading.Thread(target=self._watch_deadlines, name="qserve-deadlines", daemon=True).start()

    # -- the Plane ---------------------------------------------------------------------------------

    def submit(self, call: Call) -> Ref[Any]:
        """Start a call."""
        submission = self._composer.compose(call)
        kind = ItemRef if call.stream else Ref
        ref = kind(submission.request_id, self, owned=True)
        if submission.outcome is not None:
            ref.settle(submission.outcome)
        else:
            self._act(partial(self._accept, submission, ref))
        return ref

    def wait(self, ref: Ref, timeout_s: float | None) -> bool:
        """Block until ``ref`` is done; False when ``timeout_s`` passed first."""
        self.follow(ref)
        return ref.done.wait(timeout_s)

    def follow(self, ref: Ref) -> None:
        """Have ``ref``, which may be a copy of another, settled when its request is done."""
        if not ref.done.is_set():
            self._act(partial(self._requests.follow, self.keys.request(ref.request_id), ref))

    def cancel(self, ref: Ref) -> None:
        """End an open request without a result; running code goes on, its effects are dropped."""
        self._act(partial(self._requests.close, self.keys.request(ref.request_id), State.CANCELLED))

    def add_credit(self, request_id: str, items: int) -> None:
        """Let the producer of a streamed result send this many more items."""
        self._act(partial(self._requests.take, self.keys.request(request_id), items))

    def release(self, request_id: str) -> None:
        """Drop a result that nobody will ask for again, before whatever is done next."""
        self._acts.append(partial(self._requests.forget, self.keys.request(request_id)))

    # -- applications ------------------------------------------------------------------------------

    def application(self, app: str) -> ApplicationRecord:
        """An application's record; inside one of its deployments, that of the version which is running.

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
        """Make a version the one that callers reach."""
        self._records[record.name] = record

    def deactivate(self, app: str) -> None:
        """Refuse an application's new calls; those that were accepted go on."""
        self._records.pop(app, None)

    def attach(self, record: ApplicationRecord, deployment: str, accept: Callable[[Delivery], None]) -> None:
        """Give a deployment's calls to ``accept``, which may not block, as many as may run at once."""
        queue = Queue(record.version, record.deployments[deployment].max_ongoing, accept)
        self._requests.queues[record.stream(self.keys, deployment)] = queue

    def detach(self, record: ApplicationRecord) -> None:
        """Give no more calls to the deployments of a version."""
        for deployment in record.deployments:
            self._requests.queues.pop(record.stream(self.keys, deployment), None)

    def when_idle(self, record: ApplicationRecord, callback: Callable[[], object]) -> None:
        """Run ``callback``, which may not block, once a version has no open request."""
        self._act(partial(self._requests.when_idle, record.version, callback))

    def close(self) -> None:
        """Cancel what is open, and accept no more."""
        self._records.clear()
        self._act(partial(self._requests.close_all, State.CANCELLED))
        self._closed = True
        self._alarm.set()

    # -- what deployments say ----------------------------------------------------------------------

    def is_open(self, delivery: Delivery) -> bool:
        """Whether the result of a call is still wanted."""
        return self._requests.is_open(delivery.request)

    def commit(self, delivery: Delivery, state: str, payload: bytes, moves: Sequence[Move]) -> None:
        """End a call with all it causes; with nothing when its request has ended meanwhile."""
        self._act(partial(self._requests.commit, delivery, state, payload, moves))

    def emit(self, delivery: Delivery, payload: bytes) -> Promise:
        """Send one item; the promise is set once there is room for another, to False when nobody takes items."""
        go_on = Promise()
        self._act(partial(self._requests.emit, delivery.request, payload, go_on))
        return go_on

    # -- acts --------------------------------------------------------------------------------------

    def _act(self, act: Callable[[], object]) -> None:
        # Never blocks: the garbage collector may cancel a dropped stream in the middle of another act. Whoever
        # finds the lock taken leaves, and its holder looks again after letting go.
        self._acts.append(act)
        while self._acts and self._acting.acquire(blocking=False):
            try:
                while self._acts:
                    self._acts.popleft()()
            except Exception:
                log.exception("the local plane failed")
            finally:
                self._acting.release()

    def _accept(self, submission: Submission, ref: Ref) -> None:
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
                self._act(self._expire)

    def _expire(self) -> None:
        self._alarm_ms = self._requests.expire()
        self._alarm.set()
