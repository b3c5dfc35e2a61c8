"""How fast a method is, which decides where it runs and how far to read ahead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

FAST_S = 0.002
BATCH = 64


class Pace:
    """The measured time of a sync method.

    A method that takes less than 2 ms runs on the loop's thread, because handing it to another and back
    costs 0.1 ms; anything slower, and anything not yet measured, runs in a thread of its own, so that the
    loop goes on answering for it.
    """

    def __init__(self) -> None:
        self.seconds = 1.0
        self._measured = False

    def note(self, seconds: float) -> None:
        """Take a measurement into the average; one slow call is enough to be slow again."""
        self.seconds = (self.seconds + seconds) / 2 if self._measured else seconds
        self._measured = True

    @property
    def is_fast(self) -> bool:
        """Whether it may run on the loop's thread."""
        return self.seconds < FAST_S

    @property
    def batch(self) -> int:
        """How many calls make about 2 ms of work; a slow method takes one, so that others wait elsewhere."""
        return max(1, min(BATCH, int(FAST_S / max(self.seconds, 1e-6))))

    def measure(self, call: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Call, and take the time."""
        began = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            self.note(time.perf_counter() - began)


class CoroutinePace(Pace):
    """Coroutines do not hold the loop: reading ahead delays nothing."""

    batch = 16
