"""Results that come as items: what a generator yields leaves at once, at the pace of its reader."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgpack
from starlette.responses import Response

from qserve.base.keys import Keys
from qserve.broker import functions
from qserve.calls.mailbox import ignore
from qserve.calls.ref import WINDOW
from qserve.engine.streams import is_generator, stream_of_plain_call
from qserve.exceptions import BrokerError, ResultNotSerialisable, ResultTooLarge
from qserve.http.render import RESPONSE_LIMIT
from qserve.wire.envelope import Answer, Header
from qserve.wire.outcome import State
from qserve.wire.sealing import item_context
from qserve_workers.replica.plane import LoopPlane

_LOOK_S = 0.01
_ASK_EVERY_S = 0.5
_END: Any = object()
_TEXT_HEAD: bytes = msgpack.packb([200, [["content-type", "text/plain; charset=utf-8"]]])

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class ReaderGone(OSError):
    """Raised in a producer whose request has ended; an OSError is what ASGI responses expect."""


def must_run(header: Header, value: Any) -> bool:
    """Whether an answer is an HTTP response that has to be run to have a body: streams, files, background tasks."""
    if not (header.stream or header.answer is Answer.PLAIN):
        return False
    return isinstance(value, Response) and (not hasattr(value, "body") or value.background is not None)


class Emitter:
    """Sends the items of one request.

    Each item has a number, so a call that runs again after a crash sends nothing twice.
    """

    def __init__(self, plane: LoopPlane, keys: Keys, header: Header) -> None:
        self._plane = plane
        self._request = keys.request(header.request_id)
        self._request_id = header.request_id
        self._sent = 0
        self.is_over = False

    def result(self) -> bytes:
        """What is left to be stored at the end: nothing."""
        return b""

    async def send(self, payload: bytes) -> None:
        """Send one item, and wait while the reader is too far behind.

        Raises:
          ReaderGone: The request has ended: cancelled, expired, or its client left.
        """
        backlog = await self._emit(self._sent, payload)
        self._sent += 1
        while backlog >= WINDOW:
            await asyncio.sleep(_LOOK_S)
            backlog = await self._emit(0, b"")  # sent before: only asks

    async def _emit(self, number: int, payload: bytes) -> int:
        future: asyncio.Future[Any] = self._plane.loop.create_future()

        def on_reply(reply: Any) -> None:
            if not future.done():
                future.set_result(reply)

        sealed = self._plane.seal.seal(item_context(self._request_id, number), payload)
        self._plane.post(functions.emit(self._request, self._request_id, number, sealed), on_reply)
        reply = await future
        if isinstance(reply, BrokerError):
            raise reply
        if reply < 0:
            self.is_over = True
            raise ReaderGone("nobody takes the items of this request any more")
        return int(reply)


class Collector(Emitter):
    """Takes the items of an HTTP answer that somebody asks for later, and so needs whole."""

    def __init__(self, plane: LoopPlane, keys: Keys, header: Header) -> None:
        super().__init__(plane, keys, header)
        self._header = header
        self._items: list[bytes] = []
        self._size = 0
        self._asked_at = plane.loop.time()

    async def send(self, payload: bytes) -> None:
        """Take one item.

        Raises:
          ReaderGone: The request has ended.
          ResultTooLarge: The answer is longer than one that is stored may be.
        """
        self._size += len(payload)
        if self._size > RESPONSE_LIMIT:
            raise ResultTooLarge(f"a stream that is asked for later may have {RESPONSE_LIMIT} bytes, and this has more")
        self._items.append(payload)
        now = self._plane.loop.time()
        if now - self._asked_at > _ASK_EVERY_S:
            self._asked_at = now
            if self._header.expired():
                # a stream may never end by itself, and nobody else may be left who knows of the deadline
                self._plane.post(functions.close(self._request, self._request_id, State.EXPIRED, b""), ignore)
            await self._emit(-1, b"")  # no item has this number: only asks

    def result(self) -> bytes:
        """The answer, as ``http.render.parse`` reads it."""
        status, headers = msgpack.unpackb(self._items[0])
        named = [header for header in headers if header[0].lower() != "content-length"]
        return msgpack.packb([status, named, b"".join(self._items[1:])])  # type: ignore[no-any-return]


def taker_of(plane: LoopPlane, keys: Keys, header: Header, method: str) -> Emitter:
    """What takes the items of one request's answer.

    Raises:
      TypeError: The caller did not ask for items, and has no use for them.
    """
    if header.stream:
        return Emitter(plane, keys, header)
    if header.answer is Answer.PLAIN:
        return Collector(plane, keys, header)
    raise stream_of_plain_call(method)


async def stream(
    emitter: Emitter, value: Any, header: Header, encode: Callable[[Any], bytes], in_thread: InThread
) -> None:
    """Send a generator's items, or what an ASGI response sends, in the form that the caller takes.

    Raises:
      ReaderGone: The request has ended.
    """
    if not is_generator(value):
        await stream_response(emitter, value)
    elif answers_http(header):
        await stream_body(emitter, value, in_thread)
    else:
        await stream_values(emitter, value, encode, in_thread)


async def stream_values(emitter: Emitter, generator: Any, encode: Callable[[Any], bytes], in_thread: InThread) -> None:
    """Send what a generator yields, as values for a caller in Python."""
    async with aclosing(_items_of(generator, in_thread)) as items:
        async for item in items:
            await emitter.send(encode(item))


async def stream_body(emitter: Emitter, generator: Any, in_thread: InThread) -> None:
    """Send what a generator yields as the body of an HTTP response; str and bytes only."""
    await emitter.send(_TEXT_HEAD)
    async with aclosing(_items_of(generator, in_thread)) as items:
        async for item in items:
            if not isinstance(item, str | bytes):
                kind = type(item).__name__
                raise ResultNotSerialisable(f"a generator that answers HTTP must yield str or bytes, not {kind!r}")
            await emitter.send(item.encode() if isinstance(item, str) else item)


async def stream_response(emitter: Emitter, response: Any) -> None:
    """Run an ASGI response and send what it sends."""

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in message["headers"]]
            await emitter.send(msgpack.packb([message["status"], headers]))
        elif message.get("body"):
            await emitter.send(bytes(message["body"]))

    async def receive() -> Any:
        return await asyncio.get_running_loop().create_future()

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "method": "GET", "path": "/", "headers": []}
    try:
        await response(scope, receive, send)
    except Exception as error:
        # frameworks turn a refused send into an error of their own
        if emitter.is_over and not isinstance(error, ReaderGone):
            raise ReaderGone(str(error)) from error
        raise


async def _items_of(generator: Any, in_thread: InThread) -> AsyncGenerator[Any, None]:
    """Iterate any generator; a sync one runs in the thread of sync code, item by item."""
    if inspect.isasyncgen(generator):
        try:
            async for item in generator:
                yield item
        finally:
            await generator.aclose()
        return
    try:
        while (item := await in_thread(lambda: next(generator, _END))) is not _END:
            yield item
    finally:
        generator.close()


def answers_http(header: Header) -> bool:
    """Whether the result goes to a gateway."""
    return header.answer is not Answer.VALUE
