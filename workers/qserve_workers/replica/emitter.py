"""Send the items of a streamed result to their reader at once, or collect them in one answer that is stored."""

from __future__ import annotations

import asyncio
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
from qserve.wire.envelope import Answer, Header
from qserve.wire.outcome import State, end_of_items
from qserve.wire.sealing import item_context
from qserve_workers.replica.plane import LoopPlane

POLL_INTERVAL_S, SHORTEST_PAUSE_S = 0.01, 0.001
"""How often the broker is asked whether a reader has caught up: less and less often."""
_BATCH = WINDOW // 4
ASK_INTERVAL_S = 0.5
"""How often the broker is asked whether a collected answer is still wanted."""


class Emitter:
    """Sends the items of one request.

    Each item has a number, so a call that runs again after a crash sends nothing twice.
    """

    def __init__(self, plane: LoopPlane, header: Header) -> None:
        self._plane = plane
        self._request = plane.keys.request(header.request_id)
        self._request_id = header.request_id
        self._is_http = header.answer is not Answer.VALUE
        self._sent = 0
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
                sent = self._emit(self._sent, payload[start : start + length])
                self._sent += 1
            if len(starts) == 1 and self._has_room():
                return  # the reply comes while the next item is made
            backlog, pause_s = await self._backlog(sent), SHORTEST_PAUSE_S
            while backlog > WINDOW - min(_BATCH, max(1, len(starts) - first - _BATCH)):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, POLL_INTERVAL_S)
                backlog = await self._backlog(self._emit(0, b""))  # was sent before: this only asks

    def _emit(self, number: int, payload: bytes) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._plane.loop.create_future()
        known = max(number + 1, self._sent)  # an item that is emitted again, to ask, adds none

        def on_reply(reply: Any) -> None:
            if isinstance(reply, int):
                self._known, self.backlog = known, reply
            elif isinstance(reply, BrokerError):
                self._error = reply
            if not future.done():
                future.set_result(reply)

        sealed = self._plane.seal.seal(item_context(self._request_id, number), payload)
        self._plane.post(functions.emit(self._request, self._request_id, number, sealed), on_reply)
        self._last = future
        return future

    def _has_room(self) -> bool:
        """Return whether the reader has room for one more item, however few it has taken since the last reply."""
        return (
            self._error is None
            and self._known > 0
            and self.backlog >= 0
            and self.backlog + self._sent - self._known < WINDOW
        )

    async def settled(self) -> None:
        if self._last is not None:
            await self._backlog(self._last)

    async def _backlog(self, sent: asyncio.Future[Any]) -> int:
        reply = await sent
        if self._error is not None:
            raise self._error
        self.backlog = backlog = replies.number(reply)
        if backlog < 0:
            raise ReaderGone("the request of this stream has ended")
        return backlog


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
            await self._backlog(self._emit(-1, b""))  # no item has this number: this only asks

    def result(self) -> bytes:
        """Return the answer, as ``http.render.parse`` reads it."""
        status, headers = parse_head(self._items[0])
        named = [header for header in headers if header[0].lower() != "content-length"]
        return msgpack.packb([status, named, b"".join(self._items[1:])])  # type: ignore[no-any-return]
