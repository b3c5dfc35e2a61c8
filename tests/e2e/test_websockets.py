"""WebSockets of FastAPI and ASGI applications, by a client library of others, over the gateway and real replicas."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, WebSocket, WebSocketDisconnect
from flask import Flask
from http_client import Client
from processes import Started, wait_until
from starlette.requests import Request
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import qserve as serve
from qserve import DAGDriver, InputNode
from qserve.calls.items import WINDOW
from qserve.calls.ref import current

MEGABYTE = 1 << 20
api = FastAPI()


class Notes:
    """What the sessions of a replica have noted."""

    def __init__(self) -> None:
        self.ends: list[Any] = []
        self.sent = self.heard = 0


notes = Notes()


async def tenant_of(x_tenant: str = Header("nobody")) -> str:
    if x_tenant == "unknown":
        raise HTTPException(403, "unknown tenant")
    return x_tenant


@serve.deployment(name="Double")
def double(value: int) -> int:
    return 2 * value


@serve.deployment(name="Api", max_ongoing_requests=50, max_retries=2)
@serve.ingress(api)
class Api:
    """Routes of FastAPI whose functions are methods."""

    def __init__(self, doubler: Any) -> None:
        self.doubler = doubler
        self.runs = 0

    @api.get("/notes")
    async def notes(self) -> Any:
        return {"ends": notes.ends, "sent": notes.sent, "heard": notes.heard, "runs": self.runs}

    @api.websocket("/echo")
    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                notes.ends.append([message["code"], message.get("reason")])
                return
            if message.get("text") is not None:
                await websocket.send_text(message["text"])
            else:
                await websocket.send_bytes(message["bytes"])

    @api.websocket("/double/{start}")
    async def double(self, websocket: WebSocket, start: int, step: int = 1, tenant: str = Depends(tenant_of)) -> None:
        """Dependencies, and calls of other deployments."""
        await websocket.accept()
        await websocket.send_json([tenant, await (await self.doubler.remote(start)) + step])
        with_it = await websocket.receive_json()
        await websocket.send_json(with_it)  # and a `WebSocketDisconnect` that is not caught
        await websocket.receive_text()

    @api.websocket("/scope")
    async def scope(self, websocket: WebSocket) -> None:
        scope = websocket.scope
        await websocket.accept(subprotocol="chat.v2", headers=[(b"x-own", b"1"), (b"x-request-id", b"mine")])
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        names = ("type", "scheme", "path", "root_path", "subprotocols", "http_version")
        seen = {name: scope[name] for name in names} | {"query": scope["query_string"].decode(), "headers": headers}
        await websocket.send_json(seen)
        await websocket.close(3001, "thanks")

    @api.websocket("/refuse")
    async def refuse(self, websocket: WebSocket) -> None:
        await websocket.close()

    @api.websocket("/deny")
    async def deny(self, websocket: WebSocket) -> None:
        raise HTTPException(418, "no tea", headers={"x-why": "empty"})

    @api.websocket("/fail/{when}")
    async def fail(self, websocket: WebSocket, when: str) -> None:
        self.runs += 1
        if when == "after":
            await websocket.accept()
        raise LookupError("of the test")

    @api.websocket("/slow")
    async def slow(self, websocket: WebSocket) -> None:
        """Hears nothing before it is asked to."""
        await websocket.accept()
        await wait_for_go(websocket.query_params["go"])
        while True:
            data = await websocket.receive_bytes()
            notes.heard += len(data)
            if not data:
                await websocket.send_json(notes.heard)

    @api.websocket("/flood")
    async def flood(self, websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_bytes(bytes(64 * 1024))
                notes.sent += 1
        except WebSocketDisconnect as error:
            notes.ends.append(["flood", error.code])
            message = await websocket.receive()
            notes.ends.append(["flood", message["code"], message["reason"]])

    @api.websocket("/both")
    async def both(self, websocket: WebSocket) -> None:
        """Sends from two tasks at once."""
        await websocket.accept()
        letters = (b"a", b"b")
        await asyncio.gather(*(websocket.send_bytes(letter * MEGABYTE) for letter in letters))

    @api.websocket("/forget")
    async def forget(self, websocket: WebSocket) -> None:
        await websocket.accept()

    @api.websocket("/never")
    async def never(self, websocket: WebSocket) -> None:
        await asyncio.sleep(3600)


async def wait_for_go(name: str) -> None:
    while not Path(name).exists():
        await asyncio.sleep(0.01)


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application without any framework."""
    if scope["type"] != "websocket":
        raise TypeError(scope["type"])
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"][::-1]})


site = Flask(__name__)


@serve.deployment(name="Plain")
def plain(request: Request) -> str:
    return "plain"


@pytest.fixture(scope="module")
def url(started: Started) -> Iterator[str]:
    serve.run(Api.bind(double.bind()), name="api", route_prefix="/api")
    serve.run(serve.deployment(serve.ingress(bare)(), name="Bare").bind(), name="bare", route_prefix="/bare")
    serve.run(serve.deployment(serve.ingress(site)(), name="Site").bind(), name="site", route_prefix="/site")
    serve.run(plain.bind(), name="plain", route_prefix="/plain")
    with InputNode() as value:
        node = double.bind(value)
    serve.run(DAGDriver.bind(node), name="graph", route_prefix="/graph")
    yield started.url.replace("http", "ws")


@pytest.fixture
def http(started: Started, url: str) -> Client:
    return Client(started.url)


def opened(url: str, path: str, **options: Any) -> ClientConnection:
    return connect(url + path, max_size=None, open_timeout=20, close_timeout=20, **options)


def closed_with(one: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed):
        while True:
            one.recv(20)
    assert one.protocol.close_code is not None
    return one.protocol.close_code, one.protocol.close_reason or ""


def status_of(url: str, path: str, **options: Any) -> Any:
    with pytest.raises(InvalidStatus) as refused, opened(url, path, **options):
        pass
    return refused.value.response


def ends(http: Client) -> list[Any]:
    return http.get("/api/notes").json["ends"]  # type: ignore[no-any-return]


# -- messages --------------------------------------------------------------------------------------


def test_text_and_bytes_of_any_length_come_back_as_they_were_sent(url: str) -> None:
    messages: list[str | bytes] = [
        "", b"", "text", "\u20ac\U0001f600" * 20_000, bytes(range(256)) * 64, b"x" * (16 * 1024), "x" * MEGABYTE,
        b"y" * MEGABYTE,
    ]  # fmt: skip
    with opened(url, "/api/echo") as one:
        for message in messages:
            one.send(message)
            assert one.recv(20) == message
        one.send(iter(["three ", "", "pieces"]))
        assert one.recv(20) == "three pieces"
        assert one.ping().wait(20)


def test_messages_of_two_tasks_stay_whole(url: str) -> None:
    with opened(url, "/api/both") as one:
        assert {one.recv(20), one.recv(20)} == {b"a" * MEGABYTE, b"b" * MEGABYTE}


def test_dependencies_parameters_and_calls_of_other_deployments_are_as_over_http(url: str, http: Client) -> None:
    with opened(url, "/api/double/20?step=2", additional_headers={"x-tenant": "acme"}) as one:
        assert json.loads(one.recv(20)) == ["acme", 42]
        one.send('{"a": 1}')
        assert json.loads(one.recv(20)) == {"a": 1}


def test_the_scope_is_what_asgi_says(url: str) -> None:
    options: Any = {"subprotocols": ["chat.v1", "chat.v2"], "additional_headers": {"x-a": "b", "cookie": "c=d"}}
    with opened(url, "/api/scope?x=%20y", **options) as one:
        seen = json.loads(one.recv(20))
        assert closed_with(one) == (3001, "thanks")
    assert one.response is not None
    assert one.subprotocol == "chat.v2"
    assert one.response.headers["x-own"] == "1"
    assert one.response.headers["x-request-id"] not in ("", "mine")
    headers = seen.pop("headers")
    assert seen == {
        "type": "websocket", "scheme": "ws", "path": "/api/scope", "root_path": "/api", "http_version": "1.1",
        "subprotocols": ["chat.v1", "chat.v2"], "query": "x=%20y",
    }  # fmt: skip
    assert (headers["x-a"], headers["cookie"]) == ("b", "c=d")
    assert "upgrade" not in headers


def test_an_application_without_a_framework_is_served(url: str) -> None:
    with opened(url, "/bare") as one:
        one.send("abc")
        assert one.recv(20) == "cba"


# -- ends ------------------------------------------------------------------------------------------


def test_an_application_hears_with_which_code_and_reason_its_client_has_closed(url: str, http: Client) -> None:
    with opened(url, "/api/echo") as one:
        one.close(4321, "enough")
    wait_until(lambda: [4321, "enough"] in ends(http), description="the application has heard it")


def test_an_application_hears_that_its_client_is_gone(url: str, http: Client) -> None:
    with opened(url, "/api/echo") as one:
        one.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: [1006, ""] in ends(http), description="the application has heard it")


def test_a_client_sees_how_its_application_has_ended(url: str) -> None:
    with opened(url, "/api/forget") as one:
        assert closed_with(one) == (1000, "")
    with opened(url, "/api/fail/after") as one:
        assert closed_with(one) == (1011, "the application failed")


def test_a_session_runs_once_however_often_its_deployment_tries_again(url: str, http: Client) -> None:
    before = http.get("/api/notes").json["runs"]
    assert status_of(url, "/api/fail/before").status_code == 500
    assert http.get("/api/notes").json["runs"] == before + 1


# -- who is not accepted ---------------------------------------------------------------------------


def test_a_client_that_is_not_accepted_gets_a_response(url: str) -> None:
    denied = status_of(url, "/api/deny")
    assert (denied.status_code, denied.headers["x-why"], json.loads(denied.body)) == (
        418,
        "empty",
        {"detail": "no tea"},
    )
    refused = status_of(url, "/api/refuse")
    assert (refused.status_code, json.loads(refused.body)["error"]["code"]) == (403, "websocket_refused")
    unknown = status_of(url, "/api/double/1", additional_headers={"x-tenant": "unknown"})
    assert (unknown.status_code, json.loads(unknown.body)) == (403, {"detail": "unknown tenant"})
    assert status_of(url, "/api/nowhere").status_code == 403  # as starlette says


@pytest.mark.parametrize("path", ["/plain", "/graph", "/site"])
def test_what_serves_no_websockets_says_so_and_runs_nothing(url: str, path: str) -> None:
    refused = status_of(url, path)
    assert (refused.status_code, json.loads(refused.body)["error"]["code"]) == (501, "websocket_not_supported")


def test_an_application_has_the_deadline_of_a_request_to_accept(url: str) -> None:
    refused = status_of(url, "/api/never", additional_headers={"x-request-timeout-seconds": "0.5"})
    assert refused.status_code == 504


def test_a_page_of_another_host_opens_nothing(url: str) -> None:
    own = url.replace("ws", "http")
    with opened(url, "/bare", origin=own) as one:
        one.send("ab")
        assert one.recv(20) == "ba"
    for origin in ("http://elsewhere.example", "null", own.replace("http", "ftp")):
        refused = status_of(url, "/bare", origin=origin)
        assert (refused.status_code, json.loads(refused.body)["error"]["code"]) == (403, "cross_origin")
    assert status_of(url, "/bare", origin=own, additional_headers={"sec-fetch-site": "cross-site"}).status_code == 403


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ({"sec-websocket-version": "12"}, 426),
        ({"sec-websocket-key": ""}, 400),
        ({"connection": "keep-alive"}, 400),
        ({"content-length": "3"}, 400),
    ],
)
def test_a_bad_handshake_is_refused(http: Client, lines: dict[str, str], status: int) -> None:
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "a"}
    given = {name: value for name, value in (headers | lines).items() if value}
    reply = http.send("GET", "/bare", b"abc" if "content-length" in lines else None, **given)
    assert (reply.status, reply.json["error"]["code"]) == (status, "bad_handshake")


# -- limits ----------------------------------------------------------------------------------------


def test_a_message_that_is_too_long_closes_with_1009(url: str, http: Client) -> None:
    with opened(url, "/api/echo") as one:
        sending = threading.Thread(target=send_all, args=(one, 17))
        sending.start()
        assert closed_with(one) == (1009, "a message may have 16777216 bytes")
        sending.join(20)
    wait_until(lambda: [1009, "a message may have 16777216 bytes"] in ends(http), description="it has heard it")


def send_all(one: ClientConnection, megabytes: int) -> None:
    with contextlib.suppress(ConnectionClosed):
        one.send(bytes(MEGABYTE) for _ in range(megabytes))


def test_a_client_that_breaks_the_protocol_is_closed(url: str) -> None:
    with opened(url, "/api/echo") as one:
        one.socket.sendall(b"\x83\x80\x00\x00\x00\x00")  # a reserved opcode
        assert closed_with(one)[0] == 1002


def test_an_application_that_does_not_read_holds_up_its_client(url: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with opened(url, f"/api/slow?go={go}") as one:
        sent: list[int] = []

        def send() -> None:
            for _ in range(512):
                one.send(bytes(64 * 1024))
                sent.append(1)
            one.send(b"")

        sending = threading.Thread(target=send)
        sending.start()
        wait_until(lambda: is_steady(sent), description="the client waits", timeout_s=30)
        held = len(sent)
        assert session_field("told") - session_field("hrd") <= WINDOW
        go.touch()
        assert json.loads(one.recv(60)) == 512 * 64 * 1024
        sending.join(20)
    assert held < 400  # what kernels hold, 64 KiB here and 256 KiB on their way


def test_an_application_whose_client_does_not_read_waits_and_is_told_of_the_end(url: str, http: Client) -> None:
    with opened(url, "/api/flood", max_queue=1):
        wait_until(lambda: is_steady_at(http), description="the application waits", timeout_s=60)
        sent, taken = session_field("sent"), session_field("taken")
        assert 0 < sent - taken <= WINDOW
        assert http.get("/api/notes").json["sent"] < 400  # what kernels hold
        wait_until(lambda: sum(end[0] == "flood" for end in ends(http)) == 2, description="it was told", timeout_s=60)
    assert [end for end in ends(http) if end[0] == "flood"] == [
        ["flood", 1006],  # as starlette says where a message cannot be sent
        ["flood", 1008, "the client has read nothing for 15 s"],
    ]


def session_field(name: str) -> int:
    """A number of the session that is open in the broker."""
    plane: Any = current.installed
    found = [plane.client.hgetall(key) for key in plane.client.scan_iter(plane.keys.request("*").replace("{", "\\{"))]
    (session,) = [fields for fields in found if b"e:__qserve_websocket__" in fields]
    return int(session.get(name.encode(), 0))


def is_steady_at(http: Client) -> bool:
    before = http.get("/api/notes").json["sent"]
    return before > 0 and not threading.Event().wait(1.0) and http.get("/api/notes").json["sent"] == before


def is_steady(found: list[int]) -> bool:
    before = len(found)
    return before > 0 and not threading.Event().wait(1.0) and len(found) == before
