"""Results that come as items: what a generator yields leaves at once, at the pace of its reader."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Protocol

import msgpack

from qserve.base.log import get_logger
from qserve.exceptions import PayloadError, ResultNotSerialisable
from qserve.http.render import head_of, to_json
from qserve.http.websocket import Wire
from qserve.wire.envelope import Answer, Header

log: Final = get_logger(__name__)

_END: Any = object()
_SLICE_S, _AHEAD = 0.002, 3
"""How long the thread of sync code goes on with one generator before it looks for other work, and how many items it
takes at most while their reader has no room."""
_TEXT_HEADERS = [["content-type", "text/plain; charset=utf-8"]]
_LINES_HEADERS = [["content-type", "application/x-ndjson"]]
_TEXTS = str | bytes | bytearray | memoryview

InThread = Callable[[Callable[[], Any]], asyncio.Future[Any]]
More = Callable[[], list[list[str]]]
"""Returns headers that are added to a response when its head is sent."""


class ReaderGone(OSError):
    """Raised in a producer whose request has ended; an OSError is what ASGI responses expect."""


class Sink(Protocol):
    """Takes the items of one streamed result."""

    @property
    def room(self) -> int:
        """How many items may be sent at once, as far as that is known."""

    async def send(self, payload: bytes) -> None:
        """Send one item, and wait while the reader is too far behind.

        Raises:
          ReaderGone: The request has ended: cancelled, expired, or its client left.
        """

    def flush(self) -> None:
        """Send now what may have been gathered."""

    async def settled(self) -> None:
        """Wait until all items have been taken in; raises as ``send``."""

    def result(self) -> bytes:
        """Return what remains to be stored at the end."""


class SessionSink(Wire, Protocol):
    """A ``Wire`` that belongs to a call."""

    def result(self) -> bytes:
        """Return what remains to be stored at the end."""

    def close(self) -> None:
        """Carry nothing any more."""


async def send_stream(
    sink: Sink, value: Any, header: Header, encode: Callable[[Any], bytes], in_thread: InThread, more: More = list
) -> None:
    """Send a generator's items, or what an ASGI response sends, in the form that the caller takes.

    Parameters:
      encode: Encodes an item for a caller in Python.
      in_thread: Runs a call in the thread of sync code.
      more: Returns the headers of a response that are added when its head is sent.

    Raises:
      ReaderGone: The request has ended.
    """
    try:
        if inspect.isgenerator(value) or inspect.isasyncgen(value):
            await _send_items(sink, value, header, encode, in_thread, more)
        else:
            await _send_response(sink, value, more)
        await sink.settled()
    finally:
        sink.flush()  # what was yielded before an error comes before it


async def _send_items(
    sink: Sink, value: Any, header: Header, encode: Callable[[Any], bytes], in_thread: InThread, more: More
) -> None:
    headers = None if header.answer is Answer.VALUE else _TEXT_HEADERS
    async with aclosing(_items(value, sink, in_thread)) as items:
        async for item in items:
            if headers is not None:
                is_text = header.answer is Answer.PLAIN or isinstance(item, _TEXTS)
                headers, encode = (_TEXT_HEADERS, _body_part) if is_text else (_LINES_HEADERS, _line)
            payload = encode(item)
            if headers is not None:  # not earlier: until then a failure has its own answer
                await sink.send(_head(200, headers, more))
                headers = None
            await sink.send(payload)
    if headers is not None:
        await sink.send(_head(200, headers, more))


def _head(status: int, headers: list[list[str]], more: More) -> bytes:
    packed: bytes = msgpack.packb([status, [*headers, *more()]])
    return packed


def _line(item: Any) -> bytes:
    try:
        return to_json(item) + b"\n"
    except PayloadError as error:
        raise ResultNotSerialisable(str(error)) from error


def _body_part(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    kind = type(item).__qualname__
    raise ResultNotSerialisable(f"a generator that answers HTTP must yield str or bytes, not {kind!r}")


async def _items(generator: Any, sink: Sink, in_thread: InThread) -> AsyncGenerator[Any, None]:
    """Iterate any generator; a sync one runs in the thread of sync code."""
    if inspect.isasyncgen(generator):
        async with aclosing(generator):
            async for item in generator:
                yield item
        return
    pulled = _Pulled(generator)
    try:
        while not pulled.is_over:
            pulling = in_thread(partial(pulled.pull, max(_AHEAD, sink.room)))
            # after its request has ended nobody asks for what the generator raises
            pulling.add_done_callback(lambda done: done.cancelled() or done.exception())
            while not pulling.done() or pulled.items:
                if not pulled.items:
                    await asyncio.wait((pulling, pulled.wait()), return_when=asyncio.FIRST_COMPLETED)
                while pulled.items:
                    if (item := pulled.items.popleft()) is _END:
                        return
                    yield item
            pulling.result()  # what the generator has raised comes after its items
    finally:
        pulled.is_over = True
        await in_thread(generator.close)  # after the item that the thread may be at


class _Pulled:
    """The items that the thread of sync code has taken from a generator, and that have not been sent.

    To hand each of them over alone takes longer than to make a short one. So the thread goes on as long as items come
    fast, and the loop sends those that are there at once.
    """

    def __init__(self, generator: Any) -> None:
        self.items: deque[Any] = deque()
        self.is_over = False
        self._generator = generator
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None

    def wait(self) -> asyncio.Future[None]:
        """Return what is done once there are items; on the loop."""
        waiting = self._waiting = self._loop.create_future()
        if self.items:  # they came meanwhile
            self._tell()
        return waiting

    def pull(self, most: int) -> None:
        """Take items until there are enough, or they come slowly; in the thread."""
        until, told = time.monotonic() + _SLICE_S, None
        for _ in range(most):
            item = next(self._generator, _END)
            self.items.append(item)
            waiting = self._waiting
            if waiting is not None and waiting is not told:
                told = waiting
                self._loop.call_soon_threadsafe(self._tell)
            if item is _END or self.is_over or time.monotonic() > until:
                return

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


async def _send_response(sink: Sink, response: Any, more: More) -> None:
    sender = _Sender(sink, more)

    async def receive() -> Any:
        return await asyncio.get_running_loop().create_future()

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "method": "GET", "path": "/", "headers": []}
    try:
        await response(scope, receive, sender.send)
    except Exception as error:
        # frameworks turn a refused send into their own error
        if sender.is_over and not isinstance(error, ReaderGone):
            raise ReaderGone(str(error)) from error
        if not sender.is_complete:
            raise
        log.error("a response was sent, and its background task failed: %r", error, exc_info=error)
    if not sender.is_complete:
        raise ResultNotSerialisable(f"a response of type {type(response).__qualname__!r} ended before its body did")


class _Sender:
    """ASGI's ``send`` for one response: the head leaves with the first part of the body.

    Until then a failure has its own answer.
    """

    def __init__(self, sink: Sink, more: More) -> None:
        self.is_over = self.is_complete = False
        self._sink, self._more = sink, more
        self._head = b""
        self._length: int | None = None
        self._sent = 0

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            status, named, self._length = head_of(message["status"], message.get("headers", ()))
            if self._length is not None:
                named.append(["content-length", str(self._length)])
            self._head = _head(status, named, self._more)
        elif message["type"] == "http.response.body":
            is_last = not message.get("more_body", False)
            part = self._checked(message.get("body", b""), is_last)
            try:
                for payload in (self._head, part):
                    if payload:
                        await self._sink.send(payload)
            except ReaderGone:
                self.is_over = True
                raise
            self._head, self.is_complete = b"", is_last

    def _checked(self, part: Any, is_last: bool) -> bytes:
        if not isinstance(part, bytes | bytearray | memoryview):
            raise ResultNotSerialisable(f"the body of a response must be bytes, not {type(part).__qualname__!r}")
        self._sent += len(part)
        length, sent = self._length, self._sent
        if length is not None and (sent > length or (is_last and sent < length)):
            than = "longer" if sent > length else "shorter"
            raise ResultNotSerialisable(f"the body of a response is {than} than its content-length of {length} bytes")
        return bytes(part)
