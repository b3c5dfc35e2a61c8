"""The broker's clock, by which deadlines are set, and the time left of a local wait.

Hosts may have different clocks, so a deadline is a time on the broker's clock. Each process measures that clock when it
connects and every few seconds after that, and counts with its own monotonic clock in between: neither the host's clock
nor a sudden change of the broker's clock ends a request early.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from math import inf
from typing import Final

log: Final = logging.getLogger(__name__)

MEASURE_INTERVAL_S = 5.0
"""How often a process that talks to the broker measures its clock."""
JUMP_S = 2.0
"""A change of more than this is not drift: the clock was set, or a replica with another clock became the primary."""
OVERLAP_S = 120.0
"""How long the time from before a jump is used beside the new one."""


class Clock:
    """The broker's time, or this host's time until the broker's is measured.

    After a jump the time before it stays in force as well for ``OVERLAP_S``: deadlines are given by the later of
    the two and judged by the earlier, because processes do not all notice the jump at the same moment.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._monotonic = monotonic
        self._offset_s = wall() - monotonic()
        self._measured_at: float | None = None
        self._former: tuple[tuple[float, float], ...] = ()  # offsets from before a jump, and until when they count
        self._lock = threading.Lock()

    def stamp_ms(self) -> float:
        """Return the Unix time in milliseconds from which a new deadline is counted."""
        offset_s = max(self._offsets()) if self._former else self._offset_s
        return (self._monotonic() + offset_s) * 1000

    def judge_ms(self) -> float:
        """Return the Unix time in milliseconds that deadlines are compared with: earlier ones have passed."""
        # without a jump, as a rule, and this is on the way of each call
        offset_s = min(self._offsets()) if self._former else self._offset_s
        return (self._monotonic() + offset_s) * 1000

    def now_ms(self) -> float:
        """Return the broker's Unix time in milliseconds, as it was measured last."""
        return (self._monotonic() + self._offset_s) * 1000

    def is_near(self, at_ms: float, within_ms: float) -> bool:
        """Return whether a time is within ``within_ms`` of now, by the current time or by one from before a jump."""
        now_s = self._monotonic()
        return any(abs((now_s + offset_s) * 1000 - at_ms) <= within_ms for offset_s in self._offsets())

    def _offsets(self) -> tuple[float, ...]:
        if not self._former:
            return (self._offset_s,)
        now = self._monotonic()
        self._former = former = tuple(offset for offset in self._former if offset[1] > now)
        return self._offset_s, *(offset_s for offset_s, _ in former)

    def is_due(self) -> bool:
        return self._measured_at is None or self._monotonic() - self._measured_at >= MEASURE_INTERVAL_S

    def observe(self, theirs_s: float | None, asked_at: float) -> None:
        """Adopt the broker's time, which has just arrived.

        Parameters:
          theirs_s: Unix time; None if the broker would not say, because an ACL may forbid the question.
          asked_at: The monotonic clock before the command was sent.
        """
        if theirs_s is None:
            return
        now = self._monotonic()
        with self._lock:
            before_s, first = self._offset_s, self._measured_at is None
            # the reply was given at some moment between the two: only what lies outside of that is a difference
            self._offset_s = min(max(before_s, theirs_s - now), theirs_s - asked_at)
            self._measured_at = now
            moved_s = self._offset_s - before_s
            if first or abs(moved_s) <= JUMP_S:
                return
            self._former = (*self._former, (before_s, now + OVERLAP_S))
        log.warning(
            "clock_jump: the broker's clock moved by %+.1f s; for %.0f s deadlines count by both times",
            moved_s, OVERLAP_S,
        )  # fmt: skip


clock: Final = Clock()
"""The clock of this process."""


class Turnstile:
    """Lets so many through in a second; of two threads that come at the same moment both may pass.

    Parameters:
      per_s: How many; 0 for none.
      at_once: How many may pass together after a pause.
    """

    def __init__(self, per_s: float, at_once: int = 1, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._pause_s = 1 / per_s if per_s else inf
        self._ahead_s = (at_once - 1) * self._pause_s if per_s else 0.0
        self._next_at = -inf if per_s else inf
        self._monotonic = monotonic

    def passes(self) -> bool:
        """Return whether this one passes."""
        now = self._monotonic()
        if now < self._next_at - self._ahead_s:
            return False
        self._next_at = max(self._next_at, now) + self._pause_s
        return True


class Deadline:
    """The end of a wait that several steps share, on this host's monotonic clock.

    Parameters:
      timeout_s: Seconds from now; None waits without a limit.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    def remaining_s(self) -> float | None:
        """Return the seconds that are left, never below 0; None for a wait without a limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def has_passed(self) -> bool:
        return self.remaining_s() == 0.0
