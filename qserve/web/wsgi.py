"""WSGI applications as ASGI applications: each request is called and iterated in one thread."""

from __future__ import annotations

import asyncio
import contextvars
import io
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from qserve.base.log import get_logger
from qserve.base.promise import for_future
from qserve.http.pieces import Piece, as_file
from qserve.web.asgi import short_length

log: Final = get_logger(__name__)
_THREADS = 8
_SINGLE = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}

Environ = dict[str, Any]
WsgiApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


class WsgiAdapter:
    """Serves a WSGI application by ASGI; up to eight requests run at the same time."""

    def __init__(self, app: WsgiApp) -> None:
        self._app = app
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="wsgi")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; WSGI has no lifespan."""
        if scope["type"] != "http":
            return
        pieces: list[bytes] = []
        while (message := await receive())["type"] == "http.request":
            piece = message.get("body", b"")
            if not (pieces and isinstance(piece, Piece)):  # the first one of a stored body has the whole
                pieces.append(piece)
            if not message.get("more_body", False):
                break
        first = pieces[0] if pieces else b""
        body = first.whole if isinstance(first, Piece) else b"".join(pieces)
        loop = asyncio.get_running_loop()
        call, context = _Call(loop, send), contextvars.copy_context()
        await loop.run_in_executor(self._threads, context.run, for_future(call.run), self._app, environ_of(scope, body))


class _Call:
    """One call of the application, in its thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send) -> None:
        self._loop = loop
        self._send = send
        self._start: Message | None = None
        self._is_started = False

    def run(self, app: WsgiApp, environ: Environ) -> None:
        result = app(environ, self._start_response)
        try:
            if self._start is not None and short_length(self._start["headers"]) is not None:
                # one message, and one switch of threads
                self._write(b"".join(result), more=False)
            else:
                for chunk in result:
                    if chunk != b"":
                        self._write(chunk)
                self._write(b"", more=False)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                try:
                    close()
                except Exception as error:  # the response counts
                    log.error("the application failed at the end of its response: %r", error, exc_info=error)

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
        if exc_info and self._is_started:
            raise exc_info[1].with_traceback(exc_info[2])
        if self._start is not None and not exc_info:
            raise AssertionError("start_response was called twice, the second time without exc_info")
        encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        self._start = {"type": "http.response.start", "status": int(status.split(" ", 1)[0]), "headers": encoded}
        return self._write

    def _write(self, chunk: bytes, more: bool = True) -> None:
        if self._start is None:
            raise AssertionError("the application answered before it called start_response")
        if not isinstance(chunk, bytes):  # bytes(3) would be three zero bytes
            raise TypeError(f"the application sent {type(chunk).__qualname__!r} as a part of its body, not bytes")
        messages: list[Message] = [] if self._is_started else [self._start]
        messages.append({"type": "http.response.body", "body": chunk, "more_body": more})
        self._is_started = True
        asyncio.run_coroutine_threadsafe(self._send_all(messages), self._loop).result()

    async def _send_all(self, messages: list[Message]) -> None:
        for message in messages:
            await self._send(message)


def environ_of(scope: Scope, body: bytes | memoryview) -> Environ:
    """Return the WSGI environment (PEP 3333) of an ASGI request, whose path begins with its ``root_path``."""
    root_path = scope.get("root_path", "").rstrip("/")
    path = scope["path"]
    below = path[len(root_path) :] if path.startswith(root_path) else path
    host, port = scope.get("server") or ("localhost", None)
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": _as_wsgi(root_path),
        "PATH_INFO": _as_wsgi(below),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or (443 if scope.get("scheme") == "https" else 80)),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "REMOTE_ADDR": (scope.get("client") or ("",))[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": as_file(body) if isinstance(body, memoryview) else io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in scope.get("headers", ()):
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if "_" in name:
            continue  # WSGI could not tell it from the header with a hyphen
        key = _SINGLE.get(name) or f"HTTP_{name.upper().replace('-', '_')}"
        between = "; " if name == "cookie" else ","
        environ[key] = f"{environ[key]}{between}{value}" if key in environ else value
    if body or "CONTENT_LENGTH" in environ:
        environ["CONTENT_LENGTH"] = str(len(body))
    return environ


def _as_wsgi(path: str) -> str:
    # PEP 3333 passes bytes as str, one character each
    return path.encode().decode("latin-1")
