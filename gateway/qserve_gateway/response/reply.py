"""HTTP responses as WSGI applications: ``Reply`` is complete, ``StreamReply`` is still being produced."""

from __future__ import annotations

import contextlib
import select
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from http import HTTPStatus
from itertools import chain
from logging import INFO, WARNING
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import gevent
from gevent import monkey
from gunicorn.http.wsgi import Response
from gunicorn.util import http_date

from qserve.base.log import get_logger, of_request
from qserve.calls.items import ItemRef
from qserve.exceptions import DeadlineExceeded, GetTimeoutError, PayloadError, QserveException, RequestCancelled
from qserve.http.render import parse_apart, parse_head
from qserve.payloads.store import ValueStore
from qserve_gateway.request.environ import SMALL
from qserve_gateway.request.waiting import POLL_INTERVAL_S, is_disconnected

log = get_logger(__name__)

LINGER_S = 1.0
PIECE = 64 * 1024
PIECE_TIMEOUT_S = 15.0
"""How long a client may take to receive a piece of a large answer or of a stream before its connection ends."""
WITHOUT_BODY = frozenset((204, 304))
_socket: Any = monkey.get_original("socket", "socket")
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_STATUS_LINES[499] = "499 Client Closed Request"


def _status_line(status: int) -> str:
    return _STATUS_LINES.get(status) or f"{status} Status"


class OneWrite(Response):  # type: ignore[misc]
    """gunicorn's response, but head and body leave in one write where the body is a single piece.

    The second write took 10 us, most of it for waking the client, and the date 3 us, which changes once a second.
    """

    headers_sent: bool

    def write(self, arg: bytes) -> None:
        """Send a piece of the body, behind the head if that was not sent."""
        is_whole = type(arg) is bytes and 0 < len(arg) == self.response_length
        if self.headers_sent or self.upgrade or not is_whole or _omits_body(self.req.method, self.status_code):
            super().write(arg)
            return
        major, minor = self.req.version
        connection = "close" if self.should_close() else "keep-alive"
        head = f"HTTP/{major}.{minor} {self.status}\r\nServer: {self.version}\r\nDate: {_date(time.time() // 1)}\r\n"
        lines = "".join([f"{name}: {value}\r\n" for name, value in self.headers])
        self.headers_sent, self.sent = True, len(arg)
        whole = f"{head}Connection: {connection}\r\n{lines}\r\n".encode("latin-1") + arg
        sent = self.sock.send(whole)  # gevent's sendall first asks the kernel for the size of its buffer
        if sent < len(whole):
            self.sock.sendall(whole[sent:])


@lru_cache(maxsize=1)
def _date(second: float) -> str:
    return str(http_date(second))


def _omits_body(method: str, status: int) -> bool:
    return method == "HEAD" or status in WITHOUT_BODY


class Reply:
    """Status, headers and body, ready to be sent; a werkzeug response takes 25 us more.

    Parameters:
      headers: Names and values, without ``content-length``.
      close: End the connection afterwards, because the request's body was not read to its end.
    """

    __slots__ = ("body", "ends_connection", "headers", "status", "when_sent")

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes, close: bool = False) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.ends_connection = close
        self.when_sent: list[Callable[[], None]] = []

    @property
    def is_long(self) -> bool:
        """Whether a client can delay its end; a short one is handed to the kernel at once."""
        return len(self.body) > SMALL

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Send the response; this makes a reply a WSGI application."""
        method, body = environ["REQUEST_METHOD"], self.body
        is_head = method == "HEAD"
        declared = not body and any(name == "content-length" for name, _ in self.headers)
        if declared and not is_head:
            self.headers = [header for header in self.headers if header[0] != "content-length"]
        # one that has a body for GET only does not say how long that is
        if self.status not in WITHOUT_BODY and (body or not is_head):
            self.headers.append(("content-length", str(len(body))))
        if self.ends_connection:
            force_close(start_response)
        start_response(_status_line(self.status), self.headers)
        if _omits_body(method, self.status):
            body = b""
        sock = environ.get("gunicorn.socket")
        if self.when_sent:
            return Sending(paced(body, sock), self.when_sent)
        return lingering(body, sock) if self.ends_connection else [body]

    def as_whole(self, sock: Any) -> Iterator[bytes]:
        """Return the response as the last bytes of a connection, for a request that did not become one."""
        fields = [*self.headers, ("content-length", str(len(self.body))), ("connection", "close")]
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        yield from lingering(f"HTTP/1.1 {_status_line(self.status)}\r\n{head}\r\n".encode() + self.body, sock)

    def close(self) -> None:
        """Give up a response that could not be begun."""
        call_all(self.when_sent)


def call_when_sent(reply: Any, act: Callable[[], None]) -> None:
    """Call ``act`` when a reply is sent or given up: at once, unless it is one whose end a client can delay."""
    if getattr(reply, "is_long", False):
        reply.when_sent.append(act)
    else:
        act()


class StoredReply(Reply):
    """A response whose body is in the payload store, from which it is sent piece by piece.

    Parameters:
      pieces: The body, of which the first piece was read already, so that it is known to be there.
      kept: Is kept until the body is sent or given up, because the value goes with it.
    """

    __slots__ = ("_kept", "_length", "_pieces", "_request_id")
    is_long = True

    def __init__(
        self,
        status: int,
        headers: list[tuple[str, str]],
        length: int,
        pieces: Iterator[bytes],
        request_id: str,
        kept: Any,
    ) -> None:
        super().__init__(status, headers, b"")
        self._length, self._pieces, self._request_id, self._kept = length, pieces, request_id, kept

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Send the response; this makes it a WSGI application."""
        self.headers.append(("content-length", str(self._length)))
        if self.ends_connection:
            force_close(start_response)
        start_response(_status_line(self.status), self.headers)
        sock = environ.get("gunicorn.socket")
        pieces = paced(b"", sock) if _omits_body(environ["REQUEST_METHOD"], self.status) else self._sent(sock)
        return Sending(pieces, [self.close])

    def _sent(self, sock: Any) -> Iterator[bytes]:
        try:
            for piece in self._pieces:
                yield from paced(piece, sock)
        except QserveException as error:
            if sock is None:
                raise
            text = str(error).partition("\n")[0]
            log.warning("the response is cut off: %s", text, extra=of_request(self._request_id))
            shut_down(sock)  # it is shorter than its content-length says

    def close(self) -> None:
        """Let go of the value; the server calls this at the end, also when sending failed."""
        self._pieces, self._kept = iter(()), None
        super().close()


def result_reply(payload: bytes, request_id: str, store: ValueStore | None = None, kept: Any = None) -> Reply:
    """Return the response that a replica has written.

    Parameters:
      store: Where the body may be; None if it must not be stored.
      kept: See ``StoredReply``.

    Raises:
      PayloadError: The payload is not an HTTP response.
      ValueLost, ValueUnreachable, BrokerError, StoreUnavailable: Its body cannot be read.
    """
    (status, named, body), claim = parse_apart(payload)
    headers = [(name, value) for name, value in named]
    headers.append(("x-request-id", request_id))
    if claim is None:
        return Reply(status, headers, body)
    if store is None:
        raise PayloadError(f"the body of {claim.size} bytes is stored, and not here")
    pieces = store.pieces(claim)
    return StoredReply(status, headers, claim.size, chain([next(pieces)], pieces), request_id, kept)


class Sending:
    """A body on its way, and what is called when it is sent or given up; the server calls ``close`` in either case."""

    __slots__ = ("_pieces", "_when_sent")

    def __init__(self, pieces: Iterator[bytes], when_sent: list[Callable[[], None]]) -> None:
        self._pieces = pieces
        self._when_sent = when_sent

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        self._pieces.close()  # type: ignore[attr-defined]
        call_all(self._when_sent)


def paced(body: bytes, sock: Any) -> Iterator[bytes]:
    """Return a body in pieces, and end the connection of a client that takes too long for one of them."""
    for start in range(0, len(body), PIECE):
        # by a shutdown and not an exception: the server would try to send that as one more response
        watch = None if sock is None else gevent.get_hub().loop.timer(PIECE_TIMEOUT_S)
        try:
            if watch is not None:
                watch.start(shut_down, sock)
            yield body[start : start + PIECE]
        finally:
            if watch is not None:
                watch.close()


def call_all(callbacks: list[Callable[[], None]]) -> None:
    """Call each of them once."""
    while callbacks:
        callbacks.pop()()


def shut_down(sock: Any) -> None:
    """End a connection for those that wait for it or send to it as well."""
    # gevent's own shutdown raises an error in the greenlet that sends, which the server logs with its traceback
    with contextlib.suppress(OSError):
        original = _socket(fileno=sock.fileno())
        try:
            original.shutdown(2)
        finally:
            original.detach()


def force_close(start_response: Callable[..., Any]) -> None:
    """End the connection after this response."""
    # gunicorn ignores an application's `Connection` header and would read the rest of the body, however long, before
    # the next request; only its response object, whose method start_response is, can prevent that
    force = getattr(getattr(start_response, "__self__", None), "force_close", None)
    if force is not None:
        force()


def lingering(body: bytes, sock: Any) -> Iterator[bytes]:
    """Return a body and, once it is sent, discard for a moment what the client still sends.

    Closing a socket with unread data resets the connection, and the client would lose the response.
    """
    yield body
    if sock is None:
        return
    end = time.monotonic() + LINGER_S
    with contextlib.suppress(OSError, ValueError):
        sock.shutdown(1)
        while (left_s := end - time.monotonic()) > 0:
            if not select.select([sock], [], [], left_s)[0] or not sock.recv(65536):
                return


class StreamReply:
    """An HTTP response that is still being produced, as a WSGI application.

    Parameters:
      ref: The request. Its first item holds status and headers, the others are the body.
      end: When the body must be complete, in monotonic seconds.
      on_disconnect: Is called with the ref when the client has left before the end.
    """

    __slots__ = (
        "_end", "_is_framed", "_on_disconnect", "_ref", "_request_id", "_sock", "headers", "status", "when_sent",
    )  # fmt: skip
    is_long = True

    def __init__(self, ref: ItemRef, request_id: str, end: float, on_disconnect: Callable[[ItemRef], None]) -> None:
        first = ref.next_nowait()
        assert first is not None
        self.status, named = parse_head(first)
        self.headers = [(name, value) for name, value in named]
        self.headers.append(("x-request-id", request_id))
        self._ref = ref
        self._request_id = request_id
        self._is_framed = True
        self._on_disconnect = on_disconnect
        self._end = end
        self._sock: Any = None
        self.when_sent: list[Callable[[], None]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Send the response; this makes it a WSGI application."""
        self._sock = environ.get("gunicorn.socket")
        self._is_framed = environ.get("SERVER_PROTOCOL") != "HTTP/1.0"
        start_response(_status_line(self.status), self.headers)
        if _omits_body(environ["REQUEST_METHOD"], self.status):
            self.close()  # the server closes only a body that it has iterated
            return []
        return self

    def __iter__(self) -> Iterator[bytes]:
        try:
            while (item := self._next()) is not None:
                yield from paced(item, self._sock)
            self._ref.raise_for_end()
        except QserveException as error:
            if self._sock is None:
                raise
            level = INFO if isinstance(error, RequestCancelled) else WARNING
            text = str(error).partition("\n")[0]
            log.log(level, "the response is cut off: %s", text, extra=of_request(self._request_id))
            self._cut_off()

    def _cut_off(self) -> None:
        """End the connection so that the body does not seem to be complete; raising would log a second error."""
        if self._is_framed:
            shut_down(self._sock)  # the server cannot send the last chunk any more
        else:
            self._sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset

    def _next(self) -> bytes | None:
        """Return what has come, as one part of the body; an item that comes later is a part of its own."""
        part = self._wait()
        if part is None or not self._ref.items or len(part) >= PIECE:
            return part
        parts, size = [part], len(part)
        while size < PIECE and (part := self._ref.next_nowait()) is not None:
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def _wait(self) -> bytes | None:
        while True:
            left_s = self._end - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded("the response was not complete before the request's deadline")
            try:
                return self._ref.next(min(POLL_INTERVAL_S, left_s))
            except GetTimeoutError:
                if is_disconnected(self._sock):
                    raise RequestCancelled("the client closed the connection") from None

    def close(self) -> None:
        """Give up what is left of the request; the server calls this at the end, also when sending failed."""
        if not self._ref.done.is_set():
            self._on_disconnect(self._ref)
        call_all(self.when_sent)
