"""All doors into user code over HTTP: they see the same request, and fail alike.

A door is a kind of deployment that HTTP requests reach: plain, FastAPI, Flask, bare ASGI and WSGI, a graph's adapter.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi import Request as FastAPIRequest
from flask import Flask
from flask import Response as FlaskResponse
from flask import request as flask_request
from http_client import Client
from processes import Started, wait_until
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

import qserve as serve
from qserve import DAGDriver, InputNode

Seen = dict[str, Any]
SPLIT = "b\r\nset-cookie: c=d"


# -- what the doors share --------------------------------------------------------------------------


def joined(lines: list[tuple[str, str]]) -> dict[str, str]:
    """Header lines by name, as WSGI has them."""
    found: dict[str, str] = {}
    for name, value in lines:
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


async def seen_by(request: Request) -> Seen:
    """What starlette's request tells."""
    return seen_in(request.scope, await request.body(), request.cookies)


def seen_in(scope: Any, body: bytes, cookies: dict[str, str]) -> Seen:
    lines = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    return {
        "method": scope["method"],
        "path": scope["path"].removeprefix(scope["root_path"]),
        "query": scope["query_string"].decode(),
        "headers": joined(lines),
        "lines": lines,
        "raw": scope["raw_path"].decode().removeprefix(scope["root_path"]),
        "cookies": cookies,
        "body": body.decode("latin-1"),
        "scheme": scope["scheme"],
        "client": scope["client"][0],
    }


def seen_in_environ(environ: dict[str, Any], cookies: Any = None) -> Seen:
    headers = {
        key.removeprefix("HTTP_").replace("_", "-").lower(): value
        for key, value in environ.items()
        if key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH")
    }
    return {
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"].encode("latin-1").decode(),
        "query": environ["QUERY_STRING"],
        "headers": headers,
        "lines": None,
        "raw": None,
        "cookies": cookies,
        "body": environ["wsgi.input"].read().decode("latin-1"),
        "scheme": environ["wsgi.url_scheme"],
        "client": environ["REMOTE_ADDR"],
    }


def parts_of(kind: str) -> Iterator[Any]:
    """A body in parts, of the kind that a path names."""
    if kind == "late":
        yield b"first"
    if kind in ("early", "late"):
        raise LookupError("of the test")
    yield {"ints": 5, "dicts": {"a": 1}, "nones": None, "bytes": b"ab", "arrays": bytearray(b"ab")}[kind]


def call_narrow() -> Any:
    return serve.get_deployment_handle("Narrow", "narrow").remote()


PARTS = ("early", "late", "ints", "dicts", "nones", "bytes", "arrays")


# -- the doors -------------------------------------------------------------------------------------


@serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
class Narrow:
    """Has one place, which a test occupies."""

    async def __call__(self, gate: str = "") -> str:
        import asyncio

        while gate and not Path(gate).exists():
            await asyncio.sleep(0.005)
        return "done"


@serve.deployment(name="Plain")
class Plain:
    """A plain deployment."""

    async def __call__(self, request: Request) -> Any:
        match request.url.path.rpartition("/")[2]:
            case "raise":
                raise LookupError("of the test")
            case "split":
                return Response("x", headers={"x-a": SPLIT})
            case "name":
                return Response("x", headers={"x a": "b"})
            case "status":
                return Response("x", status_code=42)
            case "switching":
                return Response("x", status_code=101)
            case "full":
                return await call_narrow()
            case "ref":
                return call_narrow()
            case "empty" as kind:
                return Response("body", 204, headers={"x-kind": kind})
            case "hop":
                hop = {"connection": "close, x-own", "transfer-encoding": "chunked", "x-request-id": "mine", "te": "x"}
                return Response("body", headers=hop)
            case "short":
                return StreamingResponse(iter("ab"), headers={"content-length": "9"})
            case "cookies":
                response = Response("body", headers={"x-latin": "\xe4", "x-empty": ""})
                response.set_cookie("a", "1")
                response.set_cookie("b", "2")
                return response
            case "background":
                return PlainTextResponse("sent", background=BackgroundTask(fail_later))
            case "stream":
                return StreamingResponse(parts_of("early"))
            case kind if kind in PARTS:
                return parts_of(kind)
        return await seen_by(request)


def fail_later() -> None:
    raise LookupError("after the response")


@serve.deployment(name="Sync")
def sync(request: Request) -> Any:
    """A plain function that is not async."""
    match request.url.path.rpartition("/")[2]:
        case "raise":
            raise LookupError("of the test")
        case "full":
            return serve.get(call_narrow())
        case kind if kind in PARTS:
            return parts_of(kind)
    return call_narrow()


api = FastAPI()


@api.middleware("http")
async def middleware(request: FastAPIRequest, go_on: Any) -> Any:
    """Fails where a header tells it to."""
    match request.headers.get("x-middleware"):
        case "raise":
            raise LookupError("of the middleware")
        case "full":
            return Response(await call_narrow())
    return await go_on(request)


async def dependency(request: FastAPIRequest) -> AsyncIterator[None]:
    """Fails where a header tells it to."""
    when = request.headers.get("x-dependency")
    if when == "enter":
        raise LookupError("of the dependency")
    if when == "full":
        await call_narrow()
    yield
    if when == "exit":
        raise LookupError("of the dependency")


@serve.deployment(name="Api")
@serve.ingress(api)
class Api:
    """Routes of FastAPI."""

    @api.get("/raise", dependencies=[Depends(dependency)])
    async def fail(self) -> None:
        raise LookupError("of the test")

    @api.get("/depends", dependencies=[Depends(dependency)])
    async def depends(self) -> str:
        return "done"

    @api.get("/split")
    async def split(self) -> Response:
        return Response("x", headers={"x-a": SPLIT})

    @api.get("/status")
    async def status(self) -> Response:
        return Response("x", status_code=42)

    @api.get("/full")
    async def full(self) -> Any:
        return await call_narrow()

    @api.get("/full/sync")
    def full_sync(self) -> Any:
        return serve.get(call_narrow())

    @api.get("/ref")
    async def ref(self) -> Any:
        return call_narrow()

    @api.get("/ref/sync")
    def ref_sync(self) -> Any:
        return call_narrow()

    @api.get("/background")
    async def background(self, tasks: BackgroundTasks) -> str:
        tasks.add_task(fail_later)
        return "sent"

    @api.get("/parts/{kind}")
    async def parts(self, kind: str) -> StreamingResponse:
        return StreamingResponse(parts_of(kind))


@api.get("/function")
def function() -> Any:
    """A route outside of the class."""
    return call_narrow()


@api.exception_handler(KeyError)
async def handle(request: Any, error: KeyError) -> Response:
    return PlainTextResponse("handled", 409)


@api.get("/handled")
def handled() -> None:
    raise KeyError("of the test")


@api.api_route("/{rest:path}", methods=["GET", "POST", "PUT", "OPTIONS", "DELETE", "PATCH"])
async def everything(request: FastAPIRequest) -> Seen:
    return await seen_by(request)


site = Flask(__name__)
METHODS = ["GET", "POST", "PUT", "OPTIONS", "DELETE", "PATCH"]


@site.errorhandler(KeyError)
def handle_key_error(error: KeyError) -> Any:
    return "handled", 409


@serve.deployment(name="Site")
@serve.ingress(site)
class Site:
    """Views of Flask."""

    @site.route("/", methods=METHODS, provide_automatic_options=False)
    @site.route("/<path:rest>", methods=METHODS, provide_automatic_options=False)
    def everything(self, rest: str = "") -> Any:
        kind = rest.rpartition("/")[2]
        if kind in PARTS:
            return FlaskResponse(parts_of(kind))
        match rest:
            case "raise":
                raise LookupError("of the test")
            case "handled":
                raise KeyError("of the test")
            case "split":
                return FlaskResponse("x", headers={"x-a": SPLIT})
            case "full":
                return serve.get(call_narrow())
            case "ref":
                return call_narrow()
            case "twice":
                return str(len(flask_request.get_data()))
        return seen_in_environ(flask_request.environ, flask_request.cookies)


def bare_wsgi(environ: dict[str, Any], start_response: Any) -> Any:
    kind = environ["PATH_INFO"].rpartition("/")[2]
    if kind == "raise":
        raise LookupError("of the test")
    if kind == "full":
        serve.get(call_narrow())
    status = "42 Odd" if kind == "status" else "200 OK"
    start_response(status, [("X-A", SPLIT)] if kind == "split" else [("Content-Type", "application/json")])
    if kind in PARTS:
        return parts_of(kind)
    return [json.dumps(seen_in_environ(environ)).encode()]


async def bare_asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    kind = scope["path"].rpartition("/")[2]
    if kind == "raise":
        raise LookupError("of the test")
    if kind == "full":
        await call_narrow()
    headers = [(b"X-A", SPLIT.encode())] if kind == "split" else [(b"Content-Type", b"application/json")]
    await send({"type": "http.response.start", "status": 42 if kind == "status" else 200, "headers": headers})
    if kind in PARTS:
        for part in parts_of(kind):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})
        return
    body = b""
    while (message := await receive()).get("more_body", False):
        body += message["body"]
    body += message["body"]
    await send({"type": "http.response.body", "body": json.dumps(seen_in(scope, body, {})).encode()})


async def adapter(request: Request, kind: str = "") -> Any:
    """An adapter that hands on what it sees, or fails."""
    match kind:
        case "raise":
            raise LookupError("of the test")
        case "http":
            raise HTTPException(401, "who are you?", headers={"x-a": SPLIT})
        case "full":
            await call_narrow()
        case "ref":
            return call_narrow()
    return await seen_by(request)


@serve.deployment(name="Step")
def step(value: Any) -> Any:
    """A graph's only step."""
    match value["query"] if isinstance(value, dict) else "":
        case "split":
            return Response("x", headers={"x-a": SPLIT})
        case "early":
            return parts_of("early")
        case "ref":
            return call_narrow()
    return value


class Reply(NamedTuple):
    """One HTTP response, as it came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    is_whole: bool = True

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1, self
        return values[0] if values else None

    @property
    def error(self) -> dict[str, Any]:
        """The error that it tells, in the form of all errors."""
        assert self.header("content-type") == "application/json", self
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert error["request_id"] == self.header("x-request-id")
        return error


def send(address: tuple[str, int], data: bytes, method: str = "GET") -> Reply:
    """Send bytes, and read one response."""
    with socket.create_connection(address, timeout=30) as sock:
        sock.sendall(data)
        response = http.client.HTTPResponse(sock, method=method)
        response.begin()
        try:
            body, is_whole = response.read(), True
        except (http.client.IncompleteRead, ConnectionError) as error:
            body, is_whole = getattr(error, "partial", b""), False
        return Reply(response.status, response.getheaders(), body, is_whole)


class Doors(NamedTuple):
    address: tuple[str, int]
    log: Path

    def ask(self, path: str, *lines: str, method: str = "GET", body: bytes = b"", version: str = "1.1") -> Reply:
        head = "\r\n".join([f"{method} {path} HTTP/{version}", "Host: here", *lines, "", ""])
        return send(self.address, head.encode("latin-1") + body, method)

    def wait_for_log(self, request_id: str, *texts: str) -> None:
        def is_logged() -> bool:
            lines = self.log.read_text(errors="replace").splitlines()
            return any(request_id in line and all(text in line for text in texts) for line in lines)

        wait_until(is_logged, description=f"the log has {request_id} with {texts}", timeout_s=10)


@pytest.fixture(scope="module")
def doors(started: Started) -> Doors:
    """A gateway in front of all doors."""
    serve.run(Narrow.bind(), name="narrow", route_prefix="/narrow")
    serve.run(Plain.bind(), name="plain", route_prefix="/plain")
    serve.run(sync.bind(), name="sync", route_prefix="/sync")
    serve.run(Api.bind(), name="api", route_prefix="/api")
    serve.run(Site.bind(), name="site", route_prefix="/site")
    for app, name in ((bare_asgi, "asgi"), (bare_wsgi, "wsgi")):
        serve.run(serve.deployment(serve.ingress(app)()).options(name=name).bind(), name=name, route_prefix=f"/{name}")
    with InputNode() as value:
        graph = DAGDriver.bind(step.bind(value), http_adapter=adapter)
    serve.run(graph, name="graph", route_prefix="/graph")
    return Doors(Client(started.url).address, started.log)


# -- all doors see the same request ----------------------------------------------------------------

FORM = "Content-Type: application/x-www-form-urlencoded"
CHUNKED = "Transfer-Encoding: chunked"
REQUESTS: dict[str, tuple[str, str, list[str], bytes]] = {
    "nothing": ("GET", "/", [], b""),
    "a query": ("GET", "/a?k=1&k=2&empty=&%C3%A4=%2F&plus=a+b", [], b""),
    "an odd path": ("GET", "/a%2Fb/%C3%A4//c/./..%20;x=1", [], b""),
    "bytes that are not UTF-8": ("GET", "/%ff", [], b""),
    "two lines": ("GET", "/x", ["H: 1", "H: 2", "X: y", "H: 3"], b""),
    "two cookies": ("GET", "/x", ["Cookie: a=1", "H: 1", "Cookie: b=2; c=3"], b""),
    "odd values": ("GET", "/x", ["Empty:", "Latin: \xe4\xff", "Long: " + "a" * 8000, "Quoted: a, \"b, c\""], b""),
    "a body": ("POST", "/x", ["Content-Length: 4", FORM], b"abcd"),
    "a body by GET": ("GET", "/x", ["Content-Length: 4"], b"abcd"),
    "an empty body": ("POST", "/x", ["Content-Length: 0"], b""),
    "bytes": ("POST", "/x", ["Content-Length: 4", "Content-Type: a/b; c=d"], b"\0\xff\r\n"),
    "chunks": ("POST", "/x", [CHUNKED], b"2\r\nab\r\n2;ext=1\r\ncd\r\n0\r\n\r\n"),
    "trailers": ("POST", "/x", [CHUNKED, "Trailer: X-T"], b"4\r\nabcd\r\n0\r\nX-T: 1\r\n\r\n"),
    "no chunks": ("POST", "/x", [CHUNKED], b"0\r\n\r\n"),
    "the hop's headers": (
        "GET",
        "/x",
        ["Connection: close, X-Hop", "X-Hop: 1", "Keep-Alive: 5", "TE: trailers", "Upgrade: h2c"],
        b"",
    ),
    "what a proxy says": ("GET", "/x", ["Connection: X-Forwarded-For, Host", "X-Forwarded-For: 1.2.3.4"], b""),
    "compressed": ("POST", "/x", ["Content-Length: 4", "Content-Encoding: gzip"], b"\x1f\x8b\0\0"),
    "OPTIONS": ("OPTIONS", "/x", ["Origin: http://here"], b""),
    "PUT": ("PUT", "/x", ["Content-Length: 1"], b"a"),
}  # fmt: skip
OF_DOORS = ("lines", "cookies", "raw")
"""What not every door tells."""
OF_HOP = ("transfer-encoding", "trailer", "expect", "connection", "x-hop", "keep-alive", "te", "upgrade")


@pytest.mark.parametrize("name", REQUESTS)
def test_one_request_is_seen_alike_by_every_door(doors: Doors, name: str) -> None:
    method, path, lines, body = REQUESTS[name]
    seen: dict[str, Seen] = {}
    for door in ("plain", "api", "site", "asgi", "wsgi", "graph"):
        if door == "graph" and method not in ("GET", "POST"):
            continue
        reply = doors.ask(f"/{door}{path}", *lines, method=method, body=body)
        assert reply.status == 200, (door, reply)
        seen[door] = json.loads(reply.body)
    plain = seen["plain"]
    assert not [header for header in OF_HOP if header in plain["headers"]]
    if name != "no chunks":
        sent = [tuple(line.split(": ", 1)) for line in lines if line.lower() in {f"h: {n}" for n in range(9)}]
        assert [line[1] for line in plain["lines"] if line[0] == "h"] == [value for _, value in sent]
    for door, other in seen.items():
        assert {key: other[key] for key in other if key not in OF_DOORS} == {
            key: plain[key] for key in plain if key not in OF_DOORS
        }, door
        assert other["lines"] in (None, plain["lines"]), door
        assert other["raw"] in (None, path.partition("?")[0]), door
        if door in ("api", "site", "graph"):
            assert other["cookies"] == plain["cookies"], door


def test_a_request_that_waits_to_be_told_to_go_on_is_told_once(doors: Doors) -> None:
    with socket.create_connection(doors.address, timeout=30) as sock:
        sock.sendall(b"POST /plain HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abcd")
        response = http.client.HTTPResponse(sock)
        response.begin()
        seen = json.loads(response.read())
    assert (seen["body"], "expect" in seen["headers"]) == ("abcd", False)


def test_headers_of_a_response_reach_the_client_as_lines_and_without_those_of_a_hop(doors: Doors) -> None:
    reply = doors.ask("/plain/cookies")
    cookies = [value.split(";")[0] for name, value in reply.headers if name.lower() == "set-cookie"]
    assert (cookies, reply.header("x-latin"), reply.header("x-empty")) == (["a=1", "b=2"], "\xe4", "")

    reply = doors.ask("/plain/hop", "X-Request-ID: given")
    assert (reply.body, reply.header("connection"), reply.header("te")) == (b"body", "keep-alive", None)
    assert (reply.header("transfer-encoding"), reply.header("x-request-id")) == (None, "given")


def test_an_answer_without_a_body_has_none_and_head_tells_the_length(doors: Doors) -> None:
    reply = doors.ask("/plain/empty")
    assert (reply.status, reply.body, reply.header("content-length"), reply.header("x-kind")) == (
        204, b"", None, "empty",
    )  # fmt: skip
    assert doors.ask("/plain/hop", method="HEAD").header("content-length") == "4"
    assert doors.ask("/site/twice", method="HEAD").header("content-length") == "1"
    for path in (
        "/site/bytes",
        "/plain/bytes",
        "/wsgi/bytes",
        "/asgi/bytes",
    ):  # streams, whose length GET does not tell
        reply = doors.ask(path, method="HEAD")
        assert (reply.status, reply.header("content-length")) == (200, None), path


# -- failures --------------------------------------------------------------------------------------

FAILURES = [
    *((f"/{door}/{kind}", door) for door in ("plain", "sync", "asgi", "wsgi", "site")
      for kind in ("raise", "early", "ints", "dicts", "nones")),
    *((f"/api/parts/{kind}", "api") for kind in ("early", "ints", "dicts", "nones")),
    *((f"/{door}/split", door) for door in ("plain", "api", "site", "asgi", "wsgi")),
    *((f"/{door}/status", door) for door in ("plain", "api", "asgi", "wsgi")),
    ("/plain/name", "plain"), ("/plain/switching", "plain"), ("/plain/stream", "plain"),
    ("/api/raise", "api"), ("/graph?kind=raise", "graph"), ("/graph?kind=http", "graph"),
    ("/graph?split", "graph"), ("/graph?early", "step"),
]  # fmt: skip
NAMES = {"plain": "Plain", "sync": "Sync", "api": "Api", "site": "Site", "graph": "DAGDriver", "step": "Step"}


@pytest.mark.parametrize(("path", "door"), FAILURES)
def test_a_failure_before_the_first_byte_is_the_error_of_all_failures(doors: Doors, path: str, door: str) -> None:
    request_id = "of" + "".join(character for character in path if character.isalnum())
    reply = doors.ask(path, f"X-Request-ID: {request_id}")

    assert (reply.status, reply.is_whole) == (500, True), reply
    assert reply.header("x-request-id") == request_id
    assert reply.error["deployment"] == NAMES.get(door, door)
    assert reply.error["code"] in ("user_code_failed", "result_not_serialisable")
    assert "Traceback" not in reply.body.decode()
    assert reply.header("set-cookie") is None
    doors.wait_for_log(request_id)


@pytest.mark.parametrize("path", ["/plain/late", "/sync/late", "/api/parts/late", "/site/late", "/asgi/late"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_failure_after_the_first_byte_breaks_the_connection(doors: Doors, path: str, version: str) -> None:
    request_id = "late" + "".join(character for character in path + version if character.isalnum())
    reply = doors.ask(path, f"X-Request-ID: {request_id}", version=version)

    assert (reply.status, reply.is_whole) == (200, False)
    doors.wait_for_log(request_id, "cut off", "LookupError: of the test")
    assert "Error handling request" not in doors.log.read_text(errors="replace")


@pytest.mark.parametrize(
    "path", [f"/{door}/{kind}" for door in ("plain", "sync", "site", "asgi", "wsgi", "api/parts")
             for kind in ("bytes", "arrays") if (door, kind) not in (("wsgi", "arrays"), ("site", "arrays"))],
)  # fmt: skip
def test_parts_of_any_bytes_are_a_body(doors: Doors, path: str) -> None:
    reply = doors.ask(path)
    if path == "/api/parts/arrays":
        assert reply.status == 500  # starlette's own rule
    else:
        assert (reply.status, reply.body) == (200, b"ab")


def test_a_body_that_is_shorter_than_it_says_breaks_the_connection(doors: Doors) -> None:
    reply = doors.ask("/plain/short", "X-Request-ID: too-short")
    assert not reply.is_whole
    doors.wait_for_log("too-short", "shorter than its content-length")


@pytest.mark.parametrize(
    ("path", "header"),
    [("/api/x", "X-Middleware: raise"), ("/api/depends", "X-Dependency: enter")],
)
def test_an_exception_around_a_route_is_the_error_of_all_failures(doors: Doors, path: str, header: str) -> None:
    reply = doors.ask(path, header)
    assert (reply.status, reply.error["deployment"], reply.error["type"]) == (500, "Api", "LookupError")


@pytest.mark.parametrize(
    ("path", "header"),
    [("/api/depends", "X-Dependency: exit"), ("/api/background", "X-None: 1"), ("/plain/background", "X-None: 1")],
)
def test_an_exception_after_the_response_is_logged_with_the_request(doors: Doors, path: str, header: str) -> None:
    request_id = "after" + "".join(character for character in path + header if character.isalnum())
    reply = doors.ask(path, header, f"X-Request-ID: {request_id}")
    assert (reply.status, reply.is_whole) == (200, True)
    doors.wait_for_log(request_id, "LookupError")


@pytest.mark.parametrize("door", ["api", "site"])
def test_an_exception_that_the_application_handles_is_its_answer(doors: Doors, door: str) -> None:
    reply = doors.ask(f"/{door}/handled")
    assert (reply.status, reply.body) == (409, b"handled")


@pytest.mark.parametrize(
    ("door", "refusal"),
    [
        ("plain", (501, "websocket_not_supported")),
        ("api", (403, "websocket_refused")),  # it has no route for one
        ("graph", (501, "websocket_not_supported")),
        ("site", (501, "websocket_not_supported")),
    ],
)
def test_a_websocket_is_refused_in_words(doors: Doors, door: str, refusal: tuple[int, str]) -> None:
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    reply = doors.ask(f"/{door}/", *lines)
    assert (reply.status, reply.error["code"]) == refusal


# -- calls below -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/plain/ref",
        "/sync/ref",
        "/api/ref",
        "/api/ref/sync",
        "/api/function",
        "/site/ref",
        "/graph?kind=ref",
        "/graph?ref",
    ],
)
def test_a_returned_reference_is_resolved(doors: Doors, path: str) -> None:
    reply = doors.ask(path)
    assert (reply.status, reply.body.strip(b'"\n')) == (200, b"done"), reply


def test_a_full_queue_below_any_parent_is_503_with_a_time_to_come_back(doors: Doors, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    narrow = serve.get_deployment_handle("Narrow", "narrow")
    replies: dict[str, Reply] = {}
    held = [narrow.remote(str(gate)) for _ in range(2)]
    for call in held:
        call.accepted(10)
    paths = [
        "/plain/full", "/sync/full", "/api/full", "/api/full/sync", "/api/ref", "/api/function", "/api/x",
        "/api/depends", "/site/full", "/site/ref", "/asgi/full", "/wsgi/full", "/graph?kind=full", "/graph?kind=ref",
    ]  # fmt: skip

    def ask(path: str) -> None:
        replies[path] = doors.ask(path, "X-Middleware: " + ("full" if path == "/api/x" else ""), "X-Dependency: full")

    senders = [threading.Thread(target=ask, args=(path,)) for path in paths]
    try:
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    finally:
        gate.touch()
    assert not {path: reply for path, reply in replies.items() if reply.status != 503}
    assert len(replies) == len(paths)
    for reply in replies.values():
        assert (reply.error["code"], reply.error["retryable"]) == ("queue_full", True)
        assert int(reply.header("retry-after") or 0) >= 1
    assert [call.result(timeout_s=10) for call in held] == ["done", "done"]
