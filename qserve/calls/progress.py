"""``report_progress``: user code says how far its request is, and whoever has the request's id can ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from math import inf
from numbers import Real

from qserve.base.context import request_context
from qserve.base.forks import on_fork
from qserve.calls.ref import Plane, current
from qserve.wire.progress import MESSAGE_LIMIT, Progress

INTERVAL_S = 0.1
"""A process sends reports at most this often, for each request the last one."""
_ROUNDING = 1e-6


def report_progress(fraction: float, message: str = "") -> None:
    """Say how far the request is for which this code runs; ``ref.progress()`` and the gateway show it.

        for number, page in enumerate(pages):
            qserve.report_progress(number / len(pages), f"page {number + 1}")
            ...

    This costs some microseconds and never waits. A process sends at most ten reports a second of each request, among
    them the last one. While the broker is away or full, reports may be lost, and nothing fails. Outside of a request
    this does nothing; in a batch it counts for all of its requests.

    Parameters:
      fraction: The part that is done, from 0 to 1.
      message: What is being done, for people; it is cut after 500 characters.

    Raises:
      TypeError, ValueError: An argument is not what it should be.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, Real):
        raise TypeError(f"report_progress takes the part that is done, from 0 to 1; got {type(fraction).__name__!r}")
    if not -_ROUNDING <= fraction <= 1 + _ROUNDING:
        raise ValueError(f"report_progress takes the part that is done, from 0 to 1; got {fraction}")
    if not isinstance(message, str):
        raise TypeError(f"the message of report_progress is a text; got {type(message).__name__!r}")
    part = min(1.0, max(0.0, float(0.0 + fraction)))  # it may be one of numpy's
    requests, plane = request_context.get().own_ids, current.installed
    if requests and plane is not None:
        _reports.add(plane, requests, Progress(part, message[:MESSAGE_LIMIT]))


class _Reports:
    """The reports of this process that are still to be sent."""

    def __init__(self) -> None:
        self.leave_to_parent()
        on_fork(self)

    def leave_to_parent(self) -> None:
        """In a forked child: forget what the parent is about to send."""
        self._lock = threading.RLock()  # a handler of a signal may report as well
        self._latest: dict[str, Progress] = {}
        self._is_due = False
        self._sent_at = -inf

    def add(self, plane: Plane, requests: Sequence[str], progress: Progress) -> None:
        with self._lock:
            self._latest.update(dict.fromkeys(requests, progress))
            if self._is_due:
                return
            wait_s = self._sent_at + INTERVAL_S - time.monotonic()
            self._is_due = wait_s > 0
        if self._is_due:
            timer = threading.Timer(wait_s, self._send, (plane,))
            timer.daemon = True
            try:
                timer.start()
                return
            except RuntimeError:  # the system allows no more threads
                pass
        self._send(plane)

    def _send(self, plane: Plane) -> None:
        with self._lock:
            latest, self._latest = self._latest, {}
            self._is_due, self._sent_at = False, time.monotonic()
        for request_id, progress in latest.items():
            plane.note_progress(request_id, progress)


_reports = _Reports()
