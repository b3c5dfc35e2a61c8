"""A thread beside the loop that acts when the loop, or user code in it, stands still.

It ends calls that run too long, gives back calls that cannot begin, and ends the whole replica when nothing
else helps: the supervisor then hands its calls over and starts another.
"""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import threading
import time
from functools import partial

from qserve.base.log import get_logger, of_request
from qserve.base.tracebacks import frames_of_thread, place_in
from qserve.base.turns import Turns
from qserve.broker.connection import Client, broker_errors
from qserve.engine.step import Conclusion
from qserve.exceptions import TimeLimitExceeded
from qserve.metrics import recorder, totals
from qserve.metrics.table import TABLE
from qserve.wire.failure import Failure
from qserve.wire.outcome import SESSION, State
from qserve_workers.replica.reader import Work
from qserve_workers.replica.replica import Replica
from qserve_workers.replica.spec import Exit

log = get_logger(__name__)
STOP_FOR_S = 1.0
"""How long a cancelled coroutine may take to end before its replica is killed."""
POLL_INTERVAL_S = 0.25
IDLE_S = 15.0
"""How long the watchdog of a replica without calls rests, unless one begins: it then asks whether the loop turns, which
user code may hold all the same."""
_RESTS_AFTER_S = 2.0
"""How long it looks around, from the first call after a rest, before it rests again."""

TELL_S = 1.0
"""How often what was counted is told to the supervisor, if there is any."""


class Watchdog:
    """Watches one replica from the moment it takes calls.

    Parameters:
      client: Its own connection, because the replica's may stand still with its loop.
    """

    def __init__(self, replica: Replica, client: Client) -> None:
        self._replica = replica
        self._client = client
        self._stall_s = replica.spec.settings.stall_limit_s
        self._loop_thread = threading.get_ident()
        self._is_pinged = self._is_measured = False
        self._checked_at = self._pinged_at = self._told_at = self._busy_at = time.monotonic()
        here = recorder.here
        self._delays = None if here is None else here.buckets(TABLE["serve_event_loop_scheduling_latency_ms"])
        self._stood_s = 0.0
        self._waited_s = 0.0
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._turns = Turns("the watchdog", log, longest_s=1.0, is_quiet=True)

    def start(self) -> None:
        """Watch until ``stop``; called on the loop's thread."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no more: the loop is about to end."""
        self._stop.set()
        self._wake.set()

    def is_loop_alive(self) -> bool:
        """Return whether the loop has stood still for no longer than it may; from any thread."""
        return self._stood_s <= self._stall_s

    @property
    def _interval_s(self) -> float:
        return min(POLL_INTERVAL_S, self._stall_s / 4, (self._replica.spec.options.max_execution_s or 1.0) / 4)

    def _watch(self) -> None:
        while not self._rest():
            with self._turns:
                self._check()

    def _rest(self) -> bool:
        """Wait until the next check is due, or the first call begins; return whether to stop."""
        self._waited_s, replica = self._interval_s, self._replica
        if self._checked_at - self._busy_at < _RESTS_AFTER_S or self._stood_s:
            return self._stop.wait(self._waited_s)
        self._wake.clear()
        replica.call_at_next_call(self._wake.set)
        if not replica.has_calls and not self._stop.is_set():  # looked at last: a call that begins later wakes this
            self._waited_s = min(IDLE_S, self._stall_s / 4)
            if self._wake.wait(self._waited_s):
                self._busy_at = time.monotonic()  # the call may have ended already, and others come
        replica.call_at_next_call(None)
        return self._stop.is_set()

    def _check(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            totals.flush()
        if self._replica.has_calls:
            self._busy_at = now
        works = self._replica.invoker.running()
        self._check_loop(now, bool(works))
        if not self.is_loop_alive():
            return self._end_stalled()
        for work in works:
            self._turns.attempt(f"call {work.header.request_id}", self._check_call, work, now)
        count = self._replica.give_back(self._client)
        if count:
            log.info("%d calls that could not start in time were given back", count)
        return None

    def _check_call(self, work: Work, now: float) -> None:
        deadline, limit_s = work.deadline(), self._replica.spec.options.max_execution_s
        if limit_s is not None and now - work.began > limit_s and work.step != SESSION:
            self._end_over_limit(work, limit_s)
        elif now > deadline + self._stall_s or (_can_stop(work) and now > work.ended_at + self._stall_s):
            self._end_overdue(work)
        elif now > deadline and not work.ended:
            # its caller may be gone, and then does not end it at the deadline
            self._replica.loop.call_soon_threadsafe(work.end, State.EXPIRED)

    def _check_loop(self, now: float, is_busy: bool) -> None:
        gap_s, self._checked_at = now - self._checked_at, now
        if gap_s - self._waited_s > self._replica.spec.settings.beat_s:
            # without a heartbeat for so long, calls may have been handed over
            self._replica.loop.call_soon_threadsafe(self._replica.end_unwanted)
        # while the whole process was stopped, this thread was as well: such time does not count
        gap_s = min(gap_s, 2 * self._waited_s)
        if self._is_pinged:
            # once the loop has ended, Celery ends the worker, which takes a second while it sends events
            self._stood_s += gap_s if self._replica.loop.is_running() else 0.0
            return
        self._stood_s = 0.0
        if is_busy or now - self._pinged_at > min(IDLE_S / 2, self._stall_s / 4):
            self._is_pinged, self._pinged_at, self._is_measured = True, now, is_busy
            self._replica.loop.call_soon_threadsafe(self._on_ping)

    def _on_ping(self) -> None:
        self._is_pinged = False
        if self._delays is not None and self._is_measured:  # a replica without calls has nothing to tell
            self._delays.observe((time.monotonic() - self._pinged_at) * 1000)

    # -- calls that run too long -------------------------------------------------------------------

    def _end_over_limit(self, work: Work, limit_s: float) -> None:
        method, at = work.name, self._replica.invoker.place_of(work)
        of = of_request(work.header.trace_id)
        log.error("%s ran longer than max_execution_s=%g, at %s, and is stopped", method, limit_s, at, extra=of)
        text = f"{self._replica.spec.deployment}.{method} ran longer than max_execution_s={limit_s:g} and was stopped"
        error = TimeLimitExceeded(text)
        error.deployment = self._replica.spec.deployment
        self._end(work, Conclusion(State.FAILED, Failure.of(error).encode()), Exit.TIME_LIMIT)

    def _end_overdue(self, work: Work) -> None:
        log.error(
            "%s still runs %g s after its request has ended (QSERVE_STALL_LIMIT_S), at %s, and is stopped",
            work.name, self._stall_s, self._replica.invoker.place_of(work), extra=of_request(work.header.trace_id),
        )  # fmt: skip
        self._end(work, Conclusion(work.ended or State.EXPIRED), Exit.STALLED)

    def _end(self, work: Work, conclusion: Conclusion, exit_code: int) -> None:
        """Notify the caller, then cancel a coroutine; code that blocks cannot be cancelled, so the replica ends.

        Crash after the caller was notified: the call is committed, and is not run again.
        """
        try:
            command = self._replica.committer.commit_command(work, conclusion)
            with broker_errors():
                self._client.execute_command(*command)
        except Exception as error:  # the call must end in any case
            of = of_request(work.header.trace_id)
            log.error("the caller of %s could not be notified: %s", work.name, error, extra=of)
        if _can_stop(work):
            # the second time, if it goes on although its request has ended
            stop = work.cancel_task if work.ended else partial(work.end, State.CANCELLED)
            self._replica.loop.call_soon_threadsafe(stop)
            give_up = time.monotonic() + STOP_FOR_S
            while time.monotonic() < give_up:
                if work not in self._replica.invoker.running():
                    return
                self._stop.wait(0.01)
        self._replica.spec.end_process(exit_code)

    # -- a loop that stands still ------------------------------------------------------------------

    def _end_stalled(self) -> None:
        """End the process. Its calls stay pending, and are handed over with one more death each.

        If one of them holds the loop again, it then runs alone, and no more than a few times.
        """
        holder = self._holder()
        log.error(
            "user code blocked the event loop for more than %g s (QSERVE_STALL_LIMIT_S): %s at %s; the replica ends",
            self._stall_s,
            "no call" if holder is None else holder.name,
            place_in(frames_of_thread(self._loop_thread)),
            extra=of_request("" if holder is None else holder.header.trace_id),
        )
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        self._replica.spec.end_process(Exit.STALLED)

    def _holder(self) -> Work | None:
        """The call that is on the loop now."""
        task = asyncio.current_task(self._replica.loop)
        works = self._replica.invoker.running()
        held = [work for work in works if work.task is task] or works
        return max(held, key=lambda work: work.began, default=None)


def _can_stop(work: Work) -> bool:
    """Return whether its code ends when its task is cancelled, unless that ignores it; code in a thread does not."""
    return work.task is not None and not work.blocks
