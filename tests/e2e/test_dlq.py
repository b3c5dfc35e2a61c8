"""Dead letters with real processes: listed, replayed and deleted by their commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from commands import typed
from http_client import Client
from processes import READY, Serving, Site, free_port, new_site, wait_until

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Ref

pytestmark = pytest.mark.slow
PROGRAM = """
import os
import pathlib
import signal

import qserve
from qserve import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

HERE = pathlib.Path(__file__).parent


@qserve.deployment
def double(x):
    return 2 * x


@qserve.deployment(max_retries=1, retry_backoff_s=0.01)
def risky(x):
    if not (HERE / "mended").exists():
        if x < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        raise LookupError("the model's file is missing")
    return x + 1


@qserve.deployment
def combine(left, right):
    with (HERE / "runs").open("a") as file:
        file.write("combine\\n")
    return [left, right]


with InputNode() as x:
    graph = DAGDriver.bind(combine.bind(double.bind(x), risky.bind(x)), http_adapter=json_request)
"""


class Shop:
    """A graph with one risky branch, served from a broker that the commands reach.

    Parameters:
      site: Where it runs.
    """

    def __init__(self, site: Site) -> None:
        self.site, self.folder = site, site.write("shop.py", PROGRAM)
        self.env = {"QSERVE_BROKER_URL": site.broker(), "QSERVE_SECRET_KEY": "the-key-of-this-test"}
        port = free_port()
        process = site.qserve("run", "shop:graph", "--port", str(port), cwd=self.folder, env=self.env)
        process.wait_for(READY)
        self.serving = Serving(process, port)
        self.client = connect(self.env["QSERVE_BROKER_URL"])
        self.plane = ClientPlane(Settings.from_env(self.env))

    def post(self, number: int) -> int:
        return Client(self.serving.url).post("/", number).status

    def dlq(self, *arguments: str) -> Result:
        return typed("dlq", *arguments, env=self.env)

    def letters(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.dlq("list", "--json").stdout)
        return found

    def result(self, request_id: str) -> Any:
        return Ref(request_id, self.plane).result(timeout_s=60)

    def mend(self) -> None:
        (self.folder / "mended").touch()


@pytest.fixture(scope="module")
def served() -> Iterator[Shop]:
    with new_site() as site:
        made = Shop(site)
        yield made
        made.plane.close()
        made.client.close()


@pytest.fixture
def shop(served: Shop) -> Iterator[Shop]:
    """The shop without dead letters, as it is before it is mended."""
    yield served
    served.dlq("purge", "--all")
    for name in ("mended", "runs"):
        (served.folder / name).unlink(missing_ok=True)


def runs(folder: Path) -> int:
    file = folder / "runs"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_dead_letter_is_listed_shown_and_replayed_and_answers_under_its_id(shop: Shop) -> None:
    assert shop.dlq("list").stdout == "there are no dead letters\n"
    assert shop.post(20) == 500

    (letter,) = shop.letters()
    assert (letter["why"], letter["app"]) == ("retries", "default")
    assert "LookupError: the model's file is missing" in letter["error"]
    shown = json.loads(shop.dlq("show", letter["request_id"], "--json").stdout)
    assert shown["payload"] == ["20"]
    assert 'raise LookupError("the model\'s file is missing")' in shown["traceback"]
    assert [event["what"] for event in shown["history"]] == ["LookupError: the model's file is missing"] * 2
    assert "traceback" in shop.dlq("show", letter["request_id"]).stdout

    shop.mend()
    replay = shop.site.qserve("dlq", "replay", letter["request_id"], env=shop.env)
    assert replay.wait() == 0, replay.output
    assert replay.stdout == f"{letter['request_id']} is running again\n"

    # the driver answers HTTP, so that is what is stored
    key = Keys().request(letter["request_id"])
    wait_until(lambda: shop.client.hget(key, "st") == b"d", description="the request is answered")
    assert b"[40,21]" in (shop.client.hget(key, "res") or b"")
    assert runs(shop.folder) == 1
    assert shop.letters() == []


def test_a_call_that_kills_its_replica_is_a_dead_letter_with_all_its_deaths(shop: Shop) -> None:
    assert shop.post(-1) == 500

    (letter,) = shop.letters()
    shown = json.loads(shop.dlq("show", letter["request_id"], "--json").stdout)

    assert shown["why"] == "deaths"
    assert [event["what"] for event in shown["history"]] == [f"its replica died ({n})" for n in (1, 2, 3)]
    assert shop.post(1) == 500  # the pool lives on


def test_all_of_them_may_be_replayed_or_deleted(shop: Shop) -> None:
    for number in (1, 2):
        shop.post(number)
    assert len(shop.letters()) == 2
    assert "pass the IDs of dead letters, or --all" in shop.dlq("replay").stderr

    shop.mend()
    assert shop.dlq("replay", "--all").stdout.count(" is running again\n") == 2
    wait_until(lambda: runs(shop.folder) == 2, description="both were run to their end")

    (shop.folder / "mended").unlink()
    shop.post(3)
    (left,) = shop.letters()
    answer = shop.dlq("purge", "f" * 32, left["request_id"])
    assert (answer.exit_code, answer.stdout) == (1, "deleted 1 dead letter\n")
    shop.post(3)
    assert shop.dlq("purge", "--all").stdout == "deleted 1 dead letter\n"
    assert shop.dlq("purge", "--all").stdout == "deleted 0 dead letters\n"
    assert shop.letters() == []


@pytest.mark.parametrize("command", ["show", "replay", "purge"])
def test_an_id_that_is_none_is_told_with_the_command_that_lists_them(shop: Shop, command: str) -> None:
    answer = shop.dlq(command, "f" * 32)

    assert answer.exit_code == 1
    assert answer.stdout == ""
    assert "there is no dead letter" in answer.stderr and "qserve dlq list" in answer.stderr
