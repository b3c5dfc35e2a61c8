"""What we put in the place of parts of gunicorn does the same as they do."""

from __future__ import annotations

import time
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.parser import RequestParser
from qserve_gateway.request.body import Limit, read_body
from qserve_gateway.request.environ import ConnectedRequest
from qserve_gateway.response.reply import OneWrite, Reply
from qserve_gateway.server import read_settings_once


class Connection:
    """A client that has sent some pieces of bytes, and the writes that it receives.

    Parameters:
      room: How many bytes the kernel takes at a time.
    """

    def __init__(self, *sent: bytes, room: int = 1 << 20) -> None:
        self.sent = list(sent)
        self.room = room
        self.received: list[bytes] = []

    def recv(self, size: int) -> bytes:
        return self.sent.pop(0) if self.sent else b""

    def send(self, data: bytes) -> int:
        self.received.append(data[: self.room])
        return min(self.room, len(data))

    def sendall(self, data: bytes) -> None:
        self.received.append(data)


def parser_of(connection: Connection, client: str = "127.0.0.1") -> Any:
    config = Config()
    read_settings_once(config)
    parser = RequestParser(config, connection, (client, 5))
    parser.mesg_class = ConnectedRequest
    return parser


def environ_of(request: Any, connection: Connection) -> Any:
    return wsgi.create(request, connection, ("127.0.0.1", 5), ("127.0.0.1", 80), request.cfg)


@pytest.mark.parametrize("line", ["GET / HTTP/1.1", "GET / HTTP/1.0", "HEAD / HTTP/1.1"])
@pytest.mark.parametrize("field", ["X: y", "Connection: close", "Connection: keep-alive"])
@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, [("content-type", "text/plain"), ("x-a", " \xe4 "), ("x-a", "")], b"hello"),
        (200, [], b"x" * 70_000),
        (200, [("content-length", "5")], b""),
        (499, [("connection", "close"), ("upgrade", "h2c")], b"{}"),
        (204, [], b""),
        (204, [], b"x"),
        (304, [], b"x"),
        (404, [], b""),
    ],
)
def test_an_answer_has_the_bytes_that_gunicorn_would_send_in_one_write(
    monkeypatch: pytest.MonkeyPatch, line: str, field: str, status: int, headers: list[tuple[str, str]], body: bytes
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.5)
    received = []
    for kind in (wsgi.Response, OneWrite):
        connection = Connection(f"{line}\r\nHost: a\r\n{field}\r\n\r\n".encode())
        with monkeypatch.context() as patched:
            patched.setattr(wsgi, "Response", kind)
            response, environ = environ_of(next(parser_of(connection)), connection)
        for piece in Reply(status, list(headers), body)({**environ, "gunicorn.socket": None}, response.start_response):
            response.write(piece)
        response.close()
        received.append((b"".join(connection.received), response.should_close(), response.sent))
    assert received[0] == received[1]
    assert b"Date: Sun, 09 Sep 2001 01:46:40 GMT\r\n" in received[1][0]
    assert len(connection.received) == 1


def test_a_response_in_pieces_is_sent_as_gunicorn_sends_it() -> None:
    connection = Connection(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    response = OneWrite(next(parser := parser_of(connection)), connection, parser.cfg)
    response.start_response("200 OK", [("content-length", "4")])
    for piece in (b"ab", b"cdef", b"g"):
        response.write(piece)
    assert connection.received[0].endswith(b"\r\n\r\n")
    assert connection.received[1:] == [b"ab", b"cd"]


def test_an_answer_for_which_the_kernel_has_no_room_is_sent_to_its_end() -> None:
    connection = Connection(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", room=9)
    response = OneWrite(next(parser := parser_of(connection)), connection, parser.cfg)
    response.start_response("200 OK", [("content-length", "4")])
    response.write(b"abcd")
    assert connection.received[0] == b"HTTP/1.1 "
    assert connection.received[1].endswith(b"content-length: 4\r\n\r\nabcd")


@pytest.mark.parametrize(("client", "scheme"), [("127.0.0.1", "https"), ("::1", "https"), ("10.0.0.1", "http")])
def test_each_request_of_a_trusted_proxy_tells_the_scheme_and_none_of_others(client: str, scheme: str) -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n"
    parser = parser_of(Connection(request, request), client)
    assert [next(parser).scheme, next(parser).scheme] == [scheme, scheme]


@pytest.mark.parametrize(
    "pieces",
    [["ab", "cd", "GET"], ["abcdGET"], ["abcd", "GET"], ["", "abcdGET"], ["abc", "dGET"]],
    ids="-".join,
)
def test_a_body_is_whole_and_ends_where_the_next_request_begins(pieces: list[str]) -> None:
    first, *others = [piece.encode().replace(b"GET", b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n") for piece in pieces]
    connection = Connection(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n" + first, *others)
    parser = parser_of(connection)
    _, environ = environ_of(next(parser), connection)
    assert read_body(environ, lambda size: None, Limit(1 << 20)) == b"abcd"
    assert next(parser).path == "/next"


def test_settings_that_are_read_once_are_the_same() -> None:
    config, once = Config(), Config()
    config.set("keepalive", 7)
    once.set("keepalive", 7)
    read_settings_once(once)
    for name in config.settings:
        assert getattr(once, name) == getattr(config, name), name
