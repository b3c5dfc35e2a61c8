"""What a request carries, followed through real processes: retries, lost replicas, dead letters and their replay."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from http_client import Client
from processes import QSERVE, READY, Serving, Site, free_port, new_site

from qserve.base.settings import Settings
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Ref

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
PROGRAM = """
import os
import pathlib
import signal

import qserve
from qserve import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

HERE = pathlib.Path(__file__).parent


def seen():
    context = qserve.get_request_context()
    return [context.tenant, context.headers.get("x-region"), context.traceparent[3:35], context.tracestate]


@qserve.deployment
def first(x):
    return {"what": x, "seen": [seen()]}


@qserve.deployment
class Inner:
    def look(self):
        return seen()


@qserve.deployment(max_retries=1, retry_backoff_s=0.01)
class Risky:
    def __init__(self, inner):
        self.inner = inner.options(use_new_handle_api=True)

    async def run(self, given):
        what, mark = given["what"], HERE / given["what"]
        if what in ("retry", "kill", "dead") and not mark.exists():
            if what != "dead":
                mark.touch()
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise LookupError("the model's file is missing")
        return {**given, "seen": [*given["seen"], seen(), await self.inner.look.remote()]}


@qserve.deployment
def last(given):
    return [*given["seen"], seen()]


with InputNode() as x:
    graph = DAGDriver.bind(last.bind(Risky.bind(Inner.bind()).run.bind(first.bind(x))), http_adapter=json_request)
"""


class Shop:
    """A graph of three steps, served over a broker that the commands reach."""

    def __init__(self, site: Site) -> None:
        self.folder = site.write("shop.py", PROGRAM)
        self.env = {"QSERVE_BROKER_URL": site.broker(), "QSERVE_SECRET_KEY": "the-key-of-this-test"}
        own = {"QSERVE_FORWARD_HEADERS": "X-Region", "QSERVE_TENANT_HEADER": "X-Tenant"}
        port = free_port()
        process = site.qserve("run", "shop:graph", "--port", str(port), cwd=self.folder, env={**self.env, **own})
        process.wait_for(READY)
        self.client = Client(Serving(process, port).url)

    def dlq(self, *arguments: str) -> str:
        env = {**os.environ, **self.env}
        done = subprocess.run([*QSERVE, "dlq", *arguments], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def send(self, what: str) -> Any:
        """Send a request of a tenant, in a trace."""
        headers = {"X-Tenant": "acme", "X-Region": "eu", "traceparent": PARENT, "tracestate": "a=1"}
        return self.client.send("POST", "/", what, **headers)


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with new_site() as site:
        yield Shop(site)


SEEN = [["acme", "eu", TRACE, "a=1"]] * 4


@pytest.mark.slow
@pytest.mark.parametrize("what", ["plain", "retry", "kill"])
def test_each_step_sees_what_the_request_carries_also_when_it_is_tried_again(shop: Shop, what: str) -> None:
    assert shop.send(what).json == SEEN


@pytest.mark.slow
def test_a_replay_carries_what_its_request_did(shop: Shop) -> None:
    assert shop.send("dead").status == 500
    (letter,) = json.loads(shop.dlq("list", "--json"))
    (shop.folder / "dead").touch()
    shop.dlq("replay", letter["request_id"])
    plane = ClientPlane(Settings.from_env(shop.env))
    rendered = Ref(letter["request_id"], plane)
    rendered.follow()
    assert rendered.done.wait(60)
    assert json.dumps(SEEN, separators=(",", ":")).encode() in rendered.outcome().payload
    plane.close()
