"""Send the items of a streamed result to their reader at once, or collect them in one answer that is stored."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import msgpack

from qserve.broker import functions
from qserve.calls.items import PIECE_BYTES, WINDOW
from qserve.calls.mailbox import ignore
from qserve.engine.streaming import ReaderGone
from qserve.exceptions import BrokerError, ResultTooLarge
from qserve.http.render import RESPONSE_LIMIT, parse_head
from qserve.wire import replies
from qserve.wire.claim import Claim, claim_in
from qserve.wire.envelope import Answer, Header
from qserve.wire.outcome import State, end_of_items
from qserve.wire.sealing import item_context
from qserve_workers.replica.plane import LoopPlane

POLL_INTERVAL_S, SHORTEST_PAUSE_S = 0.01, 0.001
"""How often the broker is asked whether a reader has caught up: less and less often."""
_BATCH = WINDOW // 4
MOST_AHEAD = 16 * WINDOW
"""How many items may be on their way instead of ``WINDOW`` while all of them together are shorter than one piece: the
replies of the broker, and what a reader says that it has taken, come too late for more than a few short ones."""
ASK_INTERVAL_S = 0.5
"""How often the broker is asked whether a collected answer is still wanted."""


class Emitter:
    """Sends the items of one request.

    Each item has a number, so a call that runs again after a crash sends nothing twice. Those that come in one turn of
    the loop leave by one command.
    """

    most_ahead = MOST_AHEAD

    def __init__(self, plane: LoopPlane, header: Header) -> None:
        self._plane = plane
        self._request = plane.keys.request(header.request_id)
        self._request_id = header.request_id
        self._is_http = header.answer is not Answer.VALUE
        self._sent = 0
        self._gathered: list[bytes] = []
        """The last of them, which leave at the end of this turn of the loop."""
        self._sizes: deque[int] = deque()
        """The lengths of those that the reader has not taken, as far as that is known, and maybe of some before."""
        self._size = self._length = 0
        self._known = 0
        """How many items had been sent as of the backlog that is known; 0 before the first."""
        self._error: BrokerError | None = None
        self._last: asyncio.Future[Any] | None = None
        self.backlog = 0
        _emitters.add(self)

    def result(self) -> bytes:
        return end_of_items(self._sent)

    async def send(self, payload: bytes) -> None:
        # the head of a response is the first item, and must be whole
        length = PIECE_BYTES if self._is_http and self._sent else max(1, len(payload))
        starts = range(0, len(payload), length) or range(1)
        for first in range(0, len(starts), _BATCH):
            for start in starts[first : first + _BATCH]:
                self._gather(payload[start : start + length])
            if len(starts) == 1 and self._has_room():
                return  # the reply comes while the next item is made
            self.flush()
            await self._settle(self._last)
            pause_s, wanted = SHORTEST_PAUSE_S, min(_BATCH, max(1, len(starts) - first - _BATCH))
            while not self._has_room(wanted):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, POLL_INTERVAL_S)
                await self._settle(self._emit())

    def _gather(self, payload: bytes) -> None:
        claim = None if self._is_http else claim_in(payload)
        if claim is not None:  # such an item is sent alone
            self.flush()
        elif not self._gathered:
            self._plane.loop.call_soon(self.flush)
        self._sent += 1
        self._length = length = len(payload) + (claim.size if claim is not None else 0)
        self._sizes.append(length)
        self._size += length
        if claim is None:
            self._gathered.append(payload)
        else:
            self._last = self._emit(self._sent - 1, [payload], claim)

    def flush(self) -> None:
        """Send the items that have gathered.

        Crash before this: the call runs again, and the items come then. Crash after: none of them comes twice.
        """
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._last = self._emit(self._sent - len(gathered), gathered)

    def _emit(self, number: int = 0, payloads: Sequence[bytes] = (), claim: Claim | None = None) -> asyncio.Future[Any]:
        """Send items; without any this only asks how far the reader is."""
        future: asyncio.Future[Any] = self._plane.loop.create_future()
        known = self._sent - len(self._gathered)

        def on_reply(reply: Any) -> None:
            if claim is not None:
                self._plane.store.settled([claim])
            if isinstance(reply, int):
                self._known, self.backlog = known, reply
            elif isinstance(reply, BrokerError):
                self._error = reply
            if not future.done():
                future.set_result(reply)

        seal, request_id = self._plane.seal.seal, self._request_id
        sealed = [seal(item_context(request_id, number + k), payload) for k, payload in enumerate(payloads)]
        self._plane.post(
            functions.emit(self._request, request_id, number, sealed, claim.name if claim else ""), on_reply
        )
        return future

    @property
    def room(self) -> int:
        """How many items may be sent at once, if they are as long as the last one."""
        if not self._has_room():
            return 0
        short = (PIECE_BYTES - self._size) // max(1, self._length)
        return min(self.most_ahead, max(WINDOW, self._ahead + short)) - self._ahead

    @property
    def _ahead(self) -> int:
        return self.backlog + self._sent - self._known

    def _has_room(self, wanted: int = 1) -> bool:
        """Return whether the reader has room for more items, however few it has taken since the last reply."""
        if self._error is not None or not self._known or self.backlog < 0:
            return False
        ahead = self._ahead
        while len(self._sizes) > ahead:
            self._size -= self._sizes.popleft()
        return ahead + wanted <= WINDOW or (ahead + wanted <= self.most_ahead and self._size < PIECE_BYTES)

    async def settled(self) -> None:
        self.flush()
        if self._last is not None:
            await self._settle(self._last)

    async def _settle(self, sent: asyncio.Future[Any] | None) -> None:
        """Wait for the reply to a command."""
        assert sent is not None
        reply = await sent
        if self._error is not None:
            raise self._error
        self.backlog = replies.number(reply)
        if self.backlog < 0:
            raise ReaderGone("the request of this stream has ended")


_emitters: WeakSet[Emitter] = WeakSet()


def stream_backlog() -> int:
    """Return how many items of this process's streams no reader has taken, as the broker has last said."""
    return sum(max(0, emitter.backlog) for emitter in list(_emitters))


class Collector(Emitter):
    """Collects the items of an HTTP answer that is fetched later, and so is needed whole."""

    def __init__(self, plane: LoopPlane, header: Header) -> None:
        super().__init__(plane, header)
        self._header = header
        self._items: list[bytes] = []
        self._size = 0
        self._asked_at = plane.loop.time()

    async def send(self, payload: bytes) -> None:
        self._size += len(payload)
        if self._size > RESPONSE_LIMIT:
            raise ResultTooLarge(
                f"a stream that is fetched later may have at most {RESPONSE_LIMIT} bytes, and this one has more"
            )
        self._items.append(payload)
        now = self._plane.loop.time()
        if now - self._asked_at > ASK_INTERVAL_S:
            self._asked_at = now
            if self._header.expired():
                # a stream may never end by itself, and no other process may know of the deadline any more
                end = functions.end(self._plane.seal, self._request, self._request_id, State.EXPIRED)
                self._plane.post(end, ignore)
            await self._settle(self._emit())

    def result(self) -> bytes:
        """Return the answer, as ``http.render.parse`` reads it."""
        status, headers = parse_head(self._items[0])
        named = [header for header in headers if header[0].lower() != "content-length"]
        return msgpack.packb([status, named, b"".join(self._items[1:])])  # type: ignore[no-any-return]
