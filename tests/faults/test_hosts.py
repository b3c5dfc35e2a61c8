"""Two hosts, of which one vanishes with all that runs on it, and comes back."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from commands import told
from processes import new_site, wait_until
from roles import Roles
from rows import row
from stacks import children_of

from qserve.base.settings import Settings
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Call

SOURCE = """
import os, time
import qserve

@qserve.deployment(num_replicas=4, max_ongoing_requests=1)
class Model:
    def __call__(self, words):
        while words == "wait" and not os.path.exists("go"):
            time.sleep(0.01)
        return words

app = Model.bind()
"""
SHORT = "1 of 4 replicas have no place: each takes 1 place; free: 0 of 3 on a-"


class Hosts(Roles):
    """A broker, and workers that are hosts."""

    def status(self) -> Any:
        return json.loads(told("status", "--json", env=self.env))

    def model(self) -> Any:
        return self.status()["applications"]["default"]["deployments"]["Model"]

    def used(self) -> dict[str, int]:
        """How many replicas each host runs."""
        return {one["host"]: one["used"] for one in self.status()["hosts"].values()}


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with new_site() as site:
        yield Hosts(site, SOURCE, {"QSERVE_BROKER_URL": site.broker()})


@row("F57")
def test_what_a_host_ran_that_vanishes_runs_elsewhere_as_far_as_there_is_room_and_the_status_says_what_is_missing(
    hosts: Hosts,
) -> None:
    hosts.worker("--host", "a", "--places", "3")
    doomed = hosts.worker("--host", "b", "--places", "3")
    wait_until(lambda: hosts.used().keys() == {"a", "b"}, description="both offer places")
    deploy = hosts.command("deploy", "shop:app")
    assert deploy.wait() == 0, deploy.output
    wait_until(lambda: sum(hosts.used().values()) == 4 and hosts.used()["b"], description="both hosts run some of them")
    env = hosts.env
    plane = ClientPlane(Settings(broker_url=env["QSERVE_BROKER_URL"], secret_key=env["QSERVE_SECRET_KEY"].encode()))

    def ask(words: str) -> Any:
        return plane.submit(Call("default", "Model", "__call__", (words,)))

    held = [ask("wait") for _ in range(4)]
    wait_until(lambda: hosts.model()["running_calls"] == 4, description="each replica runs a call")
    for pid in (doomed.pid, *children_of(doomed.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    wait_until(lambda: SHORT in hosts.model()["message"], description="the status says what is missing")
    assert "start a `qserve worker` that has room" in hosts.model()["message"]
    more = [ask(f"{number}") for number in range(20)]
    hosts.site.write("go", "")
    assert [ref.result(60) for ref in held] == ["wait"] * 4
    assert [ref.result(60) for ref in more] == [f"{number}" for number in range(20)]
    wait_until(lambda: hosts.used()["a"] == 3, description="the other host is full")

    hosts.worker("--host", "b", "--places", "3")
    wait_until(lambda: sum(hosts.used().values()) == 4, description="all that is wanted runs again")
    wait_until(lambda: not hosts.model()["message"], description="nothing is missing any more")
    assert ask("at the end").result(60) == "at the end"
    plane.close()
