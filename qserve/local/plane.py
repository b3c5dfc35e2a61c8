"""The plane of local mode: the same submissions and moves as with a broker, carried out in this process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from math import inf
from typing import Any

from qserve.base.clock import clock
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.calls.compose import ComposingPlane, Submission
from qserve.calls.ref import Call, Ref
from qserve.exceptions import AppNotFound
from qserve.local.memory import Requests
from qserve.wire.application import ApplicationRecord

log = get_logger(__name__)
record_here: ContextVar[ApplicationRecord | None] = ContextVar("qserve_record_here", default=None)
"""The application version that the running user code belongs to; its calls stay within that version."""


class LocalPlane(ComposingPlane):
    """Carries calls within this process, for any number of threads and event loops.

    Everything that changes requests is an operation. Operations run one at a time, in whichever thread finds that one
    is waiting.

    Parameters:
      settings: Defaults for deadlines and for how long results are kept; the key signs what must be pickled.
    """

    owns_results = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, self.application)
        self.requests = Requests()
        self.records: dict[str, ApplicationRecord] = {}
        """The version of each application that new calls go to."""
        self._operations: deque[Callable[[], object]] = deque()
        self._operating = threading.Lock()
        self._alarm = threading.Event()
        self._alarm_ms = inf
        self._closed = False
        threading.Thread(target=self._watch_deadlines, name="qserve-deadlines", daemon=True).start()

    def operate(self, operation: Callable[..., object], *args: Any) -> None:
        """Run an operation on ``requests``, before or after this returns."""
        # This never blocks, because the garbage collector may cancel a dropped stream in the middle of another
        # operation. A thread that finds the lock held leaves: the holder checks again after releasing it.
        self._operations.append(partial(operation, *args))
        while self._operations and self._operating.acquire(blocking=False):
            try:
                while self._operations:
                    self._operations.popleft()()
            except Exception:
                log.exception("an operation of the local plane failed")
            finally:
                self._operating.release()

    def application(self, app: str) -> ApplicationRecord:
        """Return an application's record; inside one of its deployments, that of the running version.

        Raises:
          AppNotFound: No application of that name is deployed; the message names those that are.
        """
        own = record_here.get()
        if own is not None and own.name == app:
            return own
        try:
            return self.records[app]
        except KeyError:
            known = ", ".join(sorted(self.records)) or "none"
            raise AppNotFound(f"no application named {app!r} is deployed; deployed are: {known}") from None

    def follow(self, ref: Ref[Any]) -> None:
        if not ref.done.is_set():
            self.operate(self.requests.follow, self.keys.request(ref.request_id), ref)

    def cancel(self, ref: Ref[Any]) -> None:
        self.operate(self.requests.cancel, self.keys.request(ref.request_id))

    def add_credit(self, request_id: str, items: int) -> None:
        self.operate(self.requests.take, self.keys.request(request_id), items)

    def release(self, request_id: str) -> None:
        self._operations.append(partial(self.requests.forget, self.keys.request(request_id)))

    def close(self) -> None:
        """Cancel all open requests, and refuse new ones."""
        self.records.clear()
        self.operate(self.requests.cancel_all)
        self._closed = True
        self._alarm.set()

    def _send(self, ref: Ref[Any], submission: Submission, call: Call | None) -> None:
        self.operate(self._submit, submission, ref)

    def _submit(self, submission: Submission, ref: Ref[Any]) -> None:
        self.requests.submit(submission, ref)
        if submission.header.deadline_ms < self._alarm_ms:
            self._alarm_ms = submission.header.deadline_ms
            self._alarm.set()

    def _watch_deadlines(self) -> None:
        while not self._closed:
            left_s = None if self._alarm_ms == inf else max(0.0, (self._alarm_ms - clock.judge_ms()) / 1000)
            if self._alarm.wait(left_s):
                self._alarm.clear()
            else:
                self.operate(self._expire)

    def _expire(self) -> None:
        self._alarm_ms = self.requests.expire()
        self._alarm.set()
