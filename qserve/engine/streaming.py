"""Results that come as items: what a generator yields leaves at once, at the pace of its reader."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import msgpack

from qserve.exceptions import ResultNotSerialisable
from qserve.wire.envelope import Answer, Header

_END: Any = object()
_TEXT_HEAD: bytes = msgpack.packb([200, [["content-type", "text/plain; charset=utf-8"]]])

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class ReaderGone(OSError):
    """Raised in a producer whose request has ended; an OSError is what ASGI responses expect."""


class Sink(Protocol):
    """What takes the items of one streamed result."""

    async def send(self, payload: bytes) -> None:
        """Send one item, and wait while the reader is too far behind.

        Raises:
          ReaderGone: The request has ended: cancelled, expired, or its client left.
        """

    def result(self) -> bytes:
        """Return what remains to be stored at the end."""


async def send_stream(
    sink: Sink, value: Any, header: Header, encode: Callable[[Any], bytes], in_thread: InThread
) -> None:
    """Send a generator's items, or what an ASGI response sends, in the form that the caller takes.

    Parameters:
      encode: Encodes an item for a caller in Python.
      in_thread: Runs a call in the thread of sync code.

    Raises:
      ReaderGone: The request has ended.
    """
    if not (inspect.isgenerator(value) or inspect.isasyncgen(value)):
        await _send_response(sink, value)
        return
    if header.answer is not Answer.VALUE:
        await sink.send(_TEXT_HEAD)
        encode = _body_part
    async with aclosing(_items(value, in_thread)) as items:
        async for item in items:
            await sink.send(encode(item))


def _body_part(item: Any) -> bytes:
    if not isinstance(item, str | bytes):
        kind = type(item).__name__
        raise ResultNotSerialisable(f"a generator that answers HTTP must yield str or bytes, not {kind!r}")
    return item.encode() if isinstance(item, str) else item


async def _items(generator: Any, in_thread: InThread) -> AsyncGenerator[Any, None]:
    """Iterate any generator; a sync one runs in the thread of sync code, item by item."""
    if inspect.isasyncgen(generator):
        async with aclosing(generator):
            async for item in generator:
                yield item
        return
    try:
        while (item := await in_thread(lambda: next(generator, _END))) is not _END:
            yield item
    finally:
        await in_thread(generator.close)  # after the item that the thread may be at


async def _send_response(sink: Sink, response: Any) -> None:
    is_over = False

    async def send(message: Any) -> None:
        nonlocal is_over
        payload = message.get("body")
        if message["type"] == "http.response.start":
            headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in message["headers"]]
            payload = msgpack.packb([message["status"], headers])
        if payload:
            try:
                await sink.send(bytes(payload))
            except ReaderGone:
                is_over = True
                raise

    async def receive() -> Any:
        return await asyncio.get_running_loop().create_future()

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "method": "GET", "path": "/", "headers": []}
    try:
        await response(scope, receive, send)
    except Exception as error:
        # frameworks turn a refused send into an error of their own
        if is_over and not isinstance(error, ReaderGone):
            raise ReaderGone(str(error)) from error
        raise
