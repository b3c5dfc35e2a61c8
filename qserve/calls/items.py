"""The ref of a streamed result, which arrives as items."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable

from qserve.base.clock import Deadline
from qserve.base.promise import Promise, T_co
from qserve.broker.functions import UNREAD
from qserve.calls.ref import Plane, Ref
from qserve.exceptions import GetTimeoutError, PayloadError, ValueLost
from qserve.wire.claim import claim_in

WINDOW = 16
"""How many items of a streamed result may be on their way; a producer that is further ahead waits."""
_MOST_UNTOLD = 4 * WINDOW
PIECE_BYTES = 16 * 1024
"""The longest item of a streamed HTTP response, whose longer parts are sent as several."""


class ItemRef(Ref[T_co]):
    """A ref whose result arrives as items; the reader's pace limits how far ahead the producer may be."""

    __slots__ = ("_ready", "_untold", "is_of_values", "items", "received")

    def __init__(self, request_id: str, plane: Plane | None, owned: bool = False) -> None:
        super().__init__(request_id, plane, owned)
        self.items: deque[bytes] = deque()  # those that have arrived and were not taken
        self._ready: Promise[None] = Promise()
        self._untold = 0  # how many were taken since the producer was told
        self.received: int = 0
        self.is_of_values: bool = True
        """Whether its items are encoded values, and not parts of an HTTP response."""
        self.done.call_when_set(self._wake)

    def add(self, item: bytes) -> None:
        self.received += 1
        self.items.append(item)
        self._wake()

    def _wake(self) -> None:
        self._ready.set(None)

    def ready(self) -> Promise[None]:
        """Return a promise that is set once there is an item or the end; call ``next_nowait`` before and after."""
        if self._ready.is_set():
            self._ready = Promise()
            if self.items or self.done.is_set():
                self._ready.set(None)
        return self._ready

    def drop_items(self) -> None:
        """Let the producer go on to its end, at its own pace; the items are not read any more."""
        items, self.items = self.items, deque(maxlen=0)
        self._release(items)
        self._get_plane().add_credit(self.request_id, UNREAD)

    def next_nowait(self) -> bytes | None:
        """Return the next item's bytes; None if none has arrived, or there are no more."""
        if not self.items:
            return None
        item = self.items.popleft()
        self._untold += 1
        # of many short ones, which come together, not after each few
        if self._untold >= WINDOW // 2 and (len(self.items) <= WINDOW // 2 or self._untold >= _MOST_UNTOLD):
            self._get_plane().add_credit(self.request_id, self._untold)
            self._untold = 0
        return item

    def next(self, timeout_s: float | None = None) -> bytes | None:
        """Wait for the next item and return its bytes; None at the end of the stream, after a result or an error.

        Raises:
          GetTimeoutError: Neither arrived within ``timeout_s``.
        """
        deadline = Deadline(timeout_s)
        while (item := self.next_nowait()) is None and not self._is_over():
            if not self.ready().wait(deadline.remaining_s()):
                raise GetTimeoutError(
                    f"request {self.request_id} sent no item within {timeout_s} s; it is still running"
                )
        return item

    async def next_async(self) -> bytes | None:
        while (item := self.next_nowait()) is None and not self._is_over():
            self._get_plane().check_items_arrive()
            try:
                await self.ready()
            except asyncio.CancelledError:
                self.cancel_with_caller()
                raise
        return item

    def _has_readers(self) -> bool:
        return self._ready.has_waiters()

    def _is_over(self) -> bool:
        return self.done.is_set() and not self.items  # in this order: another thread may add the last item meanwhile

    def decode(self, item: bytes) -> T_co:
        plane, claim = self._get_plane(), claim_in(item)
        try:
            return plane.codec.decode(item)  # type: ignore[no-any-return]
        except ValueLost:
            if self.done.is_set():
                self.raise_for_end()  # such as the deadline, with which the items went that were not read yet
            raise
        finally:
            if claim is not None:
                plane.release_item(claim)

    async def decode_async(self, item: bytes) -> T_co:
        """Do the same in async code: what takes long to fetch is fetched in a thread."""
        if self._get_plane().codec.is_heavy(item):
            return await asyncio.get_running_loop().run_in_executor(None, self.decode, item)
        return self.decode(item)

    def _release(self, items: Iterable[bytes]) -> None:
        """Let go of the stored values of items that nobody will read."""
        if self.is_of_values:
            for claim in filter(None, map(claim_in, items)):
                self._get_plane().release_item(claim)

    def __del__(self) -> None:
        with contextlib.suppress(PayloadError):
            self._release(self.items)
        super().__del__()
