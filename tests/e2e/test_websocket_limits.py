"""WebSockets that last too long, say nothing, or belong to somebody who may not have one, as settings say."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from http_client import Client
from processes import PATIENCE_S, Serving, new_site, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

pytestmark = pytest.mark.slow

PROGRAM = """
from fastapi import FastAPI, WebSocket
import qserve as serve

web = FastAPI()
ends = []


@serve.deployment(max_ongoing_requests=20)
@serve.ingress(web)
class Api:
    @web.get("/ends")
    async def ended(self):
        return ends

    @web.websocket("/echo")
    async def echo(self, websocket: WebSocket):
        await websocket.accept()
        await websocket.send_json(websocket.headers.get("cookie", "no cookie"))
        while (message := await websocket.receive())["type"] == "websocket.receive":
            await websocket.send_text(message["text"])
        ends.append([message["code"], message["reason"]])


app = Api.bind()
"""
Start = Callable[..., Serving]


@pytest.fixture
def serving() -> Iterator[Start]:
    with new_site() as site:
        folder = site.write("echoes.py", PROGRAM)
        yield lambda **env: site.run("echoes:app", cwd=folder, env={f"QSERVE_{name}": env[name] for name in env})


def opened(running: Serving, **options: Any) -> ClientConnection:
    url = f"ws://127.0.0.1:{running.port}/echo"
    return connect(url, open_timeout=PATIENCE_S, close_timeout=PATIENCE_S, legacy=True, **options)


def closed_with(one: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed):
        while True:
            one.recv(PATIENCE_S)
    return one.protocol.close_code or 0, one.protocol.close_reason or ""


def test_a_session_without_messages_and_one_that_lasts_too_long_are_closed(serving: Start) -> None:
    running = serving(WEBSOCKET_IDLE_S="2", WEBSOCKET_S="6", WEBSOCKET_MESSAGE_BYTES="100k")
    idle, busy, long = (opened(running) for _ in range(3))
    long.send("x" * 100_001)
    assert closed_with(long) == (1009, "a message may have 100000 bytes")
    with pytest.raises(ConnectionClosed):
        while True:
            busy.send("still here")
            busy.recv(PATIENCE_S)
            time.sleep(0.05)
    assert (busy.protocol.close_code, busy.protocol.close_reason) == (
        1001, "the WebSocket was open for as long as it may be",
    )  # fmt: skip
    assert closed_with(idle) == (1001, "there was no message for 2 s")
    ends = Client(running.port)
    wait_until(lambda: len(ends.get("/ends").json) == 3, description="the application has heard of all")
    assert [1001, "there was no message for 2 s"] in ends.get("/ends").json


def test_a_client_that_does_not_answer_pings_is_lost_and_one_that_does_is_not(serving: Start) -> None:
    running = serving(WEBSOCKET_PING_S="1")
    dead = raw_client(running)
    alive = opened(running)
    ends = Client(running.port)
    wait_until(lambda: len(ends.get("/ends").json) == 1, description="one is missed")
    assert ends.get("/ends").json == [[1006, "the client does not answer pings"]]
    received = b""
    while piece := dead.recv(4096):
        received += piece
    assert b"\x89\x00" in received
    alive.send("still here")
    alive.recv(PATIENCE_S)
    assert alive.recv(PATIENCE_S) == "still here"
    alive.close()
    dead.close()


def raw_client(running: Serving) -> socket.socket:
    """A client that opens a WebSocket and reads nothing of it by itself."""
    found = socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S)
    found.sendall(
        b"GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert b"101 Switching Protocols" in found.recv(1 << 16)
    return found


@pytest.mark.long  # tests/gateway/test_access.py and test_cors.py have who may ask
def test_a_gateway_with_a_token_and_rules_for_hosts_and_pages_lets_no_one_else_open_one(serving: Start) -> None:
    running = serving(
        API_TOKEN="secret", ALLOWED_HOSTS="127.0.0.1", CORS_ORIGINS="https://shop.example", CLIENT_IN_FLIGHT="2"
    )
    token = {"authorization": "Bearer secret"}
    assert refusal(running) == (401, "unauthorized")
    assert refusal(running, additional_headers={"authorization": "Bearer other"}) == (401, "unauthorized")
    assert refusal(running, additional_headers=token, origin="https://elsewhere.example") == (403, "cross_origin")
    first = opened(running, additional_headers=token)
    page = {**token, "cookie": "a=b"}
    second = opened(running, additional_headers=page, origin="https://shop.example")
    assert json.loads(second.recv(PATIENCE_S)) == "a=b"
    assert refusal(running, additional_headers=token) == (429, "too_many_requests")
    metrics = Client(running.port).send("GET", "/-/metrics", None, **token)
    assert metrics.status == 429
    first.close()
    wait_until(
        lambda: 'method="WEBSOCKET"' in Client(running.port).send("GET", "/-/metrics", None, **token).text,
        description="the session that has ended is counted",
    )
    page_text = Client(running.port).send("GET", "/-/metrics", None, **token).text
    assert 'qserve_serve_num_ongoing_http_requests{route="/"} 1.0' in page_text
    second.close()


@pytest.mark.long  # tests/gateway/test_cors.py has it
def test_pages_of_any_host_may_come_without_cookies(serving: Start) -> None:
    running = serving(CORS_ORIGINS="*")
    with_cookie = {"cookie": "a=b", "authorization": "Basic Og=="}
    foreign = opened(running, origin="https://shop.example", additional_headers=with_cookie)
    own = opened(running, origin=f"http://127.0.0.1:{running.port}", additional_headers=with_cookie)
    assert [json.loads(one.recv(PATIENCE_S)) for one in (foreign, own)] == ["no cookie", "no cookie"]
    for one in (foreign, own):
        one.close()


def refusal(running: Serving, **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        opened(running, **options)
    response = refused.value.response
    return response.status_code, json.loads(response.body)["error"]["code"]
