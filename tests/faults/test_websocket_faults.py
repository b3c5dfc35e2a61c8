"""WebSockets whose replica, gateway or broker ends: both sides hear of it, and no message is lost without a word."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from http_client import Client
from processes import PATIENCE_S, Serving, Site, free_port, new_site, processes_of, wait_until
from rows import row
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

PROGRAM = """
import json, os
from pathlib import Path
from fastapi import FastAPI, WebSocket
import qserve as serve

web = FastAPI()
FOLDER = Path(os.environ["NOTES"])


@serve.deployment(max_ongoing_requests=20, graceful_shutdown_timeout_s=6, max_retries=2)
@serve.ingress(web)
class Api:
    @web.websocket("/echo")
    async def echo(self, websocket: WebSocket, name: str):
        await websocket.accept()
        await websocket.send_json([os.getpid(), "VERSION"])
        while (message := await websocket.receive())["type"] == "websocket.receive":
            await websocket.send_text(message["text"])
        with (FOLDER / name).open("a") as file:
            file.write(json.dumps([message["code"], message["reason"]]) + "\\n")


app = Api.bind()
"""
SLOW_S = PATIENCE_S


@pytest.fixture
def site() -> Iterator[Site]:
    with new_site() as site:
        yield site


@pytest.fixture
def serving(site: Site) -> Callable[..., Serving]:
    def start(*options: str) -> Serving:
        notes = site.folder / "notes"
        notes.mkdir()
        folder = site.write("echoes.py", PROGRAM)
        return site.run("echoes:app", *options, cwd=folder, env={"NOTES": str(notes)})

    return start


def opened(serving: Serving, name: str) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{serving.port}/echo?name={name}", open_timeout=20, close_timeout=20, legacy=True)


def closed_with(one: ClientConnection, timeout_s: float = SLOW_S) -> int:
    with pytest.raises(ConnectionClosed):
        while True:
            one.recv(timeout_s)
    return one.protocol.close_code or 0


def said(site: Site, name: str) -> list[Any]:
    """What the application has heard at the end of its sessions of this name."""
    path = site.folder / "notes" / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def talk(one: ClientConnection, text: str) -> None:
    one.send(text)
    assert one.recv(SLOW_S) == text


@row("F60")
def test_a_replica_that_is_killed_closes_its_sessions_with_1012_and_none_runs_again(
    site: Site, serving: Callable[..., Serving]
) -> None:
    running = serving()
    one = opened(running, "first")
    pid, _ = json.loads(one.recv(SLOW_S))
    talk(one, "before")
    os.kill(pid, signal.SIGKILL)

    assert closed_with(one) == 1012

    another = opened(running, "second")
    assert json.loads(another.recv(SLOW_S))[0] != pid
    talk(another, "after")
    another.close()
    wait_until(lambda: said(site, "second") == [[1000, ""]], description="the other session has ended")
    assert said(site, "first") == []


@row("F60")
def test_a_gateway_that_is_killed_is_missed_by_its_sessions(site: Site, serving: Callable[..., Serving]) -> None:
    running = serving()
    one = opened(running, "first")
    one.recv(SLOW_S)
    (gateway,) = gateways(site)
    os.kill(gateway, signal.SIGKILL)

    assert closed_with(one) in (0, 1006)
    wait_until(
        lambda: said(site, "first") == [[1006, "the gateway is gone"]],
        description="the application has heard it",
        timeout_s=SLOW_S,
    )


@row("F60")
def test_a_gateway_that_ends_closes_its_sessions_with_1012(site: Site, serving: Callable[..., Serving]) -> None:
    running = serving()
    one = opened(running, "first")
    one.recv(SLOW_S)
    (gateway,) = gateways(site)
    os.kill(gateway, signal.SIGTERM)

    assert closed_with(one) == 1012
    wait_until(lambda: said(site, "first") == [[1012, "the gateway ends"]], description="the application has heard it")


def gateways(site: Site) -> list[int]:
    return [pid for pid, title in processes_of(site.mark, site.folder).items() if "gateway server" in title]


@row("F61")
def test_a_broker_that_is_restarted_costs_no_message_without_a_word(
    site: Site, serving: Callable[..., Serving]
) -> None:
    port, data = free_port(), site.folder / "data"
    data.mkdir()
    options = ("--appendonly", "yes", "--appendfsync", "always", "--dir", str(data))
    broker = site.start_broker(port, *options)
    running = serving("--broker", f"redis://127.0.0.1:{port}/0")
    sessions = [opened(running, f"session-{number}") for number in range(8)]
    for one in sessions:
        one.recv(SLOW_S)
    outcomes: list[Any] = [None] * len(sessions)
    is_back = threading.Event()
    talking = [
        threading.Thread(target=keep_talking, args=(number, one, outcomes, is_back))
        for number, one in enumerate(sessions)
    ]
    for thread in talking:
        thread.start()
    broker.signal(signal.SIGKILL)
    broker.wait()
    site.start_broker(port, *options)
    is_back.set()
    for thread in talking:
        thread.join(SLOW_S)

    assert all(outcome == "whole" or outcome == 1012 for outcome in outcomes), outcomes
    wait_until(lambda: Client(running.port).get("/-/healthz").status == 200, description="the gateway is healthy")
    another = opened(running, "another")
    another.recv(SLOW_S)
    talk(another, "after")
    another.close()


def keep_talking(number: int, one: ClientConnection, outcomes: list[Any], is_back: threading.Event) -> None:
    """Talk until a while after the broker is back; every answer must come, and in its order."""
    count, left = 0, 20
    try:
        while left:
            talk(one, f"message {count}")
            count += 1
            left -= is_back.is_set()
        outcomes[number] = "whole"
    except ConnectionClosed:
        outcomes[number] = one.protocol.close_code
    except BaseException as error:
        outcomes[number] = f"{count}: {error!r}"
    one.close()


@row("F61")
def test_a_session_of_an_old_version_goes_on_until_its_replica_has_drained(
    site: Site, serving: Callable[..., Serving]
) -> None:
    running = serving()
    one = opened(running, "old")
    one.recv(SLOW_S)
    (site.folder / "echoes.py").write_text(PROGRAM.replace("VERSION", "new"))
    deploy = site.qserve("deploy", "echoes:app", cwd=site.folder, env=environment_of(running, site))

    assert deploy.wait(SLOW_S) == 0, deploy.output
    another = opened(running, "new")
    assert json.loads(another.recv(SLOW_S))[1] == "new"
    assert closed_with(one) == 1012
    wait_until(lambda: said(site, "old") == [[1012, "this replica ends"]], description="the application has heard it")
    talk(another, "after")
    another.close()


def environment_of(running: Serving, site: Site) -> dict[str, str]:
    """What a command needs to reach the broker of `qserve run`."""
    environ = Path(f"/proc/{gateways(site)[0]}/environ").read_bytes().split(b"\0")
    pairs = dict(line.decode().split("=", 1) for line in environ if line.startswith(b"QSERVE_"))
    return {name: pairs[name] for name in pairs if name.startswith(("QSERVE_BROKER_URL", "QSERVE_SECRET_KEY"))} | {
        "NOTES": str(site.folder / "notes")
    }
