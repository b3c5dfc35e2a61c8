"""Processes that user code starts: they are what they are in any program, and none of them is taken for the replica."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import forking
import pytest
from serving import ServeRun, ask

import qserve as serve


@serve.deployment
def double(value: int) -> int:
    return 2 * value


@serve.deployment(max_concurrent_queries=100)
class Forker:
    def __init__(self, double: Any) -> None:
        self.double = double
        self.constructed = {name: forking.act(name) for name in forking.EVERYWHERE}
        self.calls = 0

    def reconfigure(self, user_config: Any) -> None:
        self.configured = {name: forking.act(name) for name in forking.EVERYWHERE}

    async def before(self) -> Any:
        return [self.constructed, self.configured]

    def in_thread(self, name: str) -> Any:
        return forking.act(name)

    async def on_loop(self, name: str) -> Any:
        self.calls += 1
        return forking.act(name)

    def fast(self, name: str) -> Any:
        return forking.act(name) if name else None

    async def in_pool(self, name: str) -> Any:
        return await asyncio.to_thread(forking.act, name)

    def items(self, name: str) -> Iterator[Any]:
        yield forking.act(name)

    async def items_async(self, name: str) -> AsyncIterator[Any]:
        yield forking.act(name)

    @serve.batch
    async def batched(self, names: list[str]) -> list[Any]:
        return [forking.act(name) for name in names]

    async def in_batch(self, name: str) -> Any:
        return await self.batched(name)

    @serve.multiplexed(max_num_models_per_replica=1)
    async def load(self, name: str) -> Any:
        return forking.act(name)

    async def in_load(self, name: str) -> Any:
        return await self.load(name)

    async def in_task(self, name: str) -> Any:
        async def task() -> Any:
            return forking.act(name)

        return await asyncio.create_task(task())

    async def awaits(self) -> Any:
        code = forking.fork(lambda: "of the child")
        if code == "of the child":
            await asyncio.sleep(0)
        return code

    def calls_from_child(self) -> Any:
        earlier = self.double.remote(3)
        return forking.fork(lambda: sys.exit(serve.get(earlier) + serve.get(self.double.remote(4))))

    async def held(self) -> Any:
        return forking.held_by_child()

    async def count(self) -> int:
        return self.calls


@pytest.fixture
def forker(serve_run: ServeRun) -> Any:
    return serve_run(Forker.options(user_config={}).bind(double.bind()))


def expected(*names: str) -> dict[str, Any]:
    return {name: forking.ACTIONS[name][1] for name in names}


@pytest.mark.slow
def test_what_user_code_forks_behaves_as_in_any_program_wherever_it_does(forker: Any) -> None:
    everywhere = forking.EVERYWHERE
    assert ask(forker.before) == [expected(*everywhere)] * 2
    assert {name: ask(forker.in_thread, name) for name in forking.ACTIONS} == expected(*forking.ACTIONS)
    for method in (forker.on_loop, forker.in_pool, forker.in_batch, forker.in_load, forker.in_task):
        assert {name: ask(method, name) for name in everywhere} == expected(*everywhere)
    for name in everywhere:
        for _ in range(3):
            ask(forker.fast, "")  # so that it runs on the loop
        assert ask(forker.fast, name) == forking.ACTIONS[name][1]
    for stream in (forker.options(stream=True).items, forker.options(stream=True).items_async):
        assert {name: next(iter(stream.remote(name))) for name in everywhere} == expected(*everywhere)
    assert ask(forker.on_loop, "return") == 0
    assert ask(forker.awaits) == 1, "no event loop goes on in the child"
    assert ask(forker.count) == len(everywhere) + 1, "no call was run by a child as well"


@pytest.mark.slow
def test_a_child_of_a_replica_calls_deployments_as_a_program_does(forker: Any, mode: str) -> None:
    # local mode has nobody in the child who would run a call, but what has arrived before can be had
    assert ask(forker.calls_from_child) in ({14} if mode == "broker" else {1, 14})


@pytest.mark.slow
def test_a_child_holds_no_connection_and_no_handler_of_its_replica(forker: Any, mode: str) -> None:
    held = ask(forker.held)
    if mode == "broker":
        assert held == "[]"
    else:
        # those of earlier tests in this process may be open in both
        entries = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        assert held.count("eventpoll") < sum("eventpoll" in str(entry.readlink()) for entry in entries)
