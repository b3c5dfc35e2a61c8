"""Requests with real processes: listed, shown, traced and cancelled by their commands."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from commands import typed
from http_client import Client
from processes import READY, Serving, Site, free_port, new_site, wait_until

pytestmark = pytest.mark.slow
PROGRAM = """
import asyncio
import os
import pathlib
import signal

import qserve
from qserve import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

HERE = pathlib.Path(__file__).parent


def is_first(name):
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@qserve.deployment
async def slow(x):
    while x == "wait" and not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    return x


@qserve.deployment(max_retries=1, retry_backoff_s=0.01)
def risky(x):
    if x == "retry" and is_first("retried"):
        raise LookupError("not yet")
    if x == "die" and is_first("died"):
        os.kill(os.getpid(), signal.SIGKILL)
    if x == "fail":
        raise LookupError("never")
    return x


@qserve.deployment
class Outer:
    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, request):
        return await (await self.inner.remote("asked"))


@qserve.deployment
class Inner:
    async def __call__(self, x):
        return x


with InputNode() as x:
    graph = DAGDriver.bind(risky.bind(slow.bind(x)), http_adapter=json_request)
handles = Outer.bind(Inner.bind())
"""
FILE = """
applications:
- {name: graph, route_prefix: /graph, import_path: "shop:graph"}
- {name: handles, route_prefix: /handles, import_path: "shop:handles"}
"""


class Shop:
    """A graph with a slow and a risky step, and an application whose code calls another deployment."""

    def __init__(self, site: Site) -> None:
        self.site, self.folder = site, site.write("shop.py", PROGRAM)
        site.write("shop.yaml", FILE)
        self.env = {"QSERVE_BROKER_URL": site.broker(), "QSERVE_SECRET_KEY": "the-key-of-this-test"}
        self.env["QSERVE_TRACE_SAMPLE"] = "0.001"  # the first request, and those that ask for it
        port = free_port()
        process = site.qserve("run", "shop.yaml", "--port", str(port), cwd=self.folder, env=self.env)
        process.wait_for(READY)
        self.url = Serving(process, port).url

    def post(self, path: str, value: Any, client_id: str, **headers: str) -> int:
        named = {"X-Request-ID": client_id, "X-Qserve-Trace": "1", **headers}
        return Client(self.url).post(path, value, **named).status

    def run(self, *arguments: str, status: int = 0) -> str:
        """What `qserve requests` prints."""
        ended = typed("requests", *arguments, env=self.env)
        assert ended.exit_code == status, ended.output
        return ended.stdout or ended.stderr

    def read(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with new_site() as site:
        yield Shop(site)


def outcomes(found: dict[str, Any], deployment: str) -> list[tuple[int, str]]:
    return [(one["attempt"], one["outcome"]) for one in found["tries"] if one["deployment"] == deployment]


def test_the_waterfall_has_each_step_with_its_waits_and_tries(shop: Shop) -> None:
    assert shop.post("/graph", "retry", "retried") == 200
    assert shop.post("/graph", "die", "taken-over") == 200

    retried, taken_over = shop.read("trace", "retried"), shop.read("trace", "taken-over")

    assert outcomes(retried, "slow") == [(1, "done")]
    assert outcomes(retried, "risky") == [(1, "retried"), (2, "done")]
    assert outcomes(taken_over, "risky") == [(1, "lost"), (2, "done")]
    assert [one["is_taken_over"] for one in taken_over["tries"]] == [False, False, True]
    request = retried["request"]
    assert (request["state"], request["application"], request["is_traced"]) == ("done", "graph", True)
    for one in (*retried["tries"], *taken_over["tries"]):
        assert one["outcome"] == "lost" or one["replica"].startswith(one["deployment"])
        assert min(one["queued_s"], one["run_s"], one["forward_s"]) >= 0
        assert one["at_s"] + one["queued_s"] + one["run_s"] <= request["duration_s"] + 60
    first, *_, last = retried["tries"]
    assert first["at_s"] + first["queued_s"] + first["run_s"] <= last["at_s"] + 0.001
    picture = shop.run("trace", "taken-over")
    assert "█" in picture
    assert "lost, try 1" in picture and "done, after a takeover, try 2" in picture
    assert f"version {request['version']}\n" in picture


def test_calls_by_handle_are_below_the_request_whose_code_made_them(shop: Shop) -> None:
    assert shop.post("/handles", None, "by-handle") == 200

    (inner,) = shop.read("trace", "by-handle")["inner"]

    assert outcomes(inner, "Inner") == [(1, "done")]
    shown = shop.site.qserve("requests", "trace", "by-handle", env={**shop.env, "PYTHONIOENCODING": "utf-8"})
    assert shown.wait() == 0, shown.output
    assert "> Inner" in shown.stdout


def test_an_open_request_is_listed_shown_and_cancelled(shop: Shop) -> None:
    statuses: list[int] = []
    caller = threading.Thread(target=lambda: statuses.append(shop.post("/graph", "wait", "held")))
    caller.start()
    try:
        wait_until(lambda: "held" in shop.run("list", "--state", "running"), description="its code runs")
        (found,) = shop.read("list", "graph", "--state", "running")
        assert (found["client_id"], found["calls"][0]["deployment"]) == ("held", "slow")
        slowest = lambda: shop.run("list", "--slowest", "--limit", "1")  # noqa: E731
        wait_until(lambda: found["request_id"] in slowest(), description="none has taken longer")
        assert shop.read("list", "handles", "--state", "running") == []
        assert shop.read("get", "held")["deadline"] > found["began"]
        assert "slow 0 running since" in shop.run("get", found["request_id"])
        assert outcomes(shop.read("trace", "held"), "slow") == [(1, "running")]

        assert shop.run("cancel", "held").endswith("is cancelled\n")
        caller.join(60)
    finally:
        (shop.folder / "go").touch()
    assert statuses == [499] or statuses == [409] or statuses[0] >= 400
    assert shop.read("get", found["request_id"])["state"] == "cancelled"
    assert shop.read("cancel", found["request_id"]) == {found["request_id"]: False}


def test_a_request_that_failed_is_found_with_its_error(shop: Shop) -> None:
    assert shop.post("/graph", "fail", "failed") == 500

    (found,) = [one for one in shop.read("list", "--state", "failed") if one["client_id"] == "failed"]

    assert (found["error"], found["is_dead_letter"]) == ("LookupError: never", True)
    assert 'raise LookupError("never")' in shop.run("get", "failed")
    assert outcomes(shop.read("trace", "failed"), "risky") == [(1, "retried"), (2, "failed")]


def test_what_is_not_there_is_refused_in_one_line(shop: Shop) -> None:
    for verb in ("get", "trace", "cancel"):
        assert shop.run(verb, "\x1b]0;no\x07", status=2).startswith("Error: request '\\x1b]0;no\\x07' is not known")
    assert "is not deployed" in shop.run("list", "shp", status=2)
    assert "Invalid value for '--state'" in shop.run("list", "--state", "lost", status=2)
