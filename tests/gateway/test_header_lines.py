"""The header lines that replicas get, from the bytes of a request on."""

from __future__ import annotations

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.parser import RequestParser
from qserve_gateway.request.access import AccessPolicy
from qserve_gateway.request.body import Limit, read_body
from qserve_gateway.request.environ import keep_header_lines, message_of, path_of


def lines_of(*fields: str, body: bytes = b"", token: str = "") -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body as a replica gets them."""
    config, client = Config(), ("127.0.0.1", 5)
    config.set("header_map", "dangerous")
    raw = "\r\n".join(["POST /path HTTP/1.1", *fields, "", ""]).encode("latin-1") + body
    request = next(RequestParser(config, iter([raw]), client))
    keep_header_lines(None, request)
    _, environ = wsgi.create(request, None, client, ("127.0.0.1", 80), config)
    AccessPolicy.from_env({"QSERVE_API_TOKEN": token}).check(environ)
    whole = read_body(environ, lambda size: None, Limit(1 << 20))
    message = message_of(environ, path_of(environ), "", whole, {})
    return [(name.decode(), value.decode("latin-1")) for name, value in message.headers], message.body


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["H: 1", "X: y", "h: 2"], [("h", "1"), ("x", "y"), ("h", "2")]),
        (["H: 1, 2", "H:", "H: \xe4"], [("h", "1, 2"), ("h", ""), ("h", "\xe4")]),
        (["Cookie: a=1", "X: y", "Cookie: b=2; c", "Cookie:"], [("cookie", "a=1; b=2; c"), ("x", "y")]),
        (["Cookie:", "Cookie: b=2"], [("cookie", "b=2")]),
        (["Connection: close", "Keep-Alive: 1", "TE: trailers", "Upgrade: h2c", "Proxy-Authorization: x"], []),
        (["Connection: keep-alive, X-A , x-b", "X-A: 1", "X-B: 2", "X-C: 3"], [("x-c", "3")]),
        (["Connection: X-A", "Connection: X-B", "X-A: 1", "X-B: 2"], []),
        (
            ["Connection: Host, Cookie, X-Forwarded-For, Content-Type", "Cookie: a=1", "Content-Type: b/c"],
            [("cookie", "a=1"), ("content-type", "b/c")],
        ),
        (["X_User: a", "SERVE_MULTIPLEXED_MODEL_ID: m"], [("serve-multiplexed-model-id", "m")]),
    ],
)  # fmt: skip
def test_lines_arrive_as_they_were_sent_without_those_of_the_connection(
    fields: list[str], expected: list[tuple[str, str]]
) -> None:
    lines, _ = lines_of("Host: here", *fields)
    assert lines == [("host", "here"), *expected]


@pytest.mark.parametrize(
    ("chunks", "body"),
    [(b"2\r\nab\r\n2;a=b\r\ncd\r\n0\r\n\r\n", b"abcd"), (b"1\r\na\r\n0\r\nX-T: 1\r\n\r\n", b"a"), (b"0\r\n\r\n", b"")],
)
def test_a_chunked_body_arrives_whole_with_its_length(chunks: bytes, body: bytes) -> None:
    lines, received = lines_of("Host: here", "Transfer-Encoding: chunked", "Trailer: X-T", body=chunks)
    assert (lines, received) == ([("host", "here"), ("content-length", str(len(body)))], body)


def test_the_token_of_the_gateway_stays_in_it() -> None:
    lines, _ = lines_of("Host: here", "Authorization: Bearer secret", "X: y", token="secret")
    assert lines == [("host", "here"), ("x", "y")]
