"""A value that arrives once, for any number of waiters in any thread, greenlet or event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

_UNSET: Any = object()


class Promise:
    """Holds nothing until ``set``; afterwards always the same value."""

    __slots__ = ("_callbacks", "_value")

    def __init__(self) -> None:
        self._value = _UNSET
        self._callbacks: deque[Callable[[], object]] = deque()

    def is_set(self) -> bool:
        """Whether the value has arrived."""
        return self._value is not _UNSET

    def get_nowait(self) -> Any:
        """The value; only after ``is_set``."""
        return self._value

    def set(self, value: Any) -> bool:
        """Give the value and wake everybody; False when there was one already."""
        if self._value is not _UNSET:
            return False
        self._value = value
        self._drain()
        return True

    def call_when_set(self, callback: Callable[[], object]) -> None:
        """Run ``callback`` once, at once or in the thread that sets the value."""
        self._callbacks.append(callback)
        if self._value is not _UNSET:
            self._drain()

    def _drain(self) -> None:
        # popleft is atomic: however the setter and a late waiter interleave, each callback runs once
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            callback()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block this thread (or greenlet) until the value is there; False when ``timeout_s`` passed first."""
        if self._value is not _UNSET:
            return True
        gate = threading.Lock()
        gate.acquire()
        self.call_when_set(gate.release)
        return gate.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))

    def __await__(self) -> Generator[Any, None, Any]:
        if self._value is _UNSET:
            loop = asyncio.get_running_loop()
            future = loop.create_future()

            def wake() -> None:
                if asyncio._get_running_loop() is loop:
                    _resolve(future)
                else:
                    with contextlib.suppress(RuntimeError):  # the waiter's loop was closed: nobody waits any more
                        loop.call_soon_threadsafe(_resolve, future)

            self.call_when_set(wake)
            yield from future
        return self._value


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
