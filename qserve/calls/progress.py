"""``progress``: user code says how far its request is, and whoever has the request's id can follow it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from numbers import Real
from typing import Any, Final

from qserve.base import context as contexts
from qserve.base.clock import clock
from qserve.base.context import RequestContext, Run, request_context
from qserve.base.forks import on_fork
from qserve.base.keys import deployment_in
from qserve.calls.ref import Plane, current
from qserve.wire.events import Event, Happening
from qserve.wire.progress import MESSAGE_LIMIT, Progress
from qserve.wire.replies import entered_ms

INTERVAL_S = 0.25
"""The shortest time between two messages about the progress of one run."""
_ROUNDING = 1e-6
_OVER_KEPT = 1000


def progress(fraction: float | None, message: str = "", *, context: RequestContext | None = None) -> None:
    """Say how far the request is for which this code runs; ``ref.events()`` and the gateway show it.

    This costs a few microseconds and never waits. At most four messages a second are sent for each call, and the last
    one is sent before the call ends. While the broker is away, only the last one is kept, and while it is full they are
    lost; nothing fails. Outside of a request this does nothing; in a batch it counts for all of its requests.

    Parameters:
      fraction: The part that is done, from 0 to 1; None if that is not known.
      message: What is being done, for people; it is cut after 500 characters.
      context: The request that is meant, from ``qserve.get_request_context()``; None for that of this code. In a batch,
        ``qserve.get_request_context().batch`` has one for each item.

    Raises:
      TypeError, ValueError: An argument is not what it should be.

    Example:
      @serve.deployment
      def index(pages: list[str]) -> int:
          for number, page in enumerate(pages):
              serve.progress(number / len(pages), f"page {number + 1}")
          return len(pages)

      print(serve.run(index.bind(["first", "second"]), local=True).remote().result())  # 2
    """
    if fraction is not None and not (type(fraction) is float and 0 <= fraction <= 1):
        if isinstance(fraction, bool) or not isinstance(fraction, Real):
            got = type(fraction).__name__
            raise TypeError(f"progress takes the part that is done, from 0 to 1, or None; got {got!r}")
        if not -_ROUNDING <= fraction <= 1 + _ROUNDING:
            raise ValueError(f"progress takes the part that is done, from 0 to 1, or None; got {fraction}")
        fraction = min(1.0, max(0.0, float(0.0 + fraction)))  # it may be one of numpy's
    if not isinstance(message, str):
        raise TypeError(f"the message of progress is a text; got {type(message).__name__!r}")
    if context is not None and not isinstance(context, RequestContext):
        raise TypeError(f"progress takes a context of qserve.get_request_context(); got {type(context).__name__!r}")
    runs, plane = (context or request_context.get()).runs, current.installed
    if runs and plane is not None:
        reports.add(plane, runs, Progress(fraction, message[:MESSAGE_LIMIT]))


report_progress = progress
"""The name that this had first."""


@dataclass(slots=True)
class _Report:
    """What one run has still to say.

    Parameters:
      latest: What it said last, if that was not sent.
      due_at: When more may be sent, by the monotonic clock.
      is_sending: Whether the broker has not answered the last message.
    """

    plane: Plane
    latest: Progress | None = None
    due_at: float = -inf
    is_sending: bool = False


class Reports:
    """What the calls that run in this process say of themselves.

    ``open`` has those that somebody follows, or that have said how far they are. It is empty as long as there are none,
    so that all other calls cost a look at it.
    """

    def __init__(self) -> None:
        self.open: dict[Run, _Report] = {}
        self.only_adds = False
        """Whether this is a child process of user code, whose parent says what begins and ends."""
        self.leave_to_parent()
        on_fork(self)

    def leave_to_parent(self) -> None:
        """In a forked child: forget what the parent is about to send."""
        self._lock = threading.RLock()  # a handler of a signal may report as well
        self.open.clear()
        self._over: OrderedDict[Run, None] = OrderedDict()
        self._is_armed = False

    def begin(self, plane: Plane, run: Run) -> None:
        """Say that a call begins that somebody follows, unless that was said before."""
        with self._lock:
            if run not in self.open:
                self._begin(plane, run)

    def _begin(self, plane: Plane, run: Run) -> _Report:
        report = self.open[run] = _Report(plane)
        if run.attempt and not self.only_adds:
            if run.is_taken_over:
                plane.note(run, happened(Happening.TAKEN_OVER, run))
            plane.note(run, happened(Happening.STARTED, run))
        return report

    def end(self, run: Run) -> bool:
        """Send what a call has said last, because it ends; return whether it has said anything."""
        with self._lock:
            report = self.open.pop(run, None)
            if report is None:
                return False
            self._set_over(run)
            if report.latest is not None:
                report.plane.note(run, _told(run, report.latest))
            return True

    def add(self, plane: Plane, runs: Sequence[Run], progress: Progress) -> None:
        """Send what a call says of its progress now or later, or what it says after it."""
        with self._lock:
            for run in runs:
                report = self.open.get(run)
                if report is None:
                    if run in self._over:
                        continue
                    report = self._begin(plane, run)
                if report.latest is None:
                    report.latest = progress
                    self._send_or_wait(run, report)
                else:  # the timer sends it
                    report.latest = progress

    def _send_or_wait(self, run: Run, report: _Report) -> None:
        wait_s = report.due_at - time.monotonic()
        if (report.is_sending or wait_s > 0) and (self._is_armed or self._arm(max(wait_s, INTERVAL_S / 10))):
            return
        self._send(run, report)

    def _arm(self, wait_s: float) -> bool:
        timer = threading.Timer(wait_s, self._on_timer)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # the system allows no more threads
            return False
        self._is_armed = True
        return True

    def _on_timer(self) -> None:
        with self._lock:
            self._is_armed, now, next_at = False, time.monotonic(), inf
            for run, report in list(self.open.items()):
                if report.latest is not None and report.due_at <= now and not report.is_sending:
                    self._send(run, report)
                elif report.latest is not None:
                    next_at = min(next_at, max(report.due_at, now + INTERVAL_S / 10))
            if next_at < inf:
                self._arm(next_at - now)

    def _send(self, run: Run, report: _Report) -> None:
        told, report.latest = report.latest, None
        assert told is not None
        report.due_at, report.is_sending = time.monotonic() + INTERVAL_S, True
        report.plane.note(run, _told(run, told), partial(self._on_reply, run, report))

    def _on_reply(self, run: Run, report: _Report, is_wanted: bool) -> None:
        with self._lock:
            report.is_sending = False
            if not is_wanted and self.open.pop(run, None) is not None:  # it has ended, or others have taken over
                self._set_over(run)

    def _set_over(self, run: Run) -> None:
        self._over[run] = None
        if len(self._over) > _OVER_KEPT:
            self._over.popitem(last=False)


def happened(what: Happening, run: Run, **more: Any) -> Event:
    """Return an event of a run, of this moment."""
    now_ms, here = clock.now_ms(), contexts.replica_here.get() or contexts.replica
    if what == Happening.STARTED and run.entry_id:
        more["queued_ms"] = max(0.0, now_ms - entered_ms(run.entry_id))
    tag = here.replica_tag if here else ""
    return Event(what, now_ms / 1000, deployment_in(run.stream), run.step, run.attempt, replica=tag, **more)


def _told(run: Run, progress: Progress) -> Event:
    return happened(Happening.PROGRESS, run, fraction=progress.fraction, message=progress.message)


reports: Final = Reports()
