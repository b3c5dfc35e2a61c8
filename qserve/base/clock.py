"""Time as the broker tells it, so that processes on hosts with different clocks mean the same by a deadline.

Each process measures the broker's clock when it connects and every few seconds after that, and counts on with its
own monotonic clock in between: neither the host's clock nor a sudden change of the broker's ends a request early.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""How often whoever talks to the broker anyway measures its clock."""
JUMP_S = 2.0
"""A change of more than this is no drift: somebody has set the clock, or a replica with another one took over."""
BOTH_FOR_S = 120.0
"""How long the time before a jump stays in force beside the new one."""


class Clock:
    """The broker's time; this host's until it is measured.

    After a jump the time before it stays in force as well for ``BOTH_FOR_S``: deadlines are given by the later of
    the two and judged by the earlier, since other processes notice the jump some seconds sooner or later.

    Parameters:
      monotonic: Seconds since any moment; replaced in tests.
      wall: Unix time of this host.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._monotonic = monotonic
        self._offset_s = wall() - monotonic()
        self._measured_at: float | None = None
        self._former: tuple[tuple[float, float], ...] = ()  # an offset, and until when it counts
        self._lock = threading.Lock()

    def stamp_ms(self) -> float:
        """Unix time in milliseconds from which a new deadline is counted."""
        return (self._monotonic() + (max(self._offsets()) if self._former else self._offset_s)) * 1000

    def judge_ms(self) -> float:
        """Unix time in milliseconds that a deadline must be below to have passed."""
        return (self._monotonic() + (min(self._offsets()) if self._former else self._offset_s)) * 1000

    def _offsets(self) -> list[float]:
        now = self._monotonic()
        self._former = former = tuple(one for one in self._former if one[1] > now)
        return [self._offset_s, *(offset_s for offset_s, _ in former)]

    def is_due(self) -> bool:
        """Whether the last measurement is ``EVERY_S`` old, or there was none."""
        return self._measured_at is None or self._monotonic() - self._measured_at >= EVERY_S

    def observe(self, answer: Any, asked_at: float) -> None:
        """Take the broker's answer to ``TIME``, which has just arrived.

        Parameters:
          answer: Seconds and microseconds, as redis-py or hiredis gives them; an error is passed over, since an ACL
            may forbid the question.
          asked_at: The monotonic clock before it was asked.
        """
        if isinstance(answer, Exception):
            return
        theirs_s = int(answer[0]) + int(answer[1]) / 1e6
        now = self._monotonic()
        with self._lock:
            before_s, first = self._offset_s, self._measured_at is None
            # given at some moment in between: only what lies outside of that is a difference
            self._offset_s = min(max(before_s, theirs_s - now), theirs_s - asked_at)
            self._measured_at = now
            moved_s = self._offset_s - before_s
            if first or abs(moved_s) <= JUMP_S:
                return
            self._former = (*self._former, (before_s, now + BOTH_FOR_S))
        log.warning(
            "clock_jump: the broker's clock moved by %+.1f s; for %.0f s deadlines count by both times",
            moved_s, BOTH_FOR_S,
        )  # fmt: skip


clock = Clock()
"""The clock of this process."""
