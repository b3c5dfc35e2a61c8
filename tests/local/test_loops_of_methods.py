"""What sync code finds of its replica's event loop: as with Ray Serve, wherever it runs and however fast it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from serving import ServeRun, ask

import qserve as serve


@serve.deployment(user_config={}, max_concurrent_queries=100, health_check_period_s=0.1)
class Looping:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: list[str] = []
        self.tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(self.note("constructor"))]
        self.was_checked = False

    async def note(self, where: str) -> str:
        await asyncio.sleep(0.001)
        assert asyncio.get_running_loop() is self.loop
        self.done.append(where)
        return where

    def start(self, where: str) -> None:
        loop = asyncio.get_event_loop()
        self.tasks += [asyncio.ensure_future(self.note(where)), loop.create_task(self.note(where))]
        loop.call_later(0.001, self.done.append, where)
        self.tasks.append(asyncio.gather(self.note(where), self.note(where)))

    def reconfigure(self, user_config: Any) -> None:
        self.start("reconfigure")

    def check_health(self) -> None:
        if not self.was_checked:
            self.was_checked = True
            self.start("check_health")

    def method(self, seconds: float) -> None:
        time.sleep(seconds)
        self.start("method")

    def own_loop(self) -> None:
        self.start("own_loop")
        assert asyncio.run(doubled(1)) == 2

    def items(self) -> Iterator[int]:
        for number in range(2):
            self.start("items")
            yield number

    def waits(self) -> Any:
        loop = asyncio.get_event_loop()
        found = [loop.run_until_complete(self.note("waits")) for _ in range(2)]
        found += loop.run_until_complete(asyncio.gather(self.note("waits"), self.note("waits")))
        loop.close()
        return found

    def stops(self) -> str:
        loop = asyncio.get_event_loop()
        loop.stop()
        loop.close()
        return "goes on"

    async def stops_own(self) -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.001)
        return "goes on"

    async def keeps(self) -> bool:
        return asyncio.get_event_loop() is self.loop

    async def notes(self, where: str) -> int:
        await asyncio.gather(*self.tasks)
        while self.done.count(where) % 5 and where != "constructor":  # the timer
            await asyncio.sleep(0.001)
        return self.done.count(where)

    async def checked(self) -> bool:
        return self.was_checked


async def doubled(value: int) -> int:
    return 2 * value


@pytest.fixture
def looping(serve_run: ServeRun) -> Any:
    return serve_run(Looping.bind())


def test_sync_code_starts_tasks_on_the_loop_of_its_replica_wherever_it_runs(looping: Any, mode: str) -> None:
    for seconds in (0.005, 0, 0, 0, 0.005):  # in the thread, on the loop once it is fast, and in the thread again
        ask(looping.method, seconds)
    for _ in range(4):
        ask(looping.own_loop)
    assert list(looping.options(stream=True).items.remote()) == [0, 1]

    counts = {"constructor": 1, "reconfigure": 5, "method": 25, "own_loop": 20, "items": 10}
    assert {where: ask(looping.notes, where) for where in counts} == counts
    if mode == "broker":
        while not ask(looping.checked):
            pass
        assert ask(looping.notes, "check_health") == 5
    assert ask(looping.keeps)


def test_a_sync_method_may_wait_for_a_coroutine_on_the_loop_of_its_replica(looping: Any) -> None:
    for _ in range(5):
        assert ask(looping.waits) == ["waits"] * 4


def test_a_method_that_stops_the_loop_of_its_replica_takes_no_other_call_along(looping: Any) -> None:
    for _ in range(5):
        assert ask(looping.stops) == "goes on"
        assert ask(looping.stops_own) == "goes on"
    assert ask(looping.keeps)
