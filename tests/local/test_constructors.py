"""What a constructor may do: find its event loop, run others, and call deployments, in local mode and on replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from serving import ServeRun, ask

import qserve as serve
from qserve.exceptions import DeployError
from qserve.handle import DeploymentHandle


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


@serve.deployment
class Counting:
    def double(self, value: int) -> int:
        return 2 * value

    def items(self, count: int) -> Any:
        yield from range(count)


def called(new: DeploymentHandle, old: Any) -> list[Any]:
    async def read() -> list[int]:
        return [item async for item in new.options(stream=True).items.remote(2)]

    stored = new.double.remote(3)
    stored.accepted()
    serve.wait([stored])
    with ThreadPoolExecutor(1) as threads:
        in_thread = threads.submit(lambda: new.double.remote(4).result()).result()
    return [
        new.double.remote(1).result(),
        serve.get(old.double.remote(2)),
        stored.result(),
        in_thread,
        serve.get(old.double.remote(5).result()),
        new.double.remote(new.double.remote(3)).result(),
        list(new.options(stream=True).items.remote(2)),
        asyncio.run(read()),
    ]


@serve.deployment(user_config={})
class Calling:
    def __init__(self, new: DeploymentHandle, old: Any) -> None:
        self.handles = new, old
        self.early = new.double.remote(7)
        self.found = [called(new, old)]

    def reconfigure(self, config: Any) -> None:
        self.found.append(called(*self.handles))

    async def seen(self) -> Any:
        return [*self.found, await self.early, await self.early]


def test_a_sync_constructor_and_reconfigure_may_call_deployments_as_a_program_does(serve_run: ServeRun) -> None:
    counting = Counting.bind()

    every = [2, 4, 6, 8, 10, 12, [0, 1], [0, 1]]
    assert ask(serve_run(Calling.bind(counting, counting)).seen) == [every, every, 14, 14]


@asynccontextmanager
async def failing(app: FastAPI) -> AsyncIterator[None]:
    raise ValueError("of the application")
    yield


def made() -> FastAPI:
    raise ValueError("of the application")


@pytest.mark.parametrize("app", [FastAPI(lifespan=failing), made], ids=["lifespan", "function"])
def test_a_web_application_that_cannot_start_is_not_taken_for_a_constructor(serve_run: ServeRun, app: Any) -> None:
    with pytest.raises(DeployError, match=r"(?s)its web application failed:.*ValueError: of the application"):
        serve_run(serve.deployment(serve.ingress(app)()).bind())


@serve.deployment(user_config={"threshold": 1})
class Refusing:
    def reconfigure(self, config: Any) -> None:
        raise ValueError("of the configuration")


def test_a_reconfigure_that_fails_at_the_start_is_named(serve_run: ServeRun) -> None:
    with pytest.raises(DeployError, match=r"(?s)its reconfigure failed:.*ValueError: of the configuration"):
        serve_run(Refusing.bind())


@serve.deployment
class Blocking:
    async def __init__(self, counting: DeploymentHandle) -> None:
        counting.double.remote(1).result()


def test_an_async_constructor_that_would_block_its_loop_says_what_to_await(run_here: ServeRun) -> None:
    with pytest.raises(DeployError, match=r"(?s)its constructor failed.*write `await response`"):
        run_here(Blocking.bind(Counting.bind()))
