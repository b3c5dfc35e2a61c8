"""ASGI inside a replica: an application's start and end, and one request to it with its response.

A response that is finished at once becomes a plain response; a longer one becomes a ``StreamedResponse``, which passes
on what the application sends, at the pace of its reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Final, NoReturn

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qserve.base import afterwards
from qserve.base.forks import end_if_child
from qserve.base.log import get_logger
from qserve.exceptions import QserveException
from qserve.http.request import body_messages, read_body

log: Final = get_logger(__name__)
_AHEAD = 16
_WHOLE_UP_TO = 1 << 20
"""A body of known length up to this many bytes is collected; a longer one is streamed."""

_CANCEL_AFTER_S = 0.2
"""How long an application may take to notice that its client has left before it is cancelled."""
_ERROR_PAGE = b"Internal Server Error"
"""The page that starlette, and so FastAPI, sends for an exception that no handler of the application took."""
_TURNS = 50
"""How many turns of the loop an application has for an error after a response of unknown length."""
_RESPONSE = ("http.response.start", "http.response.body")
_END: Message = {"type": "qserve.end"}


class Lifespan:
    """Runs an application's startup and shutdown, in one task because its context managers need that.

    An application that does not support the lifespan protocol is served without.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self.app = app
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run the application's startup.

        Raises:
          QserveException: The application reports that it failed.
          Exception: Any error that its startup raised.
        """
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        task = asyncio.create_task(self._run(scope))
        self._task = task
        answer = await self._ask("lifespan.startup")
        if answer is None:
            self._task = None
            log.debug("the application is served without a lifespan: %r", task.exception())
        elif answer["type"] == "lifespan.startup.failed":
            self._task = None
            await task
            raise _failure("startup", answer)

    async def stop(self) -> None:
        """Run the application's shutdown, if it has started; raises as ``start`` does."""
        task, self._task = self._task, None
        if task is None:
            return
        answer = await self._ask("lifespan.shutdown")
        await task
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            raise _failure("shutdown", answer)

    async def _ask(self, event: str) -> Message | None:
        self._inbox.put_nowait({"type": event})
        answer = await self._outbox.get()
        return answer if answer["type"].startswith(event) else None

    async def _run(self, scope: Any) -> None:
        try:
            await self.app(scope, self._inbox.get, self._outbox.put)
        finally:
            self._outbox.put_nowait({"type": "lifespan.ended"})


def _failure(phase: str, answer: Message) -> QserveException:
    return QserveException(f"the application's {phase} failed: {answer.get('message') or 'it gave no reason'}")


class Exchange:
    """One request to an ASGI application.

    Parameters:
      state: The state that its lifespan gives to every request.
    """

    def __init__(self, app: ASGIApp, state: MutableMapping[str, Any]) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self._app = app
        self._state = state
        self._body: Iterator[Message] = iter(())
        self._messages: asyncio.Queue[Message] = asyncio.Queue(_AHEAD)
        self._left = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_complete = self._has_length = self._is_page = False
        self._status: Any = None
        self._error: BaseException | None = None

    async def answer(self, request: Request) -> Response:
        """Pass a request to the application, after reading its body to the end.

        Returns:
          A complete response, or a ``StreamedResponse`` while there is more to come.

        Raises:
          QserveException: The application ended without a response.
          BaseException: Any error that it raised before it sent anything but starlette's page for such errors.
        """
        self._body = body_messages(await read_body(request))
        scope = {**request.scope, "state": dict(self._state)}
        task = self._task = self.loop.create_task(self._run(scope))
        afterwards.keep(task)  # background tasks outlive their response
        try:
            return await self._first()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Tell the application that the client has disconnected, and cancel it, unless its response is complete."""
        if not self._is_complete and self._task is not None:
            self._task.cancel()
        self.leave()

    def leave(self) -> None:
        """Tell the application that the client has disconnected."""
        self._left.set()
        self._error = None  # its traceback refers to this exchange
        while not self._messages.empty():
            self._messages.get_nowait()

    async def _first(self) -> Response:
        start = await self.next_message()
        status, headers = start["status"], list(start.get("headers", ()))
        length = short_length(headers)
        chunks: list[bytes] = []
        more, size = True, 0
        while more:
            if size and size == length and not self._is_page:
                self._is_complete, self._error = True, None
                break
            message = await self.next_message()
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if more and length is None:
                return StreamedResponse(self, status, headers, chunks)
        response = Response(b"".join(chunks), status)
        response.raw_headers = headers
        return response

    async def next_message(self) -> Message:
        """Return the next message of the application; raises any error of it."""
        message = await self._messages.get()
        if message is _END:
            raise self._take_error()
        if not self._is_complete and message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._await_error()
        return message

    async def _await_error(self) -> None:
        """Raise the error that may follow the end of a response.

        starlette raises what its page for errors stands for, and its BaseHTTPMiddleware ends a stream that has failed
        as if it were whole before it raises.
        """
        assert self._task is not None
        for _ in range(_TURNS):
            if self._task.done():
                break
            await asyncio.sleep(0)
        self._is_complete = True
        if self._error is not None:
            raise self._take_error()

    def _take_error(self) -> BaseException:
        # its own function: a local variable of the frame that raises the error would make a cycle with it
        error, self._error = self._error, None
        return error or QserveException("the application ended before its response was complete")

    async def _run(self, scope: Scope) -> None:
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:
            end_if_child(error)
            if self._left.is_set():
                pass  # no caller waits for it
            elif not self._is_complete:
                self._error = error
            elif not isinstance(error, asyncio.CancelledError):
                # its response counts, as with any ASGI server
                log.error("the application failed after its response: %r", error, exc_info=error)
        await self._messages.put(_END)

    async def _receive(self) -> Message:
        message = next(self._body, None)
        if message is not None:
            return message
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._left.is_set():
            raise OSError("the client has disconnected")
        if self._is_complete or message["type"] not in _RESPONSE:
            return
        if (message["type"] == "http.response.start") is bool(self._status):
            raise TypeError("an application sends the start of its response once, and then its body")
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
        else:
            body = message.get("body", b"")
            if not isinstance(body, bytes | bytearray | memoryview):
                raise TypeError(f"the application sent {type(body).__qualname__!r} as a part of its body, not bytes")
            self._is_page = self._is_page or (self._status == 500 and body == _ERROR_PAGE)
            if not message.get("more_body", False):
                self._is_complete = self._has_length and not self._is_page
        await self._messages.put(message)


class StreamedResponse(Response):
    """A response whose body is still being sent. It has no ``body``, so the caller has to run it."""

    background = None

    def __init__(
        self, exchange: Exchange, status: int, headers: list[tuple[bytes, bytes]], chunks: list[bytes]
    ) -> None:
        self.status_code = status
        self.raw_headers = headers
        self._exchange = exchange
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send on what the application sends; a failing ``send`` disconnects it.

        Raises:
          QserveException: This is not the event loop that the application runs in.
        """
        exchange = self._exchange
        if asyncio.get_running_loop() is not exchange.loop:
            exchange.loop.call_soon_threadsafe(exchange.leave)
            raise QserveException(_ONLY_ROOT)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            more = True
            while more:
                message = await exchange.next_message()
                await send(message)
                more = message.get("more_body", False)
        except asyncio.CancelledError:
            exchange.cancel()
            raise
        except OSError:  # refused by `send`; an application that sends again learns of it by itself
            exchange.loop.call_later(_CANCEL_AFTER_S, exchange.cancel)
            raise
        finally:
            exchange.leave()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._exchange.leave()
        raise TypeError(_ONLY_ROOT)


_ONLY_ROOT = (
    "a streaming response of an @serve.ingress application can only go to an HTTP client. Make the class the root"
    " of the application: serve.run(Class.bind(...)), without a DAGDriver"
)


def short_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Return the length of a body that its headers declare to be short enough to be collected; otherwise None."""
    for name, value in headers:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value) if int(value) <= _WHOLE_UP_TO else None
    return None
