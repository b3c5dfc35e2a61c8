"""Time that is left: a wait shared by several steps."""

from __future__ import annotations

import time


class Countdown:
    """What is left of a wait that is shared by several."""

    def __init__(self, timeout_s: float | None) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Seconds left, never below 0; None for a wait without limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())
