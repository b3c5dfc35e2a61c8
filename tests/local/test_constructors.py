"""What a constructor may do with event loops: find its own, and run others, alike in local mode and on replicas."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from serving import ServeRun, ask

import qserve as serve


async def doubled(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


def with_run() -> Any:
    return asyncio.run(doubled(1))


def with_runner() -> Any:
    with asyncio.Runner() as runner:
        return runner.run(doubled(1))


def with_a_new_loop() -> Any:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(doubled(1))
    finally:
        loop.close()


def with_its_own_loop() -> Any:
    return asyncio.get_event_loop().run_until_complete(doubled(1))


LOOPS = {"run": with_run, "Runner": with_runner, "new": with_a_new_loop, "own": with_its_own_loop}


@serve.deployment
class Machine:
    def __init__(self, way: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.task = self.loop.create_task(doubled(2))
        self.found = LOOPS[way](), with_run(), asyncio.get_running_loop() is self.loop is asyncio.get_event_loop()

    async def seen(self) -> Any:
        return [*self.found, await self.task, asyncio.get_running_loop() is self.loop]


@serve.deployment(user_config={"way": "run"})
class Configured:
    async def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def reconfigure(self, config: dict[str, str]) -> None:
        self.found = with_run(), asyncio.get_running_loop() is self.loop

    def seen(self) -> Any:
        return self.found


@pytest.mark.parametrize("way", LOOPS)
def test_a_sync_constructor_finds_its_loop_and_may_run_others(serve_run: ServeRun, way: str) -> None:
    assert ask(serve_run(Machine.bind(way)).seen) == [2, 2, True, 4, True]


def test_a_sync_reconfigure_finds_its_loop_and_may_run_others(serve_run: ServeRun) -> None:
    assert list(ask(serve_run(Configured.bind()).seen)) == [2, True]


def test_a_loop_that_runs_refuses_another_as_ever_after_a_constructor(run_here: ServeRun) -> None:
    run_here(Machine.bind("run"))

    async def nested() -> None:
        coroutine = doubled(1)
        try:
            asyncio.run(coroutine)
        finally:
            coroutine.close()

    with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
        asyncio.run(nested())
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()
