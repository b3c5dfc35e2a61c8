"""What clients can make a gateway process hold: memory, places, and the time of its only loop; over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from http_client import Client
from processes import Started, wait_until
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

MIB = 1024 * 1024
BODY = 10 * MIB
ALLOWED = 400 * MIB
LARGE_ANSWER = 9 * MIB
_POST = "POST /plain HTTP/1.1\r\nHost: x\r\n"
HEADS = {
    "announced": f"{_POST}Content-Length: {BODY}\r\n\r\n".encode(),
    "chunked": f"{_POST}Transfer-Encoding: chunked\r\n\r\n{BODY:x}\r\n".encode(),
}


@qserve.deployment(max_ongoing_requests=2000)
class Plain:
    """Answers with the length of what came, holds requests until a file exists, or has much to say."""

    async def __call__(self, request: Request) -> Any:
        what = request.url.path.rpartition("/")[2]
        if what == "hold":
            while not Path(request.query_params["gate"]).exists():
                await asyncio.sleep(0.02)
        if what == "large":
            return Response("x" * LARGE_ANSWER)
        if what == "answer":
            return Response("x" * int(request.query_params["length"]))
        if what == "stream":
            return StreamingResponse(_endless())
        return len(await request.body())


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * MIB
        await asyncio.sleep(0)


@qserve.deployment
def count(value: Any) -> int:
    return len(value)


class Gateway:
    """The gateway's processes of a started stack.

    Parameters:
      started: The stack.
    """

    def __init__(self, started: Started) -> None:
        self._site = started.site
        self.client = Client(started.url)

    def resident(self) -> int:
        """Memory of its largest process, in bytes."""
        return max(_resident(pid) for pid, command in self._site.processes().items() if _is_server(command))

    def answers_small_requests(self) -> bool:
        plain = self.client.post("/plain", b"body")
        return (plain.status, plain.body) == (200, b"4") and self.client.is_healthy()


def _is_server(command: str) -> bool:
    return command.startswith("qserve gateway ")


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(fields.get("VmRSS", "0 kB").split()[0]) * 1024
    return 0


@pytest.fixture(scope="module")
def gateway(started: Started) -> Iterator[Gateway]:
    wanted = 4096
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, usual[1]), usual[1]))
    qserve.run(Plain.bind(), name="plain", route_prefix="/plain")
    qserve.run(Plain.bind(), name="other", route_prefix="/other")
    with InputNode() as value:
        driver = DAGDriver.bind(count.bind(value), http_adapter=json_request)
    qserve.run(driver, name="documents", route_prefix="/documents")
    yield Gateway(started)
    resource.setrlimit(resource.RLIMIT_NOFILE, usual)


@pytest.fixture
def watched(gateway: Gateway) -> Iterator[Watched]:
    """Watch the gateway during one test: it must stay small, go on answering, and give its memory back."""
    assert gateway.answers_small_requests()
    usual = gateway.resident()
    with Watched(gateway) as watched:
        yield watched
    assert watched.peak < ALLOWED, f"{watched.peak // MIB} MB"
    assert watched.answered
    wait_until(lambda: gateway.resident() < usual + 40 * MIB, description="the memory is given back")
    assert gateway.client.post("/plain", b"x" * MIB).body == str(MIB).encode()


class Watched:
    """Asks a gateway small questions, and notes its memory, for as long as a test lasts."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.sockets = contextlib.ExitStack()
        self.peak = self.answered = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=act) for act in (self._watch, self._ask)]

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.peak = max(self.peak, self.gateway.resident())

    def _ask(self) -> None:
        while not self._over.wait(0.05):
            self.answered += self.gateway.answers_small_requests()

    def connect(self, sent: bytes) -> socket.socket:
        """Return a connection on which this was sent, or as much of it as the gateway wanted."""
        sock = self.sockets.enter_context(socket.socket())
        sock.settimeout(20)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # what is not read must stay in the gateway
        sock.connect(self.gateway.client.address)
        with contextlib.suppress(ConnectionError):
            sock.sendall(sent)
        return sock

    def __enter__(self) -> Watched:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.sockets.close()
        self._over.set()
        for thread in self._threads:
            thread.join()


def status_of(sock: socket.socket) -> int:
    """Return the status of the response that has arrived on a connection; 0 if there is none yet."""
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        return int(sock.recv(12, socket.MSG_PEEK).partition(b" ")[2] or 0)
    return 0


@pytest.mark.row("F43")
# tests/gateway/test_in_flight.py has what each may hold
@pytest.mark.parametrize("form", [pytest.param("announced", marks=pytest.mark.long), "chunked"])
def test_clients_that_never_finish_their_bodies_cannot_fill_the_memory(watched: Watched, form: str) -> None:
    usual = watched.gateway.resident()
    head, body = HEADS[form], b"x" * (BODY - 1)
    clients = [watched.connect(head + body) for _ in range(30)]

    assert {status_of(sock) for sock in clients} <= {0, 408}  # 408 on a machine where all this takes 15 s
    assert watched.peak < usual + 100 * MIB, "they are stored as they come"


@pytest.mark.long  # tests/gateway/test_in_flight.py has what each may hold
def test_bodies_that_are_all_complete_at_once_are_all_served(watched: Watched) -> None:
    length = BODY - MIB
    head = f"{_POST}Content-Length: {length}\r\nConnection: close\r\n\r\n".encode()
    clients = [watched.connect(head + b"x" * (length - 1)) for _ in range(20)]
    for sock in clients:
        sock.sendall(b"x")

    for sock in clients:
        assert read_all(sock).endswith(str(length).encode())


@pytest.mark.row("F43")
# a connection that is kept has the same limits, and one more
@pytest.mark.parametrize("is_kept", [pytest.param(False, marks=pytest.mark.long), True])
def test_clients_that_do_not_read_large_answers_cannot_fill_the_memory_and_get_them_in_the_end(
    watched: Watched, is_kept: bool
) -> None:
    usual, client, path = watched.gateway.resident(), watched.gateway.client, "/plain/large"
    if is_kept:
        path = client.get(path, Prefer="respond-async").headers["location"]
        wait_until(lambda: client.get(path).status == 200, description="the answer is stored", timeout_s=30)
    get = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    clients = [watched.connect(get) for _ in range(40)]
    wait_until(lambda: all(map(status_of, clients)), description="each has the beginning of its answer")
    assert watched.peak < usual + 100 * MIB, "they are sent from the store"

    with ThreadPoolExecutor(4) as readers:
        answers = list(readers.map(read_all, clients))

    assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * 40
    assert all(len(answer) > LARGE_ANSWER for answer in answers)


@pytest.mark.long  # tests/gateway/test_in_flight.py has what streams may hold
def test_clients_that_do_not_read_streams_cannot_fill_the_memory(watched: Watched) -> None:
    get = b"GET /plain/stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    clients = [watched.connect(get) for _ in range(40)]
    wait_until(lambda: all(status_of(sock) for sock in clients), description="streams have begun")
    seen = watched.answered
    wait_until(lambda: watched.answered > seen + 15, description="others are answered")


def read_all(sock: socket.socket) -> bytes:
    """Return all that comes on a connection up to its end."""
    sock.settimeout(40)
    received = bytearray()
    while piece := sock.recv(MIB):
        received += piece
    return bytes(received)


# -- at each limit, and one beyond ---------------------------------------------------------------------


def _nested(levels: int) -> bytes:
    """A document so deep that is large enough for the process that parses."""
    return b'["' + b"x" * MIB + b'",' + b"[" * (levels - 1) + b"]" * levels


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),  # 235 MB of bodies, which all processes that collect tests would make and keep
    [
        ("/plain", lambda: b"x" * (10 * BODY), 200, ""),
        ("/plain", lambda: b"x" * (10 * BODY + 1), 413, "body_too_large"),
        ("/documents", lambda: b"[" + b" " * (BODY - 2) + b"]", 200, ""),
        ("/documents", lambda: b"[" + b" " * (BODY - 1) + b"]", 413, "body_too_large"),
        ("/documents", lambda: b'"' + b"x" * (BODY - 2) + b'"', 200, ""),
        ("/documents", lambda: _nested(64), 200, ""),
        ("/documents", lambda: _nested(65), 400, "too_deep"),
        ("/documents", lambda: b"[" + b"1," * 999_999 + b"1]", 200, ""),
        ("/documents", lambda: b"[" + b"1," * 1_000_000 + b"1]", 400, "too_many_items"),
        ("/documents", lambda: b" " * MIB, 400, "empty_body"),
        ("/plain/answer?length=104857600", lambda: b"", 200, ""),
    ],
    ids=range(11),
)
def test_what_is_at_a_limit_is_served_and_what_is_beyond_it_is_refused_by_name(
    gateway: Gateway, path: str, body: Callable[[], bytes], status: int, code: str
) -> None:
    answer = gateway.client.post(path, body())
    assert answer.status == status, answer.body[:500]
    assert not code or answer.code == code


# -- places ----------------------------------------------------------------------------------------


def test_a_route_with_more_requests_than_places_leaves_the_other_routes_theirs(
    gateway: Gateway, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    hold = f"GET /plain/hold?gate={gate} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(530):
            sock = stack.enter_context(socket.create_connection(gateway.client.address, timeout=20))
            sock.sendall(hold)
            clients.append(sock)
        try:
            refused = gateway.client.post("/plain", b"body")
            others = [gateway.client.post("/other", b"body") for _ in range(20)]
            assert gateway.client.is_healthy()
        finally:
            gate.touch()
        answers = [read_all(sock) for sock in clients]

    assert (refused.status, refused.code) == (503, "route_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert "/plain" in refused.error["message"]
    assert [answer.status for answer in others] == [200] * 20
    assert sum(b" 200 " in answer[:15] for answer in answers) in (256, 512)  # other tests may have used other routes
    assert all(b" 200 " in answer[:15] or b"route_full" in answer for answer in answers)


# -- the time of the loop --------------------------------------------------------------------------


def _objects(count: int) -> bytes:
    return b"[" + b",".join([b'{"a":1,"b":2}'] * count) + b"]"


def _documents() -> dict[str, tuple[bytes, int]]:
    """Documents of about the largest size, each with its length in items."""
    return {
        "small objects": (_objects(330_000), 330_000),
        "many keys": (json.dumps(dict.fromkeys(map(str, range(400_000)), 1)).encode(), 400_000),
        "empty lists": (b"[" + b"[]," * 999_000 + b"1]", 999_001),
        "one long text": (b'"' + b"x" * (BODY - 16) + b'"', BODY - 16),
    }


def _refused() -> dict[str, tuple[bytes, str]]:
    """Documents that are refused, each with the error's code."""
    twice = b'{"a":1,' + _objects(300_000).strip(b"[]").replace(b'{"a":1,"b":2}', b'"b":2') + b"}"
    return {
        "too deep": (b"[" * 5 * MIB, "too_deep"),
        "a key twice": (twice, "duplicate_key"),
        "cut off": (_objects(330_000)[:-1], "invalid_json"),
        "too many": (b"[" + b"1," * 1_000_000 + b"1]", "too_many_items"),
    }


@pytest.mark.long  # beside other tests it would measure them
def test_large_json_holds_nobody_else_up(gateway: Gateway) -> None:
    client, documents, refused = gateway.client, _documents(), _refused()
    assert client.post("/documents", _objects(10_000)).body == b"10000"  # the process that parses is there now
    usual = _longest(gateway, lambda: time.sleep(1))

    def send_all() -> None:
        for body, length in documents.values():
            answer = client.post("/documents", body)
            assert (answer.status, answer.body) == (200, str(length).encode()), answer.text
        for body, code in refused.values():
            answer = client.post("/documents", body)
            assert (answer.status, answer.code) == (400, code)

    longest = _longest(gateway, send_all)
    assert longest < usual + 0.25


def _longest(gateway: Gateway, act: Callable[[], None]) -> float:
    """Return the seconds that the slowest of many small requests took while something else went on."""
    over, took = threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            began = time.perf_counter()
            assert gateway.client.get("/-/routes").status == 200
            took.append(time.perf_counter() - began)

    asker = threading.Thread(target=ask)
    asker.start()
    act()
    over.set()
    asker.join()
    return max(took)
