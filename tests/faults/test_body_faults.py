"""Large bodies and answers of HTTP, while clients and gateways go away, and stores are full."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from http_client import Client
from memories import memory_of
from processes import Process, Site, free_port, wait_until
from roles import Roles
from rows import row

from qserve.broker.connection import connect

MIB = 1 << 20
DATA = os.urandom(8 * MIB)
SUM = hashlib.sha256(DATA).hexdigest()
SOURCE = """
import hashlib
import qserve
from starlette.requests import Request
from starlette.responses import Response

@qserve.deployment(max_ongoing_requests=50)
class Plain:
    async def __call__(self, request: Request):
        if "size" in request.query_params:
            return Response(b"x" * int(request.query_params["size"]))
        digest = hashlib.sha256()
        async for piece in request.stream():
            digest.update(piece)
        return digest.hexdigest()

app = Plain.bind()
"""
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
GET = b"GET /?size=%d HTTP/1.1\r\nHost: x\r\n\r\n"


class Served(Roles):
    """An application whose large values are in the broker, or in memory."""

    def __init__(self, site: Site, **env: str) -> None:
        port = free_port()
        self.broker = site.start_broker(port, "--appendonly", "no")
        url = f"redis://127.0.0.1:{port}/0"
        super().__init__(site, SOURCE, {"QSERVE_BROKER_URL": url, "QSERVE_LEASE_S": "2", **env})
        self.client: redis.Redis = connect(url)
        _, self.front = self.start()
        self.memory = memory_of(url)
        self.http = Client(self.port)

    def connect(self, sent: bytes) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        sock.sendall(sent)
        return sock

    def chunked(self) -> int:
        """How many chunks of values are in the broker, and how many of the values have no time to live."""
        return sum(int(self.client.hlen(key)) for key in self.keys())  # type: ignore[arg-type]

    def keys(self) -> list[bytes]:
        return list(self.client.scan_iter("*:y:*", count=1000))

    def files(self) -> list[Path]:
        """Values in memory."""
        return list((self.memory / "v").glob("*"))

    def used(self) -> int:
        """The bytes in memory, of values and of what is just stored."""
        found = {one.stat().st_ino: one.stat().st_blocks * 512 for one in self.memory.rglob("*")}
        return sum(found.values())

    def workers(self) -> list[int]:
        """The processes of the gateway that serve."""
        commands = self.site.processes()
        return [pid for pid, command in commands.items() if command.startswith("qserve gateway ")]


Serve = Callable[..., Served]


@pytest.fixture
def serve(site: Site) -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def serve_with(**env: str) -> Served:
            served = Served(site, **env)
            stack.callback(shutil.rmtree, served.memory, ignore_errors=True)
            stack.callback(served.client.close)
            return served

        yield serve_with


def kill(process: Process, pids: list[int]) -> None:
    for pid in (process.pid, *pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


IN_MEMORY = {"QSERVE_PAYLOADS": "memory,broker", "QSERVE_BROKER_EMBEDDED": "1"}


@row("F71")
def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_in_the_broker(serve: Serve) -> None:
    served = serve()
    sock = served.connect(HEAD % len(DATA) + DATA[: 4 * MIB])
    wait_until(lambda: served.chunked() >= 3, description="pieces of the body are in the broker")
    sock.close()
    wait_until(lambda: not served.keys(), description="they are removed")
    assert served.http.post("/", DATA).text == SUM
    wait_until(lambda: not served.keys(), description="and so is a body when its request has ended")


@row("F71")
@pytest.mark.parametrize("what", ["a body", "an answer"])
@pytest.mark.parametrize("place", [{}, IN_MEMORY], ids=["in the broker", "in memory"])
def test_a_gateway_that_is_killed_in_the_middle_leaves_nothing_for_long(
    serve: Serve, place: dict[str, str], what: str
) -> None:
    served = serve(**place)
    if what == "a body":
        sock = served.connect(HEAD % len(DATA) + DATA[: 4 * MIB])
        wait_until(lambda: served.used() > 3 * MIB if place else served.chunked() >= 3, description="it is on its way")
    else:
        sock = served.connect(GET % len(DATA))
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    kill(served.front, served.workers())
    sock.close()

    assert all(0 < int(served.client.pttl(key)) <= 600_000 for key in [*served.keys()])  # type: ignore[arg-type]
    served.front = served.gateway()
    wait_until(served.http.is_healthy, description="another gateway is healthy")
    assert served.http.post("/", DATA).text == SUM
    if place:
        wait_until(lambda: not served.files(), description="no value has a name", timeout_s=90)


@row("F72")
def test_a_body_that_finds_the_memory_full_half_way_goes_on_in_the_broker(serve: Serve) -> None:
    served = serve(**IN_MEMORY, QSERVE_SHM_LIMIT="3mb")
    sock = served.connect(HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked"))
    for begin in range(0, len(DATA), 100_000):
        piece = DATA[begin : begin + 100_000]
        sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
    sock.sendall(b"0\r\n\r\n")
    assert sock.makefile("rb").read(600).endswith(SUM.encode())
    sock.close()
    assert served.http.post("/", DATA).text == SUM
    assert len(served.http.get(f"/?size={5 * MIB}").body) == 5 * MIB
    wait_until(lambda: not served.keys() and not served.files(), description="nothing is left", timeout_s=90)


@row("F72")
def test_a_body_that_no_store_takes_is_503_and_smaller_ones_are_served(serve: Serve) -> None:
    served = serve()
    served.client.config_set("maxmemory", int(served.client.info("memory")["used_memory"]) + 4 * MIB)  # type: ignore[index]
    answer = served.http.post("/", DATA)
    assert (answer.status, answer.error["retryable"]) == (503, True)
    served.client.config_set("maxmemory", 0)
    wait_until(lambda: not served.keys(), description="its first pieces are removed")
    assert served.http.post("/", DATA).text == SUM
