"""The items of a streamed result: they arrive one by one, and the reader's pace holds the producer back."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, Generic

from qserve.base.deadline import Countdown
from qserve.base.promise import Promise
from qserve.calls.plane import Plane
from qserve.calls.ref import Ref, T_co, error_of
from qserve.exceptions import GetTimeoutError
from qserve.wire.outcome import State

WINDOW = 16
"""Items that may be on their way; a producer that is further ahead waits."""


class ItemRef(Ref[T_co]):
    """A ref whose result comes as items."""

    __slots__ = ("_arrived", "_more", "_taken", "arrived")

    def __init__(self, request_id: str, plane: Plane | None, owned: bool = False) -> None:
        super().__init__(request_id, plane, owned)
        self._arrived: deque[bytes] = deque()
        self._more: Promise[None] = Promise()
        self._taken = 0
        self.arrived = 0
        self.done.call_when_set(self._wake)

    def add(self, payload: bytes) -> None:
        """Called by the plane for each item, in order."""
        self.arrived += 1
        self._arrived.append(payload)
        self._wake()

    def _wake(self) -> None:
        self._more.set(None)

    def take_nowait(self) -> bytes | None:
        """The next item's bytes; None when there is none yet, or none any more."""
        if not self._arrived:
            return None
        self._taken += 1
        if self._taken % (WINDOW // 2) == 0:
            self._plane_of().take(self.request_id, WINDOW // 2)
        return self._arrived.popleft()

    def has_items(self) -> bool:
        """Whether ``take_nowait`` would give an item."""
        return bool(self._arrived)

    def changed(self) -> Promise[None]:
        """Set as soon as there is an item or the end; look with ``take_nowait`` first, and after."""
        if self._more.is_set():
            self._more = Promise()
            if self._arrived or self.done.is_set():
                self._more.set(None)
        return self._more

    def take(self, timeout_s: float | None = None) -> bytes | None:
        """Wait for the next item's bytes; None at the end, however that came.

        Raises:
          GetTimeoutError: Neither came in time.
        """
        left = Countdown(timeout_s)
        while True:
            item = self.take_nowait()
            if item is not None or (self.done.is_set() and not self._arrived):
                return item
            if not self.changed().wait(left.left_s()):
                raise GetTimeoutError(f"no item of request {self.request_id} within {timeout_s} s; it goes on")

    async def take_async(self) -> bytes | None:
        """``take`` for coroutines."""
        while True:
            item = self.take_nowait()
            if item is not None or (self.done.is_set() and not self._arrived):
                return item
            await self.changed()

    def raise_for_end(self) -> None:
        """Raise what ended the stream early; nothing when it is complete."""
        outcome = self.outcome()
        if outcome.state != State.DONE:
            raise error_of(outcome, self.request_id)

    def decode(self, item: bytes) -> T_co:
        """Return an item's value."""
        return self._plane_of().codec.decode(item)  # type: ignore[no-any-return]


class DeploymentResponseGenerator(Generic[T_co]):
    """What ``handle.options(stream=True).method.remote(...)`` gives: iterate it with ``for`` or ``async for``.

    Items arrive as the method yields them. ``cancel()`` (or closing an async iteration early) stops the
    producer at its next item.
    """

    def __init__(self, ref: ItemRef[T_co]) -> None:
        self.ref = ref

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.ref.request_id

    def __iter__(self) -> Iterator[T_co]:
        return self

    def __next__(self) -> T_co:
        item = self.ref.take()
        if item is None:
            self.ref.raise_for_end()
            raise StopIteration
        return self.ref.decode(item)

    def __aiter__(self) -> AsyncIterator[T_co]:
        return self

    async def __anext__(self) -> T_co:
        item = await self.ref.take_async()
        if item is None:
            self.ref.raise_for_end()
            raise StopAsyncIteration
        return self.ref.decode(item)

    def cancel(self) -> None:
        """Stop the producer at its next item."""
        self.ref.cancel()

    def __del__(self) -> None:
        if not self.ref.done.is_set():
            self.ref.cancel()

    def __await__(self) -> Any:
        raise TypeError(
            "`DeploymentResponseGenerator` cannot be awaited. Iterate it: `async for item in handle.method.remote(...)`"
        )

    def __reduce__(self) -> Any:
        raise RuntimeError(
            "Streaming deployment handle results cannot be passed to downstream handle calls. If you have a use"
            " case requiring this feature, pass the items instead: `[item async for item in response]`"
        )

    def __repr__(self) -> str:
        return f"DeploymentResponseGenerator({self.ref!r})"
