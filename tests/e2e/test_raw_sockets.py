"""Requests that no client library sends, byte by byte, to a real gateway.

The list of bad inputs, each row with the test that holds it. ``unit`` is tests/http/test_strict_json.py, ``http`` is
tests/e2e/test_http.py, ``gateway`` is tests/gateway/test_gateway.py; the others are here unless a file is named.
"code" means that the error's word is checked too.

    row      input                                   test
    B1-B10   no good JSON                            a_body_that_is_no_good_json (code); unit
    B11      any Content-Type                        gateway: taken, as Ray Serve takes it
    B12      Content-Encoding                        gateway (code)
    B13-B14  too long: declared, chunked             b13, b14 (code)
    B15-B17  cut off, malformed chunks               a_body_that_does_not_fit_its_frame (code)
    B18-B23  frames that can be read in two ways     a_frame_that_two_servers; their bodies smuggle nothing: b35
    B24-B26  long URI, no host, no HTTP              what_is_no_request
    B25      a host that is not served               b25, b32 (code)
    B27      methods                                 b27 (code, Allow)
    B28-B29  paths, ids, what the log makes of them  b28, b29 (code)
    B30-B31  Expect, fields with underscores         a_frame_that_two_servers; b31
    B32      a whole URI                             b32 (code)
    B33-B34  stalls: header, body, slow body         b33, b34 (code)
    B35      requests in one go                      b35, byte by byte
    B36      types, missing and unknown fields       tests/http/test_adapting.py (the place within the body); http
    B37      graphs that are none                    b37: none comes over HTTP, ``qserve deploy`` refuses it
    B38      deadlines                               gateway (code)
    B39      idempotency keys                        tests/e2e/test_http_jobs.py
    B40      web pages of other hosts                tests/gateway/test_guard.py (code)
    B41      too many requests                       b41 (code, Retry-After)
    B42      a broker in trouble                     b42 (code, Retry-After)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from processes import PATIENCE_S, READY, Process, Site, free_port, is_alive, is_open, new_site, wait_until

from qserve.broker.connection import connect
from qserve.machine.embedded_broker import find_server

pytestmark = pytest.mark.slow
APP = """
import asyncio
import qserve
from qserve import DAGDriver, InputNode
from qserve.http_adapters import json_request

@qserve.deployment
def same(value):
    return value

@qserve.deployment
class Plain:
    async def __call__(self, request):
        if request.url.path.endswith("/hold"):
            await asyncio.sleep(1)
        if request.url.path.endswith("/large"):
            return "x" * (9 * 1024 * 1024)
        return {"names": sorted(request.headers), "body": len(await request.body()), "path": request.url.path}

with InputNode() as value:
    app = DAGDriver.bind({"/json": same.bind(value)}, http_adapter=json_request)

plain = Plain.bind()
"""

SMALL = """
from qserve_gateway.__main__ import main
from qserve_gateway.request import body, waiting
from qserve_gateway.response import reply
body.BODY_TIMEOUT_S = 0.5
waiting.IN_FLIGHT_LIMIT = 1
reply.PIECE_TIMEOUT_S = 0.5
main()
"""
"""The same gateway with limits that a test can reach."""
GUARDED = """
from qserve_gateway.__main__ import main
from qserve_gateway.request import body
(first, _), *rest = body._PACE
body._PACE = ((first, 0.5), *rest)
main()
"""
"""The same gateway with a token, and slow bodies looked at after half a second instead of five."""

MIB = 1024 * 1024


class Answer(NamedTuple):
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error that it tells, once it has the form of all errors."""
        assert self.headers["content-type"] == "application/json", self
        assert self.headers["x-content-type-options"] == "nosniff"
        assert self.headers["cache-control"] == "no-store"
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert error["request_id"] == self.headers["x-request-id"]
        return error


class Place:
    """A gateway, a broker and two applications.

    Parameters:
      site: Where they are started.
      options: Passed to ``qserve run``.
    """

    def __init__(self, site: Site, *options: str) -> None:
        self.site = site
        self.port = free_port()
        site.write("rows.py", APP)
        self._env = {"QSERVE_SECRET_KEY": "the-key-of-this-test"}
        run = site.qserve("run", "rows:app", "--port", str(self.port), *options, env=self._env)
        run.wait_for(READY)
        sockets = [site.folder / folder / "broker.sock" for folder in site.broker_folders()]
        embedded = [f"unix://{path}" for path in sockets if path.exists()]
        self._env["QSERVE_BROKER_URL"] = self.broker_url = embedded[0] if embedded else options[-1]
        deploy = self.deploy("rows:plain", "--name", "plain", "--route-prefix", "/plain")
        assert deploy.wait() == 0, deploy.output
        wait_until(lambda: self.ask("GET /plain HTTP/1.1").status == 200, description="the applications answer")

    def deploy(self, target: str, *options: str) -> Process:
        """Start ``qserve deploy``."""
        return self.site.qserve("deploy", target, *options, env=self._env)

    def gateway(self, source: str, *options: str, **env: str) -> tuple[int, Process]:
        """Start one more gateway, and answer its port once it serves."""
        port = free_port()
        command = [sys.executable, "-c", source, "--port", str(port), *options]
        process = self.site.start(command, env={**self._env, **env})
        wait_until(lambda: is_open(port), description="the gateway listens")
        health = "GET /-/healthz HTTP/1.1"
        wait_until(lambda: self.ask(health, port=port).status == 200, description="it knows the applications")
        return port, process

    def ask(self, line: str, *fields: str, body: bytes = b"", port: int = 0) -> Answer:
        """Send one request with these header fields; exactly one answer comes before the connection ends."""
        head = "\r\n".join([line, "Host: localhost", "Connection: close", *fields, "", ""])
        (answer,) = exchange(port or self.port, head.encode("latin-1") + body)
        return answer

    def post(self, body: bytes, *fields: str) -> Answer:
        """Send a body of the right length."""
        return self.ask("POST /json HTTP/1.1", f"Content-Length: {len(body)}", *fields, body=body)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with new_site() as site:
        yield Place(site)


@pytest.fixture(scope="module")
def small(place: Place) -> Iterator[tuple[int, Process]]:
    yield place.gateway(SMALL, "--access-log", QSERVE_ALLOWED_HOSTS="localhost, Shop.Example")


@pytest.fixture(scope="module")
def guarded(place: Place) -> Iterator[tuple[int, Process]]:
    yield place.gateway(GUARDED, QSERVE_API_TOKEN="s3cret")


def exchange(port: int, data: bytes, *, finish: bool = False) -> list[Answer]:
    """Send bytes, and read all answers up to the end of the connection.

    Parameters:
      port: The gateway's.
      data: What is sent.
      finish: Whether to end our side of the connection after it.

    Raises:
      AssertionError: The other side did not say that it ends the connection: it was ended because it was idle.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        sock.sendall(data)
        if finish:
            sock.shutdown(socket.SHUT_WR)
        answers = answers_of(read_to_end(sock))
    assert not answers or answers[-1].headers["connection"] == "close", answers[-1]
    return answers


def read_to_end(sock: socket.socket, within_s: float = PATIENCE_S) -> bytes:
    end, received = time.monotonic() + within_s, b""
    while (left_s := end - time.monotonic()) > 0:
        sock.settimeout(left_s)
        try:
            piece = sock.recv(65536)
        except TimeoutError:
            break
        if not piece:
            return received
        received += piece
    raise AssertionError(f"the connection was not ended within {within_s:g} s; received: {received!r}")


def answers_of(received: bytes) -> list[Answer]:
    """Read responses; every byte has to belong to one."""
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        length = int(headers["content-length"])
        assert status.startswith("HTTP/1.1 "), received
        assert len(rest) >= length
        answers.append(Answer(int(status.split()[1]), headers, rest[:length]))
        received = rest[length:]
    return answers


def refused(port: int, data: bytes, finish: bool = False) -> Answer:
    """The one answer to a request after which the connection must end by itself."""
    (answer,) = exchange(port, data, finish=finish)
    return answer


# -- bodies that are no good JSON ------------------------------------------------------------------

_JSON_ROWS = {
    "B5 too deep": (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
    "a million and one values": (b"[" + b"1," * 1_000_000 + b"1]", "too_many_items"),
}


@pytest.mark.parametrize("row", _JSON_ROWS)
def test_a_body_that_is_no_good_json_is_refused_with_a_word_for_it(place: Place, row: str) -> None:
    body, code = _JSON_ROWS[row]
    answer = place.post(body)
    assert (answer.status, answer.error["code"], answer.error["retryable"]) == (400, code, False)


# -- bodies that do not fit their frame ------------------------------------------------------------

_HEAD = b"POST /json HTTP/1.1\r\nHost: localhost\r\n"


def test_b13_a_body_that_says_it_is_too_long_is_not_read(place: Place) -> None:
    answer = refused(place.port, _HEAD + b"Content-Length: %d\r\n\r\n" % (12 * MIB))
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"


def test_b14_a_chunked_body_that_grows_too_long_is_refused_and_not_cut(place: Place) -> None:
    piece = b"%x\r\n" % MIB + b"1" * MIB + b"\r\n"
    with socket.create_connection(("127.0.0.1", place.port), timeout=PATIENCE_S) as sock:
        sock.sendall(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            sock.sendall(piece)
        (answer,) = answers_of(read_to_end(sock, 5))
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")


_CUT_ROWS = {
    "B15 shorter than it says": (b"Content-Length: 100\r\n\r\n{}", "incomplete_body"),
    "B16 chunks without an end": (b"Transfer-Encoding: chunked\r\n\r\n5\r\n[1", "incomplete_body"),
    "B17 chunk of size ZZ": (b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n", "invalid_chunk"),
}


@pytest.mark.parametrize("row", _CUT_ROWS)
def test_a_body_that_does_not_fit_its_frame_is_refused(place: Place, row: str) -> None:
    rest, code = _CUT_ROWS[row]
    answer = refused(place.port, _HEAD + rest, finish=not row.startswith("B17"))
    assert (answer.status, answer.error["code"]) in {(400, code), (400, "invalid_chunk")}


_CHUNKS = b"\r\n2\r\n{}\r\n0\r\n\r\n"
_FRAME_ROWS = {
    "B18 length and chunks": (400, b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n" + _CHUNKS),
    "B18 length twice, the same": (400, b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}"),
    "B18 two lengths": (400, b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
    "B18 length -1": (400, b"Content-Length: -1\r\n\r\n{}"),
    "B18 length +2": (400, b"Content-Length: +2\r\n\r\n{}"),
    "B19 xchunked": (501, b"Transfer-Encoding: xchunked\r\n" + _CHUNKS),
    "B20 chunked, identity": (400, b"Transfer-Encoding: chunked, identity\r\n" + _CHUNKS),
    "B21 gzip, chunked": (501, b"Transfer-Encoding: gzip, chunked\r\n" + _CHUNKS),
    "B22 folded": (400, b"X-A: a\r\n b\r\nContent-Length: 2\r\n\r\n{}"),
    "B22 space before colon": (400, b"X-A : a\r\nContent-Length: 2\r\n\r\n{}"),
    "B22 NUL in a value": (400, b"X-A: a\0b\r\nContent-Length: 2\r\n\r\n{}"),
    "B22 bare LF": (400, b"X-A: a\nContent-Length: 2\r\n\r\n{}"),
    "B23 101 fields": (431, b"".join(b"X-%d: a\r\n" % number for number in range(101)) + b"\r\n"),
    "B23 field of 9 kB": (431, b"X-A: " + b"a" * 9000 + b"\r\n\r\n"),
    "B25 two hosts": (400, b"Host: other\r\nContent-Length: 2\r\n\r\n{}"),
    "B30 expects what is not known": (417, b"Expect: foo\r\nContent-Length: 2\r\n\r\n{}"),
    "length in hexadecimal": (400, b"Content-Length: 0x2\r\n\r\n{}"),
    "length with an underscore": (400, b"Content-Length: 1_0\r\n\r\n{}"),
    "length in Arabic digits": (400, "Content-Length: \u0662\r\n\r\n{}".encode()),
    "two lengths in one": (400, b"Content-Length: 2, 2\r\n\r\n{}"),
    "length of 5,000 digits": (400, b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}"),
    "length with a sign in a list": (400, b"Content-Length: 2\r\nContent-Length: +2\r\n\r\n{}"),
    "chunked twice": (400, b"Transfer-Encoding: chunked, chunked\r\n" + _CHUNKS),
    "chunked in two lines": (400, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + _CHUNKS),
    "chunked, then another": (400, b"Transfer-Encoding: chunked, gzip\r\n" + _CHUNKS),
    "identity": (400, b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}"),
    "no coding": (501, b"Transfer-Encoding:\r\n" + _CHUNKS),
    "chunked in quotes": (501, b'Transfer-Encoding: "chunked"\r\n' + _CHUNKS),
    "chunked with a vertical tab": (400, b"Transfer-Encoding: \x0bchunked\r\n" + _CHUNKS),
    "field without a colon": (400, b"X-A\r\nContent-Length: 2\r\n\r\n{}"),
    "field without a name": (400, b": a\r\nContent-Length: 2\r\n\r\n{}"),
    "field with a name that is not ASCII": (400, "X-\xe4: a\r\nContent-Length: 2\r\n\r\n{}".encode("latin-1")),
    "bare CR in a value": (400, b"X-A: a\rb\r\nContent-Length: 2\r\n\r\n{}"),
    "DEL in a value": (400, b"X-A: a\x7fb\r\nContent-Length: 2\r\n\r\n{}"),
    "folded with a tab": (400, b"X-A: a\r\n\tb\r\nContent-Length: 2\r\n\r\n{}"),
    "two types": (400, b"Content-Type: a/b\r\nContent-Type: c/d\r\nContent-Length: 2\r\n\r\n{}"),
    "websocket": (400, b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n"),
}
_CHUNK_ROWS = {
    "size -1": b"-1\r\n{}\r\n0\r\n\r\n",
    "size 0x2": b"0x2\r\n{}\r\n0\r\n\r\n",
    "size with a space before": b" 2\r\n{}\r\n0\r\n\r\n",
    "no size": b"\r\n{}\r\n0\r\n\r\n",
    "size ended by LF": b"2\n{}\r\n0\r\n\r\n",
    "chunk longer than its size": b"1\r\n{}\r\n0\r\n\r\n",
    "extension with a bare CR": b"2;a\rb\r\n{}\r\n0\r\n\r\n",
    "extension with a NUL": b"2;a=\0\r\n{}\r\n0\r\n\r\n",
    "trailer with a length": b"2\r\n{}\r\n0\r\nContent-Length: 2\r\n\r\n",
    "trailer without a colon": b"2\r\n{}\r\n0\r\nX-A\r\n\r\n",
    "trailer with an LF": b"2\r\n{}\r\n0\r\nX-A: a\nX-B: b\r\n\r\n",
}


def check_shape(answer: Answer, status: int) -> None:
    """Check that an answer has the form of all errors, and ends its connection."""
    assert (answer.status, answer.error["retryable"], answer.headers["connection"]) == (status, False, "close")


@pytest.mark.parametrize("path", ["/json", "/plain", "/nowhere", "/-/healthz"])
@pytest.mark.parametrize("row", _CHUNK_ROWS)
def test_a_body_in_broken_chunks_has_one_answer(place: Place, row: str, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    status = {"/json": 400, "/plain": 400, "/nowhere": 404, "/-/healthz": 405}[path]
    check_shape(refused(place.port, head + _CHUNK_ROWS[row]), status)


@pytest.mark.parametrize("row", _FRAME_ROWS)
def test_a_frame_that_two_servers_could_read_differently_is_refused(place: Place, row: str) -> None:
    status, rest = _FRAME_ROWS[row]
    check_shape(refused(place.port, _HEAD + rest), status)


_LINE_ROWS = {
    "B20 chunks in HTTP/1.0": (
        400,
        b"POST /json HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n" + _CHUNKS,
    ),
    "B24 URI of 5 kB": (414, b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "B25 no host": (400, b"POST /json HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"),
    "B26 HTTP/0.9": (400, b"GET /json\r\n\r\n"),
    "B26 HTTP/3.7": (400, b"GET /json HTTP/3.7\r\nHost: localhost\r\n\r\n"),
    "B26 method in small letters": (400, b"get /json HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "B26 method of 30 letters": (400, b"A" * 30 + b" /json HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "B26 TLS": (400, b"\x16\x03\x01" + struct.pack(">H", 200) + b"\x01\x00\x00\xc4\x03\x03" + b"\r\n" * 99),
    "B26 noise": (400, bytes(range(128, 256)) + b"\r\n\r\n"),
    "no target": (400, b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "two spaces": (400, b"GET /json  HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "a tab": (400, b"GET\t/json\tHTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "NUL in the target": (400, b"GET /js\0on HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "a target that is not ASCII": (400, "GET /\xe4 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1")),
    "a page of HTML as target": (404, b"GET /<script>alert(1)</script> HTTP/1.1\r\nHost: localhost\r\n"
                                      b"Connection: close\r\n\r\n"),
    "HTML as method": (400, b"<B> /json HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "an address without brackets": (400, b"GET http://[::1/json HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "the preface of HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a proxy's line": (400, b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "header fields of 900 kB": (431, b"GET /json HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: a\r\n" * 100_000 + b"\r\n"),
    "an asterisk": (404, b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    "no host, but a whole URI": (400, b"GET http://localhost/json HTTP/1.1\r\n\r\n"),
    "a slash too many": (404, b"GET /-//healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("row", _LINE_ROWS)
def test_what_is_no_request_of_http_is_refused(place: Place, row: str) -> None:
    status, data = _LINE_ROWS[row]
    check_shape(refused(place.port, data), status)


# -- methods, paths, hosts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("TRACE /json HTTP/1.1", "GET, POST"),
        ("DELETE /json HTTP/1.1", "GET, POST"),
        ("CONNECT localhost:80 HTTP/1.1", "GET"),
        ("TRACE /plain HTTP/1.1", "GET"),
        ("POST /-/healthz HTTP/1.1", "GET"),
    ],
)
def test_b27_a_method_that_is_not_served_is_told_which_are(place: Place, line: str, allowed: str) -> None:
    answer = place.ask(line)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"].startswith(allowed)


@pytest.mark.parametrize(
    "path", ["/nowhere", "/json/..%2f..%2fetc%2fpasswd", "/-/..%2f..%2fetc%2fpasswd", "/%00", "/a%0d%0ab", "/%ff%zz"]
)
def test_b28_a_path_is_only_ever_looked_up(place: Place, path: str) -> None:
    answer = place.ask(f"GET {path} HTTP/1.1")
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert b"root:" not in answer.body


@pytest.mark.parametrize("given", ["a b", "a%0d%0ab", "x" * 129, "\xe4", "a\x01b", ""])
def test_b29_a_request_id_that_is_malformed_is_not_taken_up(place: Place, given: str) -> None:
    (answer,) = exchange(
        place.port,
        f"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-ID: {given}\r\n\r\n".encode(
            "latin-1"
        ),
    )
    if answer.status != 400:  # the server itself refuses control characters
        assert answer.status == 404
        assert answer.error["request_id"].isalnum()
        assert len(answer.error["request_id"]) == 32


def test_b29_what_a_path_holds_cannot_forge_a_line_of_the_log(place: Place, small: tuple[int, Process]) -> None:
    port, process = small
    place.ask("GET /a%0d%0aFORGED%1b%5b2J HTTP/1.1", port=port)
    wait_until(
        lambda: process.stderr.count(r"/a\r\nFORGED\x1b[2J 404") == 2, description="mistake and request are logged"
    )
    lines = [one for one in process.stderr.splitlines() if "FORGED" in one]
    assert all(r"/a\r\nFORGED\x1b[2J 404" in line for line in lines), lines


@pytest.mark.parametrize("text", ["..%2f..%2fetc%2fpasswd", "%0d%0aid", "a%00b", "%ff%zz", "1" * 4000])
def test_b28_b29_the_id_of_a_request_is_one_or_it_is_400(place: Place, small: tuple[int, Process], text: str) -> None:
    for method in ("GET", "DELETE"):
        answer = place.ask(f"{method} /-/requests/{text} HTTP/1.1", port=small[0])
        assert (answer.status, answer.error["code"]) == (400, "invalid_id")


def test_b29_what_an_id_holds_cannot_forge_a_line_of_the_log(place: Place, small: tuple[int, Process]) -> None:
    port, process = small

    def lines() -> list[str]:
        return [one for one in process.stderr.splitlines() if "FORGER" in one]

    def are_logged() -> bool:
        # more than once, because of mistakes of one code ten are logged in a second, and the tests above make as many
        place.ask("GET /-/requests/%0d%0aFORGER%1b%5b2J HTTP/1.1", port=port)
        return {"invalid_id" in line for line in lines()} == {True, False}

    wait_until(are_logged, description="mistake and request are logged")
    assert all(r"/-/requests/\r\nFORGER\x1b[2J 400" in line for line in lines()), lines()


def test_b31_a_field_that_could_pass_for_another_is_dropped(place: Place) -> None:
    answer = place.ask("GET /plain HTTP/1.1", "X_Forwarded_For: 1.2.3.4", "X-Kept: yes")
    names = json.loads(answer.body)["names"]
    assert "x-kept" in names
    assert not [name for name in names if "forwarded" in name]


@pytest.mark.parametrize(
    "target", ["http://evil/json", "http://evil/-/healthz", "http://evil", "HTTP://evil:8000/-/routes"]
)
def test_b32_a_request_for_another_server_is_not_answered_as_if_it_were_for_this_one(place: Place, target: str) -> None:
    answer = refused(place.port, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (answer.status, answer.error["code"]) == (421, "misdirected_request")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_b32_a_whole_uri_of_this_server_is_answered(place: Place, host: str) -> None:
    assert place.ask(f"GET http://{host}:{place.port}/-/healthz HTTP/1.1").status == 200


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("localhost:80", "/json", 400),
        ("SHOP.example", "/json", 400),
        ("evil.example", "/json", 421),
        ("shop.example.evil", "/json", 421),
        ("evil@shop.example:x", "/json", 421),
        ("127.0.0.1", "/json", 421),
        ("127.0.0.1", "/-/routes", 421),
        ("127.0.0.1", "/-/healthz", 200),
    ],
)
def test_b25_only_hosts_on_the_list_are_answered_when_there_is_one(
    small: tuple[int, Process], host: str, path: str, status: int
) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    (answer,) = exchange(small[0], head.encode())
    assert answer.status == status
    if status == 421:
        assert answer.error["code"] == "misdirected_request"


def test_a_request_without_the_token_is_refused_before_its_body_is_read(guarded: tuple[int, Process]) -> None:
    port, _ = guarded
    for path in ("json", "-/requests/" + "0" * 32):
        head = f"POST /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        for shown in ("", "Authorization: Bearer wrong\r\n"):
            answer = refused(port, f"{head}{shown}\r\n".encode())
            assert (answer.status, answer.error["code"]) == (401, "unauthorized")
    (answer,) = exchange(
        port, _HEAD + b"Connection: close\r\nAuthorization: Bearer s3cret\r\nContent-Length: 1\r\n\r\n1"
    )
    assert (answer.status, answer.body) == (200, b"1")


def test_a_connection_is_kept_after_a_refusal_that_left_nothing_unread(guarded: tuple[int, Process]) -> None:
    ask = b"GET /-/routes HTTP/1.1\r\nHost: localhost\r\n"
    first, second = exchange(guarded[0], ask + b"\r\n" + ask + b"Connection: close\r\n\r\n")
    assert (first.status, second.status) == (401, 401)


# -- clients that wait, hurry, or are too many -----------------------------------------------------


def test_b33_a_client_that_does_not_finish_its_header_is_dropped_without_an_answer(place: Place) -> None:
    with (
        socket.create_connection(("127.0.0.1", place.port)) as silent,
        socket.create_connection(("127.0.0.1", place.port)) as slow,
    ):
        slow.sendall(b"GET /json HTTP/1.1\r\nHo")
        assert read_to_end(silent) == read_to_end(slow) == b""


def test_a_gateway_that_is_told_to_end_answers_what_it_has_first(place: Place) -> None:
    port, gateway = place.gateway("from qserve_gateway.__main__ import main; main()")
    with (
        contextlib.closing(connect(place.broker_url)) as client,
        socket.create_connection(("127.0.0.1", port)) as held,
    ):
        held.sendall(b"GET /plain/hold HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        queues = "*:q:plain:*"
        wait_until(lambda: any(map(client.xlen, client.scan_iter(queues, _type="stream"))), description="it runs")
        gateway.signal(signal.SIGTERM)
        (answer,) = answers_of(read_to_end(held))
    assert answer.status == 200
    assert gateway.wait() == 0


@pytest.mark.parametrize("frame", [b"Content-Length: 9\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n9\r\n{"])
def test_b34_a_body_that_stalls_is_not_waited_for(small: tuple[int, Process], frame: bytes) -> None:
    answer = refused(small[0], _HEAD + frame)
    assert (answer.status, answer.error["code"]) == (408, "body_timeout")


@pytest.mark.parametrize("frame", [b"Content-Length: 9000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n2328\r\n"])
def test_b34_a_body_that_comes_drop_by_drop_is_not_waited_for(guarded: tuple[int, Process], frame: bytes) -> None:
    with socket.create_connection(("127.0.0.1", guarded[0]), timeout=0.1) as sock:
        sock.sendall(_HEAD + b"Authorization: Bearer s3cret\r\n" + frame)
        began, received = time.monotonic(), b""
        while not received and time.monotonic() - began < PATIENCE_S:
            sock.sendall(b"1")
            with contextlib.suppress(TimeoutError):
                received = sock.recv(65536)
        (answer,) = answers_of(received + read_to_end(sock))
    assert (answer.status, answer.error["code"]) == (408, "body_timeout")
    assert 0.4 < time.monotonic() - began < 9.0  # at ten seconds it would be looked at again


def test_b35_requests_in_one_go_are_answered_in_order_and_none_is_made_up(place: Place) -> None:
    inner = b"POST /json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n666666666"
    first = _HEAD + b"Content-Length: 1\r\n\r\n1"
    chunked = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n2\r\n0\r\n\r\n"
    hidden = b"POST /plain HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
    last = _HEAD + b"Connection: close\r\nContent-Length: 1\r\n\r\n3"

    answers = exchange(place.port, first + chunked + hidden + last)

    assert [answer.status for answer in answers] == [200] * 4
    assert [answers[index].body for index in (0, 1, 3)] == [b"1", b"2", b"3"]
    assert json.loads(answers[2].body)["body"] == len(inner)


def test_b35_what_follows_a_refused_frame_is_never_taken_for_a_request(place: Place) -> None:
    smuggled = b"0\r\n\r\n" + _HEAD + b"Content-Length: 1\r\n\r\n1"
    for frame in (
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n",
    ):
        (answer,) = exchange(place.port, _HEAD + frame + smuggled)
        assert answer.status in (400, 501)


@pytest.mark.parametrize("row", [row for row in _FRAME_ROWS if row[:3] not in ("B23", "B30")])
def test_b35_no_refused_frame_hides_a_request(place: Place, row: str) -> None:
    status, rest = _FRAME_ROWS[row]
    hidden = b"POST /json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n666666666"
    answer = refused(place.port, _HEAD + rest + hidden)
    assert answer.status == status
    assert b"666666666" not in answer.body


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("held = []\nnode = same.bind(held)\nheld.append(node)", "the graph has a cycle"),
        ("node = 'no graph'", "Expected a ClassNode, FunctionNode, or Application"),
        ("node = DAGDriver.bind({'/json': Nobody.bind()})", "NameError"),
    ],
    ids=["a cycle", "no node", "an unknown node"],
)
def test_b37_a_graph_that_is_none_is_refused_at_its_deploy_and_the_others_serve_on(
    place: Place, source: str, said: str
) -> None:
    place.site.write("broken.py", APP + source)
    deploy = place.deploy("broken:node", "--name", "broken")
    assert deploy.wait() == 1, deploy.output
    assert said in deploy.stderr.splitlines()[-1]
    assert place.post(b"1").status == 200


def test_b41_a_request_too_many_is_told_when_to_come_back(place: Place, small: tuple[int, Process]) -> None:
    port, _ = small
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as held:
        held.sendall(b"GET /plain/hold HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        many = wait_until(
            lambda: (answer := place.ask("GET /plain HTTP/1.1", port=port)).status == 503 and answer,
            description="the gateway is full",
        )
        health = place.ask("GET /-/healthz HTTP/1.1", port=port)
        (answer,) = answers_of(read_to_end(held))
    assert (many.error["code"], many.error["retryable"], many.headers["retry-after"]) == ("route_full", True, "1")
    assert (health.status, answer.status) == (200, 200)


def test_a_client_that_does_not_read_its_answer_loses_its_connection_and_its_place(
    place: Place, small: tuple[int, Process]
) -> None:
    port, _ = small
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as held:
        held.sendall(b"GET /plain/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: place.ask("GET /plain HTTP/1.1", port=port).status == 503, description="it holds the place")
        wait_until(lambda: place.ask("GET /plain HTTP/1.1", port=port).status == 200, description="the place is free")
        received = bytearray()
        with contextlib.suppress(ConnectionError):
            while piece := held.recv(65536):
                received += piece
    assert 0 < len(received) < 9 * MIB


@pytest.mark.parametrize("line", ["POST /nowhere HTTP/1.1", "TRACE /json HTTP/1.1", "POST /-/routes HTTP/1.1"])
def test_a_large_body_that_is_not_read_ends_the_connection(place: Place, line: str) -> None:
    head = f"{line}\r\nHost: localhost\r\nContent-Length: {8 * MIB}\r\n\r\n".encode()
    hidden = b"POST /json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n666666666"
    (answer,) = exchange(place.port, head + hidden)
    assert answer.status in (404, 405)
    assert answer.headers["connection"] == "close"


# -- brokers in trouble ----------------------------------------------------------------------------


def test_b42_a_full_broker_is_told_from_one_that_is_away(place: Place) -> None:
    client = connect(place.broker_url)
    client.config_set("maxmemory", 1)
    try:
        answer = place.post(b"1")
    finally:
        client.config_set("maxmemory", 0)
        client.close()
    assert (answer.status, answer.error["code"], answer.error["retryable"]) == (503, "broker_full", True)
    assert "retry-after" in answer.headers
    wait_until(lambda: place.post(b"1").status == 200, description="it goes on")


@pytest.mark.slow
def test_b42_a_broker_that_is_away_is_503_and_its_address_stays_unknown(place: Place) -> None:
    with new_site() as site:
        url = site.broker()
        (broker,) = site.processes()
        port = free_port()
        site.qserve("gateway", "--port", str(port), env={"QSERVE_BROKER_URL": url})
        health = "GET /-/healthz HTTP/1.1"
        wait_until(lambda: is_open(port), description="the gateway listens")
        routes = "GET /-/routes HTTP/1.1"
        wait_until(lambda: place.ask(routes, port=port).status == 200, description="it serves")

        os.kill(broker, 9)
        wait_until(lambda: not is_alive(broker), description="the broker is gone")

        answer = wait_until(
            lambda: (found := place.ask(health, port=port)).status == 503 and found, description="it is noticed"
        )
        assert (answer.error["code"], answer.error["retryable"]) == ("broker_unavailable", True)
        assert "retry-after" in answer.headers
        assert b"127.0.0.1" not in answer.body
        assert b"Connection refused" not in answer.body


@pytest.mark.row("F25")
@pytest.mark.slow
@pytest.mark.long  # the rows F25 and F32 have both
def test_b42_a_full_disk_and_a_lost_state_have_words_of_their_own() -> None:
    with new_site() as site:
        broker = free_port()
        # snapshots, because only they can be made to fail from outside: their file will be a folder
        options = ["--port", str(broker), "--dir", str(site.folder), "--save", "3600 1", "--dbfilename", "dump"]
        site.start([find_server(), *options])
        wait_until(lambda: is_open(broker), description="the broker listens")
        url = f"redis://127.0.0.1:{broker}/0"
        place = Place(site, "--broker", url)
        client = connect(url)

        (site.folder / "dump").mkdir()
        _snapshot(client, "err")
        for answer in (place.post(b"1"), place.ask("GET /-/healthz HTTP/1.1")):
            assert (answer.status, answer.error["code"]) == (503, "broker_disk_full")
            assert "retry-after" in answer.headers
        (site.folder / "dump").rmdir()
        _snapshot(client, "ok")
        assert place.post(b"1").status == 200

        workers = [pid for pid, command in site.processes().items() if "qserve worker" in command]
        for pid in workers:  # they would register it again at once
            os.kill(pid, signal.SIGSTOP)
        client.flushall()
        answer = place.post(b"1")
        assert (answer.status, answer.error["code"], answer.error["retryable"]) == (503, "broker_state_lost", True)
        wait_until(lambda: place.ask("GET /-/healthz HTTP/1.1").status == 503, description="it is not well")
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: place.post(b"1").status == 200, description="it serves again by itself")
        client.close()


def _snapshot(client: Any, status: str) -> None:
    client.bgsave()
    wait_until(
        lambda: client.info("persistence")["rdb_last_bgsave_status"] == status, description=f"a snapshot is {status}"
    )


def test_the_gateway_is_unharmed_by_all_of_it(place: Place, small: tuple[int, Process]) -> None:
    answer = place.post(b'{"a": [1, 2.5, null, "\xc3\xa4"]}')
    assert (answer.status, json.loads(answer.body)) == (200, {"a": [1, 2.5, None, "ä"]})
    assert "Traceback" not in small[1].output
    assert Path(f"/proc/{small[1].pid}").exists()
