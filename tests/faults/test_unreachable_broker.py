"""Roles that are started before their broker, or with an address that will never do."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from http_client import Client
from processes import Site, free_port, is_open, wait_until
from stacks import last

from qserve.broker.connection import connect

PASSWORD = "s3cr3t-CANARY"
KEY = "the-key-of-this-test"
APP = """
import qserve

@qserve.deployment
def hello(request):
    return "hello"

app = hello.bind()
"""
ENDING = {"worker": ["worker"], "run": ["run", "shop:app"], "deploy": ["deploy", "shop:app"]}
# each asks qserve/broker/doctor.py; the first test below does it in all three
IN_EVERY_ROLE = pytest.mark.parametrize("role", ENDING)
IN_ONE_ROLE = pytest.mark.parametrize(
    "role", ["worker", *(pytest.param(role, marks=pytest.mark.long) for role in ("run", "deploy"))]
)


@pytest.mark.row("F41")
@pytest.mark.slow
def test_a_broker_that_comes_up_later_is_waited_for_by_every_role_of_a_stack(site: Site) -> None:
    broker, port = free_port(), free_port()
    site.write("shop.py", APP)
    env = {"QSERVE_BROKER_URL": f"redis://:{PASSWORD}@127.0.0.1:{broker}/0", "QSERVE_SECRET_KEY": KEY}
    worker = site.qserve("worker", "shop:app", env=env, cwd=site.folder)
    gateway = site.qserve("gateway", "--port", str(port), env=env)
    wait_until(lambda: is_open(port), description="the gateway listens")
    client = Client(port)
    answer = client.get("/-/healthz")
    assert (answer.status, answer.code) == (503, "broker_unavailable")
    worker.wait_for("waiting for it")
    deploy = site.qserve("deploy", "shop:app", env=env, cwd=site.folder)
    last(1.0)
    assert all(process.exit_code() is None for process in (worker, gateway, deploy))
    assert client.get("/-/healthz").status == 503

    site.start_broker(broker, "--requirepass", PASSWORD)

    assert deploy.wait() == 0, deploy.output
    wait_until(lambda: client.get().text == "hello", description="the application answers")
    assert len([line for line in worker.output.splitlines() if "waiting" in line]) == 1
    for process in (worker, gateway, deploy):
        assert "Traceback" not in process.output
        assert PASSWORD not in process.output


def assert_ends_at_once(site: Site, role: str, url: str, what: str, password: str = PASSWORD) -> None:
    """Exit code 1 and one line that says what is wrong, and no attempt at what cannot come right."""
    site.write("shop.py", APP)
    env = {"QSERVE_BROKER_URL": url, "PORT": str(free_port()), "QSERVE_SECRET_KEY": KEY}
    port = ["--port", str(free_port())] if role == "run" else []
    process = site.qserve(*ENDING[role], *port, env=env, cwd=site.folder)
    assert process.wait() == 1, process.output
    (line,) = process.problems.strip().splitlines()
    assert line.startswith("Error: ")
    assert what in line
    assert password not in process.output
    assert "Traceback" not in process.output


@pytest.mark.row("F41")
@IN_EVERY_ROLE
def test_a_wrong_password_ends_a_role_at_once(site: Site, role: str) -> None:
    port = free_port()
    site.start_broker(port, "--requirepass", "another")
    assert_ends_at_once(site, role, f"redis://:{PASSWORD}@127.0.0.1:{port}/0", "refuses the password")


@pytest.mark.row("F41")
@IN_ONE_ROLE
def test_a_replica_ends_a_role_at_once(site: Site, role: str) -> None:
    port = free_port()
    site.start_broker(port, "--requirepass", PASSWORD, "--replicaof", "127.0.0.1 1")
    assert_ends_at_once(site, role, f"redis://:{PASSWORD}@127.0.0.1:{port}/0", "it is a replica of another server")


@IN_ONE_ROLE
def test_a_port_that_answers_tls_with_something_else_ends_a_role_at_once(site: Site, role: str) -> None:
    def serve(connection: socket.socket) -> None:
        with connection:
            connection.recv(1024)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with served(serve) as port:
        assert_ends_at_once(site, role, f"rediss://:{PASSWORD}@127.0.0.1:{port}/0", "no TLS connection to the broker")


@pytest.mark.row("F41")
def test_a_broker_without_tls_is_silent_and_the_message_says_what_that_may_mean(site: Site) -> None:
    port = free_port()
    site.start_broker(port, "--requirepass", PASSWORD)
    worker = site.qserve("worker", env={"QSERVE_BROKER_URL": f"rediss://:{PASSWORD}@127.0.0.1:{port}/0"})
    worker.wait_for("a server without TLS is silent like this: does this port have it?")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert PASSWORD not in worker.output


@contextlib.contextmanager
def served(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does this with each connection."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def old_server() -> Iterator[int]:
    """What answers as Redis 6.2 would."""
    info = "redis_version:6.2.14\r\nrole:master\r\nmaxmemory_policy:noeviction\r\nmaxmemory:0\r\naof_enabled:1\r\n"

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            while line := stream.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int(stream.readline()[1:])
                    words.append(stream.read(size + 2)[:-2].decode().upper())
                answer = {
                    "AUTH": "+OK\r\n",
                    "SELECT": "+OK\r\n",
                    "CLIENT": "+OK\r\n",
                    "INFO": f"${len(info)}\r\n{info}\r\n",
                    "TIME": f"*2\r\n${len(str(int(time.time())))}\r\n{int(time.time())}\r\n$1\r\n0\r\n",
                }.get(words[0], f"-ERR unknown command `{words[0]}`, with args beginning with: \r\n")
                stream.write(answer.encode())
                stream.flush()

    with served(serve) as port:
        yield port


@pytest.mark.row("F41")
@IN_ONE_ROLE
def test_a_server_that_is_too_old_ends_a_role_at_once(site: Site, role: str, old_server: int) -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:{old_server}/0"
    assert_ends_at_once(site, role, url, "redis 6.2.14 has no functions")


def test_a_gateway_goes_on_answering_that_it_cannot_serve_until_the_password_is_right(site: Site) -> None:
    broker, port = free_port(), free_port()
    site.start_broker(broker, "--requirepass", "another")
    url = f"redis://:{PASSWORD}@127.0.0.1:{broker}/0"
    gateway = site.qserve("gateway", "--port", str(port), env={"QSERVE_BROKER_URL": url, "QSERVE_SECRET_KEY": KEY})
    gateway.wait_for("refuses the password")
    assert Client(port).get("/-/healthz").status == 503
    assert gateway.stderr.count("refuses the password") == 1
    with contextlib.closing(connect(f"redis://:another@127.0.0.1:{broker}/0")) as client:
        client.config_set("requirepass", PASSWORD)
    wait_until(Client(port).is_up, description="it serves")
    assert PASSWORD not in gateway.output
    assert "Traceback" not in gateway.output
