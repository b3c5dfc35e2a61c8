"""Secrets are nowhere to be read: canaries are planted, everything is made to fail, and everything said is searched.

The roles run as processes of their own against a broker with a password, at the level ``debug``. Only what user
code put into its own exception may be seen again, and only where that error is meant to be seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgpack
import pytest
from http_client import Client
from hypothesis import given
from hypothesis import strategies as st
from processes import Process, Site, free_port, is_alive, is_open, new_site, wait_until

from qserve.broker.connection import connect
from qserve.exceptions import QserveException
from qserve.machine.embedded_broker import EmbeddedBroker, find_server
from qserve.wire.envelope import Header

# where each is read, its own test looks for it: tests/broker/test_address.py, tests/base/test_settings.py,
# tests/gateway/test_access.py, tests/machine/test_running.py
IN_FULL = pytest.mark.long
CANARY = "s3cr3t-CANARY-"
PASSWORD, WRONG, KEY, OLD_KEY, CLOUD, HEADER, BODY = (
    CANARY + name for name in ("password", "wrong", "key", "old-key", "cloud", "header", "body")
)
RAISED, BUILT = CANARY + "raised", CANARY + "built"
NOWHERE = (PASSWORD, WRONG, KEY, OLD_KEY, CLOUD, HEADER, BODY)

APP = """
import ctypes
import qserve
from qserve import DAGDriver, InputNode
from qserve.http_adapters import json_request

MARK = "s3cr3t-" + "CANARY-"  # put together at run time: a traceback shows the source

@qserve.deployment
class Shop:
    async def __call__(self, request):
        what = request.url.path.rpartition("/")[2]
        body = await request.body()
        if what == "raise":
            raise LookupError(MARK + "raised")
        if what == "segfault":
            ctypes.string_at(0)
        if what == "lock":
            import threading
            return threading.Lock()
        return "thanks"

@qserve.deployment
def price(order):
    return order["price"] / 0

@qserve.deployment
class Broken:
    def __init__(self):
        raise LookupError(MARK + "built")

    def __call__(self):
        return None

with InputNode() as order:
    priced = DAGDriver.bind(price.bind(order), http_adapter=json_request)

shop = Shop.bind()
broken = Broken.bind()
"""

SEVERAL = """
import json, runpy, sys
module, commands, code = sys.argv[1], json.loads(sys.argv[2]), 0
for command in commands:
    sys.argv = [module, *command]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        code = end.code or code
sys.exit(code)
"""


class Stage:
    """The roles of one installation with a canary in every secret, and all that they say by any way.

    Parameters:
      site: Where they are started.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.said: dict[str, str] = {}
        self.logs: dict[str, Process] = {}
        site.write("shop.py", APP)
        self.port, self._broker_port = free_port(), free_port()
        # by a file, since what is in an argument everybody can read
        site.write("broker.conf", f"port {self._broker_port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\nsave ''\n")
        self.broker = site.start([find_server(), str(site.folder / "broker.conf"), "--dir", str(site.folder)])
        wait_until(lambda: is_open(self._broker_port), description="the broker listens")

    def environment(self, password: str = PASSWORD) -> dict[str, str]:
        return {
            "QSERVE_BROKER_URL": f"redis://:{password}@127.0.0.1:{self._broker_port}/0",
            "QSERVE_SECRET_KEY": KEY,
            "QSERVE_ACCEPTED_KEYS": OLD_KEY,
            "AWS_SECRET_ACCESS_KEY": CLOUD,
            "QSERVE_LOG_LEVEL": "debug",
            "QSERVE_ACCESS_LOG": "1",
            "QSERVE_SHOW_ERRORS": "1",
        }

    def start(self, name: str, *command: str, module: str = "qserve", password: str = PASSWORD) -> Process:
        """Start a role; what it writes is looked at when everything is over."""
        process = self.site.start([sys.executable, "-m", module, *command], env=self.environment(password))
        self.logs[name] = process
        return process

    def start_several(self, name: str, module: str, commands: list[list[str]]) -> Process:
        """Start a process that runs commands one after the other, and fails if one of them does."""
        self.logs[name] = process = self.site.start(
            [sys.executable, "-c", SEVERAL, module, json.dumps(commands)], env=self.environment()
        )
        return process

    def finish(self, name: str, *command: str, module: str = "qserve", password: str = PASSWORD) -> int:
        return self.start(name, *command, module=module, password=password).wait()

    def ask(self, name: str, method: str, path: str, body: str = BODY, headers: Mapping[str, str] | None = None) -> int:
        """Send a request with canaries in its header and body, and keep the whole answer."""
        told = {"Authorization": f"Bearer {HEADER}", **(headers or {})}
        answer = Client(self.port).send(method, path, body.encode(), **told)
        self.said[name] = f"{answer.headers}\n{answer.text}"
        return answer.status

    def serves(self, path: str) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("first answers", "GET", path) == 200
        return False

    def note_command_lines(self, when: str) -> None:
        self.said[f"command lines {when}"] = "\n".join(self.site.processes().values())

    def everything(self) -> dict[str, str]:
        """All that was said, by the name of who said it."""
        return self.said | {f"output of {name}": process.output for name, process in self.logs.items()}


@pytest.fixture(scope="module")
def said() -> Iterator[dict[str, str]]:
    """Every role starts, serves, fails in many ways, and loses its broker."""
    with new_site() as site:
        stage = Stage(site)
        _serve_and_fail(stage)
        _poison(stage)
        _inspect(stage)
        _refuse(stage)
        _lose_the_broker(stage)
        for process in stage.logs.values():
            process.stop()
        yield stage.everything()


def _serve_and_fail(stage: Stage) -> None:
    stage.start("worker", "worker")
    stage.start("gateway", "gateway", "--port", str(stage.port))
    assert stage.finish("deploy", "deploy", "shop:shop", "--route-prefix", "/shop") == 0
    assert (
        stage.finish("deploy of a graph", "deploy", "shop:priced", "--name", "price", "--route-prefix", "/price") == 0
    )
    assert stage.finish("deploy that fails", "deploy", "shop:broken", "--name", "broken") == 1
    wait_until(lambda: stage.serves("/shop"), description="the shop answers")
    stage.note_command_lines("while it serves")

    assert stage.ask("user code raises", "POST", "/shop/raise") == 500
    assert stage.ask("user code crashes", "POST", "/shop/segfault") == 500
    assert stage.ask("no result", "POST", "/shop/lock") == 500
    order = json.dumps({"price": 1, "card": BODY})
    assert stage.ask("a step raises", "POST", "/price", order) == 500
    assert stage.ask("no JSON", "POST", "/price", f'{{"card": "{BODY}"') == 400
    assert stage.ask("a key twice", "POST", "/price", f'{{"a": "{BODY}", "a": "{BODY}"}}') == 400
    assert stage.ask("no deadline", "POST", "/shop", headers={"X-Request-Timeout-Seconds": CANARY}) == 400
    assert stage.ask("no path", "POST", "/nowhere") == 404
    assert stage.ask("a query", "GET", f"/shop?token={HEADER}") == 200


def _poison(stage: Stage) -> None:
    """Messages that nobody can read, put into every queue by hand."""
    whole = Header("a" * 32, "default", None, 2**42).encode()
    client = connect(stage.environment()["QSERVE_BROKER_URL"])
    with contextlib.closing(client):
        queues = [queue for app in ("default", "price") for queue in client.scan_iter(f"{{qserve}}:q:{app}:*")]
        assert len(queues) == 2
        for queue in queues:
            client.xadd(queue, {"h": BODY, "s": "__call__"})
            client.xadd(queue, {"h": whole + BODY.encode(), "s": "__call__"})
            client.xadd(queue, {"h": whole, "s": "nobody", "0": msgpack.packb(BODY) + b"\xc1"})
            client.xadd(queue, {"h": whole, "s": "__call__", "0": msgpack.packb(BODY) + BODY.encode()})
            client.xadd(queue, {BODY: BODY})
        wait_until(lambda: not any(map(client.xlen, queues)), description="all are out of the way")


def _inspect(stage: Stage) -> None:
    assert stage.ask("routes", "GET", "/-/routes") == 200
    assert stage.ask("health", "GET", "/-/healthz") == 200
    pictures = [["graph", "shop:priced", "--format", form] for form in ("dot", "mermaid", "svg", "json")]
    shown = [["status"], ["status", "--json"], ["dlq", "list"], ["dlq", "list", "--json"], *pictures]
    asked = ["ping", "stats", "conf", "report", "active", "registered"]
    celery = [["-A", "qserve_workers.app", "inspect", what, "--timeout", "1"] for what in asked]
    running = stage.start_several("commands", "qserve", shown)
    others = stage.start_several("doctors", "qserve", [["doctor"], ["doctor", "--json"]])
    inspecting = stage.start_several("celery", "celery", [*celery, ["-A", "qserve_workers.app", "report"]])
    assert running.wait() == 0, running.output
    others.wait()
    inspecting.wait()


def _refuse(stage: Stage) -> None:
    none = stage.environment() | {"QSERVE_BROKER_URL": f"redis://:{PASSWORD}/@127.0.0.1:1/0"}
    for command in (["worker"], ["deploy", "shop:shop"], ["status"], ["doctor"]):
        refused = stage.start(f"{command[0]}, wrong password", *command, password=WRONG)
        unknown = stage.logs[f"{command[0]}, address that is none"] = stage.site.qserve(*command, env=none)
        assert (refused.wait(), unknown.wait()) == (1, 1), refused.output + unknown.output
    gateway = stage.start("gateway, wrong password", "gateway", "--port", str(free_port()), password=WRONG)
    gateway.wait_for("password")
    stage.logs["gateway, address that is none"] = stage.site.qserve("gateway", env=none)
    stage.logs["gateway, address that is none"].wait_for("not a broker address")


def _lose_the_broker(stage: Stage) -> None:
    os.kill(stage.broker.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(stage.broker.pid), description="the broker is gone")
    wait_until(lambda: stage.ask("no broker", "POST", "/shop") == 503, description="the loss is noticed")
    assert stage.ask("health without broker", "GET", "/-/healthz") == 503
    assert stage.finish("status without broker", "status") == 1
    stage.logs["worker"].wait_for("the broker cannot be reached")
    stage.note_command_lines("without broker")


@IN_FULL
@pytest.mark.timeout(300)
@pytest.mark.parametrize("canary", NOWHERE)
def test_a_secret_is_nowhere_to_be_read(said: dict[str, str], canary: str) -> None:
    found = {name: _around(text, canary) for name, text in said.items() if canary in text}
    assert not found


@IN_FULL
@pytest.mark.timeout(300)
def test_what_user_code_raised_is_seen_where_its_error_is_meant_to_be_seen(said: dict[str, str]) -> None:
    def seen(canary: str) -> set[str]:
        return {name for name, text in said.items() if canary in text}

    assert seen(RAISED) == {"user code raises", "output of worker", "output of gateway"}
    assert seen(BUILT) == {"output of deploy that fails"}


@IN_FULL
@pytest.mark.timeout(300)
def test_everything_was_looked_at(said: dict[str, str]) -> None:
    logged = said["output of worker"] + said["output of gateway"]
    for what in (
        "LookupError",
        "ZeroDivisionError",
        "SIGSEGV",
        "ResultNotSerialisable",
        "unreadable message",
        "DEBUG",
        "GET /shop 200",
    ):
        assert what in logged
    assert "cannot be read" in said["output of commands"]
    assert "pong" in said["output of celery"]
    assert "qserve gateway" in said["command lines while it serves"]


@given(st.text(st.characters(exclude_categories=["C"]), max_size=20), st.text(max_size=20))
def test_an_address_that_is_none_is_refused_without_its_password(before: str, after: str) -> None:
    for url in (
        f"redis://{before}:{CANARY}{after}@127.0.0.1:none/0",
        f"redis://127.0.0.1:none/0?password={before}{CANARY}{after}",
        f"redis://:{CANARY}/{after}@127.0.0.1/0",
        f"http://user:{CANARY}{after}@127.0.0.1/0",
    ):
        try:
            connect(url).close()
        except QserveException as error:
            chain = f"{error} {error.__cause__} {error.__context__}"
            assert CANARY not in str(error), chain


def test_the_embedded_broker_knows_nothing_of_its_owners_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CLOUD)
    monkeypatch.setenv("QSERVE_SECRET_KEY", KEY)
    broker = EmbeddedBroker()
    try:
        broker.wait_ready()
        assert CANARY not in (Path("/proc") / str(broker.process.pid) / "environ").read_bytes().decode(errors="replace")
    finally:
        broker.stop()


def _around(text: str, canary: str) -> str:
    place = text.index(canary)
    return text[max(0, place - 200) : place + 100]
