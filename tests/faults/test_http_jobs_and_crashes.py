"""Answers that are kept, while a gateway or the broker dies, and after their time."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from http_client import Answer, Client
from processes import READY, Process, Site, free_port, is_alive, is_open, wait_until

pytestmark = pytest.mark.slow

APP = """
import asyncio
import os
import qserve

@qserve.deployment
class Slow:
    async def __call__(self, request):
        body = (await request.body()).decode()
        with open("ledger", "a") as out:
            out.write(body + "\\n")
        while not os.path.exists("gate"):
            await asyncio.sleep(0.01)
        return {"body": body}

app = Slow.bind()
"""


class Place:
    """A broker that keeps its data, two gateways, and one application.

    Parameters:
      site: Where they are started.
      env: Variables of both gateways.
    """

    def __init__(self, site: Site, **env: str) -> None:
        self.site = site
        self.broker_port = free_port()
        self.broker = self.start_broker()
        self._env = {"QSERVE_SECRET_KEY": "of-this-test", **env}
        self._broker_url = f"redis://127.0.0.1:{self.broker_port}/0"
        site.write("kept.py", APP)
        self.port = free_port()
        run = site.qserve(
            "run", "kept:app", "--port", str(self.port), "--broker", self._broker_url, env=self._env
        )  # fmt: skip
        run.wait_for(READY)
        self.other_port, self.other = self.gateway()

    def start_broker(self) -> Process:
        return self.site.start_broker(self.broker_port, "--appendonly", "yes")

    def gateway(self) -> tuple[int, Process]:
        port = free_port()
        env = {**self._env, "QSERVE_BROKER_URL": self._broker_url}
        process = self.site.qserve("gateway", "--port", str(port), env=env)
        wait_until(lambda: is_open(port), description="the second gateway listens", timeout_s=20)
        wait_until(lambda: self.send("GET", "/-/healthz", port).status == 200, description="it serves")
        return port, process

    def send(self, method: str, path: str, port: int = 0, body: bytes | None = None, **headers: str) -> Answer:
        return Client(f"http://127.0.0.1:{port or self.port}").send(method, path, body, **headers)

    def ledger(self) -> list[str]:
        file = self.site.folder / "ledger"
        return file.read_text().splitlines() if file.exists() else []

    def open_gate(self) -> None:
        (self.site.folder / "gate").touch()

    def gateway_workers(self) -> set[int]:
        """The processes of the second gateway that answer: one, or for a moment none."""
        children = Path(f"/proc/{self.other.pid}/task/{self.other.pid}/children").read_text().split()
        return set(map(int, children))


@pytest.fixture
def place(site: Site) -> Iterator[Place]:
    made = Place(site)
    yield made
    made.open_gate()


@pytest.mark.row("F7")
def test_f7_what_waited_at_a_gateway_that_died_is_had_from_any_other(place: Place) -> None:
    numbers = [str(number) for number in range(20)]
    jobs = [place.send("POST", "/", place.other_port, b"job", Prefer="respond-async") for _ in range(3)]
    (worker,) = place.gateway_workers()

    def lose(number: str) -> bool:
        try:
            place.send("POST", "/", place.other_port, number.encode(), Idempotency_Key=f"key-{number}")
        except (ConnectionError, http.client.HTTPException):
            return True
        return False

    with ThreadPoolExecutor(20) as pool:
        lost = [pool.submit(lose, number) for number in numbers]
        wait_until(lambda: len(place.ledger()) == 23, description="all of them run")
        os.kill(worker, 9)
        assert all(one.result() for one in lost)
    place.open_gate()

    answers = [
        place.send("POST", "/", place.port, number.encode(), Idempotency_Key=f"key-{number}") for number in numbers
    ]
    assert [(one.status, one.json) for one in answers] == [(200, {"body": number}) for number in numbers]
    for answer in jobs:
        fetched = place.send("GET", answer.headers["location"], place.port, Prefer="wait=10")
        assert (fetched.status, fetched.json) == (200, {"body": "job"})
    wait_until(lambda: place.gateway_workers() - {worker}, description="the gateway has a new worker")
    again = place.send("POST", "/", place.other_port, b"0", Idempotency_Key="key-0")
    assert again.json == {"body": "0"}
    assert sorted(place.ledger()) == sorted([*numbers, "job", "job", "job"])


@pytest.mark.row("F28")
def test_f28_a_key_and_a_job_outlive_a_broker_that_is_killed_and_started_again(place: Place) -> None:
    done = place.send("POST", "/", body=b"0", Prefer="respond-async", Idempotency_Key="done")
    place.open_gate()
    assert place.send("GET", done.headers["location"], Prefer="wait=10").status == 200
    # the append-only file is written to the disk every second; a kill loses nothing of what was written at all
    os.kill(place.broker.pid, 9)
    wait_until(lambda: not is_alive(place.broker.pid), description="the broker is gone")
    place.broker = place.start_broker()

    wait_until(lambda: place.send("GET", "/-/healthz").status == 200, description="the gateway is back", timeout_s=10)
    again = place.send("POST", "/", body=b"0", Idempotency_Key="done")
    assert (again.status, again.json) == (200, {"body": "0"})
    assert place.send("GET", done.headers["location"], place.other_port).json == {"body": "0"}
    assert place.send("POST", "/", body=b"1", Idempotency_Key="done").status == 422
    assert place.ledger() == ["0"]


@pytest.mark.row("F47")
def test_f47_an_answer_is_kept_for_so_long_and_then_known_to_have_been(site: Site) -> None:
    place = Place(site, QSERVE_RESULT_TTL_S="2")
    place.open_gate()
    location = place.send("POST", "/", body=b"0", Prefer="respond-async", Idempotency_Key="k").headers["location"]
    first = place.send("GET", location, Prefer="wait=10")
    ended = time.monotonic()
    second = place.send("GET", location, place.other_port)
    assert (first.status, first.json) == (second.status, second.json) == (200, {"body": "0"})

    wait_until(lambda: place.send("GET", location).status != 200, description="it is kept no more")
    assert 1.5 < time.monotonic() - ended < 4
    for method in ("GET", "DELETE"):
        gone = place.send(method, location)
        assert (gone.status, gone.json["error"]["code"]) == (410, "result_expired")
    assert place.send("POST", "/", body=b"1", Idempotency_Key="k").json == {"body": "1"}
    assert place.ledger() == ["0", "1"]
