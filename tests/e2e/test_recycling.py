"""``max_requests`` and ``max_memory_mb``: replicas are replaced under load, and no request notices."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from http_client import Client
from processes import Started, wait_until

import qserve

pytestmark = pytest.mark.slow

BODY = 20_000


@qserve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.01})
class Model:
    def __init__(self) -> None:
        self.leaked: list[bytes] = []

    async def __call__(self, request: Any) -> Any:
        self.leaked.append(os.urandom(int(request.query_params.get("leak", 0)) << 20))
        return self.parts() if "stream" in request.query_params else {"pid": os.getpid(), "body": "x" * BODY}

    async def parts(self) -> AsyncIterator[str]:
        for _ in range(60):
            yield f"{os.getpid()}\n"
            await asyncio.sleep(0.1)


@contextmanager
def load(started: Started, seen: set[int], path: str = "/") -> Iterator[list[Any]]:
    """Ask all the time from four threads, and note who answers; all that fails, or is not whole, is in the list."""
    is_over, failed = threading.Event(), list[Any]()

    def run() -> None:
        client = Client(started.url)
        while not is_over.is_set():
            try:
                answer = client.get(path)
                if answer.status != 200 or len(answer.json["body"]) != BODY:
                    failed.append(answer)
                else:
                    seen.add(answer.json["pid"])
            except BaseException as error:
                failed.append(error)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(run)
        try:
            yield failed
        finally:
            is_over.set()


def recycles(started: Started, reason: str) -> float:
    lines = Client(started.url).get("/-/metrics").body.decode().splitlines()
    found = [line for line in lines if line.startswith("qserve_replica_recycles_total{") and f'"{reason}"' in line]
    return sum(float(line.split()[1]) for line in found)


@pytest.mark.row("F65")
def test_replicas_are_replaced_after_their_calls_and_there_are_never_fewer_than_wanted(started: Started) -> None:
    qserve.run(Model.options(max_requests=60).bind())
    seen, counts = set[int](), set[int]()

    def have_been_replaced() -> bool:
        counts.add(qserve.status().applications["default"].deployments["Model"].replica_states.get("RUNNING", 0))
        return len(seen) >= 6

    with load(started, seen) as failed:
        wait_until(have_been_replaced, description="both replicas were replaced twice")

    assert failed == []
    assert counts <= {2, 3}
    log = started.log.read_text()
    assert "is replaced (max_requests)" in log
    assert "has ended (max_requests)" in log
    wait_until(lambda: recycles(started, "max_requests") >= 4, description="they are counted")


@pytest.mark.row("F65")
def test_a_replica_that_is_replaced_finishes_what_it_streams(started: Started) -> None:
    qserve.run(Model.options(max_requests=20).bind())
    seen = set[int]()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(Client(started.url).get, "/?stream=1")
        with load(started, seen) as failed:
            wait_until(lambda: len(seen) >= 4, description="both replicas were replaced")
            assert not answer.done()
        lines = answer.result().body.decode().splitlines()

    assert failed == []
    assert (len(lines), len({*lines})) == (60, 1)


@pytest.mark.row("F65")
@pytest.mark.long  # tests/workers/test_successors.py has the limit of memory, and the first test how one is replaced
def test_a_replica_that_leaks_is_replaced_and_the_status_says_why(started: Started) -> None:
    qserve.run(Model.options(max_memory_mb=120).bind())
    seen, messages = set[int](), set[str]()

    def has_been_replaced() -> bool:
        messages.add(qserve.status().applications["default"].deployments["Model"].message)
        return len(seen) >= 3

    with load(started, seen, "/?leak=1") as failed:
        wait_until(has_been_replaced, description="one was replaced")

    assert failed == []
    assert "1 of its replicas is being replaced (max_memory_mb)" in messages
    assert "is replaced (max_memory_mb)" in started.log.read_text()
    wait_until(lambda: recycles(started, "max_memory_mb") >= 1, description="it is counted")
