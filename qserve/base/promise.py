"""A value that is set once, with any number of waiters in threads, greenlets and event loops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec

if TYPE_CHECKING:  # the defaults allow `Promise` for `Promise[Any]`; typing has them from Python 3.13 on
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
    T_co = TypeVar("T_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)

P = ParamSpec("P")
log: Final = logging.getLogger(__name__)
_UNSET: Any = object()


class Promise(Generic[T]):
    """Holds nothing until ``set`` is called, and the same value from then on."""

    __slots__ = ("_callbacks", "_value")

    def __init__(self) -> None:
        self._value = _UNSET
        self._callbacks: deque[Callable[[], object]] = deque()

    def is_set(self) -> bool:
        return self._value is not _UNSET

    def get_nowait(self) -> T:
        """Return the value; call it only once ``is_set`` is true."""
        return self._value  # type: ignore[no-any-return]

    def set(self, value: T) -> bool:
        """Set the value and wake everything that waits; return False if it was set before."""
        if self._value is not _UNSET:
            return False
        self._value = value
        self._drain()
        return True

    def has_waiters(self) -> bool:
        """Return whether something waits for the value."""
        return bool(self._callbacks)

    def call_when_set(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once: now if the value is there, otherwise in the thread that sets it."""
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
            try:
                callback()
            except Exception:  # of one waiter; the others wait as well
                log.exception("a waiter could not be notified")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block this thread (or greenlet) until the value is set; return False if ``timeout_s`` passed first."""
        if self._value is not _UNSET:
            return True
        gate = threading.Lock()
        gate.acquire()
        self.call_when_set(gate.release)
        return gate.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))

    def __await__(self) -> Generator[Any, None, T]:
        if self._value is _UNSET:
            loop = asyncio.get_running_loop()
            future = loop.create_future()

            def wake() -> None:
                if asyncio._get_running_loop() is loop:
                    _resolve(future)
                else:
                    with contextlib.suppress(RuntimeError):  # the waiter's loop was closed, so nothing waits any more
                        loop.call_soon_threadsafe(_resolve, future)

            self.call_when_set(wake)
            try:
                yield from future
            except BaseException:
                with contextlib.suppress(ValueError, IndexError):  # another thread sets the value now
                    self._callbacks.remove(wake)
                raise
        return self._value  # type: ignore[no-any-return]


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def for_future(call: Callable[P, T]) -> Callable[P, T]:
    """Return ``call`` with RuntimeError in the place of StopIteration, which an asyncio future does not take."""

    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError(f"{getattr(call, '__qualname__', call)} raised StopIteration") from error

    return checked
