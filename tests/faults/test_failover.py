"""Another server becomes the broker's primary while requests are under way: killed, or by plan."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from http_client import Client
from processes import PATIENCE_S, Process, Site, wait_until
from roles import Roles
from sentinels import SERVICE, Watched

APP = """
import os
import qserve
from qserve import DAGDriver, InputNode
from qserve.http_adapters import json_request

@qserve.deployment
class First:
    def work(self, number):
        return number + 1

@qserve.deployment
class Second:
    def work(self, number):
        return [number * 2, os.getpid()]

with InputNode() as number:
    output = Second.bind().work.bind(First.bind().work.bind(number))

app = DAGDriver.bind(output, http_adapter=json_request)
"""
CLIENTS = 4
PAUSE_S = 0.03


class Answer(NamedTuple):
    """One request: when it was sent and answered, by the monotonic clock, and with what."""

    number: int
    sent: float
    answered: float
    status: int
    body: bytes

    @property
    def code(self) -> str:
        """The code of an error."""
        return str(json.loads(self.body)["error"]["code"])


class Load:
    """Requests from several clients, until told to stop; a client waits for each answer."""

    def __init__(self, port: int) -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self, first: int) -> None:
        number = first
        while not self._stop.wait(PAUSE_S):
            self.answers.append(self._post(number))
            number += CLIENTS

    def _post(self, number: int) -> Answer:
        sent = time.monotonic()
        answer = Client(self._port).post("/", number)
        return Answer(number, sent, time.monotonic(), answer.status, answer.body)

    def done_after(self, moment: float) -> Answer | None:
        """The first good answer to a request that was sent after a moment."""
        good = [one for one in self.answers if one.status == 200 and one.sent > moment]
        return min(good, key=lambda one: one.answered, default=None)

    def stop(self) -> list[Answer]:
        """All answers; every client has got its last one."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive(), "a client still waits for its answer"
        return self.answers


PATIENT = "from qserve_gateway.__main__ import main; from qserve.calls import client; client.SEND_FOR_S = 60; main()"
"""A gateway that offers requests to the broker until it takes them: a busy machine may need more than two seconds."""


class Served(Roles):
    """An application by way of a Sentinel, in processes of its own."""

    def __init__(self, site: Site, kind: str) -> None:
        self.watched = Watched(site)
        self.kind = kind
        told = {"QSERVE_REQUEST_TIMEOUT_S": "60", "QSERVE_DURABILITY": "replica" if kind == "replica" else "local"}
        super().__init__(site, APP, {"QSERVE_BROKER_URL": self.watched.url, **told})
        self.processes = self.start()
        self.load = Load(self.port)
        wait_until(lambda: len(self._good()) > 50, description="requests are answered")
        wait_until(self.watched.is_guarded, description="the replica is well")

    def gateway(self, port: int | None = None) -> Process:
        if self.kind != "patient":
            return super().gateway(port)
        return self.site.start([sys.executable, "-c", PATIENT, "--port", str(self.port)], env=self.env)

    def _good(self) -> list[Answer]:
        return [one for one in self.load.answers if one.status == 200]

    def check(self) -> list[Answer]:
        """What holds however the primary changed; answers the requests that were not served."""
        answers = self.load.stop()
        for process in self.processes:
            assert process.exit_code() is None, process.output
            assert "Traceback" not in process.output, process.output
        good = [one for one in answers if one.status == 200]
        assert all(json.loads(one.body)[0] == (one.number + 1) * 2 for one in good)
        assert len({json.loads(one.body)[1] for one in good}) == 1, "the replica is the same as before"
        return [one for one in answers if one.status != 200]


@pytest.fixture
def served(site: Site, request: pytest.FixtureRequest) -> Iterator[Served]:
    served = Served(site, getattr(request, "param", "local"))
    yield served
    served.load.stop()


@pytest.mark.row("F12")
@pytest.mark.slow
def test_a_primary_that_is_killed_costs_seconds_and_every_request_has_one_answer(served: Served) -> None:
    killed_at = time.monotonic()
    old = served.watched.kill_primary()
    served.watched.wait_for_other(old)
    first = wait_until(lambda: served.load.done_after(killed_at), description="it serves again")
    wait_until(
        lambda: sum(one.sent > first.answered and one.status == 200 for one in served.load.answers) > 50,
        description="it goes on serving",
    )
    failed = served.check()
    assert {one.status for one in failed} <= {503}
    assert {one.code for one in failed} <= {"broker_unavailable", "broker_state_lost"}


@pytest.mark.row("F13")
@pytest.mark.slow
@pytest.mark.parametrize("served", ["patient"], indirect=True)
@pytest.mark.long  # tests/broker/test_sentinel.py has clients and links that leave a server that was demoted
def test_a_planned_change_of_the_primary_is_not_noticed_by_clients(served: Served) -> None:
    watched = served.watched
    old = watched.primary()
    watched.sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE, "COORDINATED")
    watched.wait_for_other(old)
    changed_at = time.monotonic()
    wait_until(lambda: served.load.done_after(changed_at), description="requests are answered by the new one")
    failed = served.check()
    assert failed == []
    # each process is told of the change; when a primary dies, some have to find out
    assert not [process.output for process in served.processes if "has been silent" in process.output]


@pytest.mark.row("F12")
@pytest.mark.slow
@pytest.mark.parametrize("served", ["replica"], indirect=True)
def test_what_a_replica_had_survives_and_nothing_more_is_accepted_until_there_is_a_replica(served: Served) -> None:
    watched = served.watched
    killed_at = time.monotonic()
    old = watched.kill_primary()
    watched.wait_for_other(old)
    wait_until(
        lambda: any(one.status == 503 and one.code == "not_replicated" for one in served.load.answers),
        description="a request that is on one server only is refused",
    )
    watched.servers[old] = watched.start(old)
    wait_until(lambda: served.load.done_after(killed_at), description="the old primary has become a replica")
    failed = served.check()
    assert {one.status for one in failed} == {503}
    assert {one.code for one in failed} <= {"broker_unavailable", "not_replicated"}, "nothing accepted was lost"
