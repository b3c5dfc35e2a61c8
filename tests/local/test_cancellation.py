"""What running code learns when its request is cancelled, and what goes on: here and on real replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from rendezvous import arrive, await_arrival, has_arrived
from serving import ServeRun

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import DeadlineExceeded, RequestCancelledError
from qserve.handle import DeploymentHandle, RayServeDeploymentHandle

FOR_EVER_S = 3600.0


@serve.deployment
class Leaf:
    """Code that runs until it is told to stop, and then says how."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    async def sleep(self, name: str) -> None:
        try:
            arrive(self.folder, f"{name} began")
            await asyncio.sleep(FOR_EVER_S)
        except asyncio.CancelledError:
            assert serve.get_request_context().cancelled
            arrive(self.folder, f"{name} CancelledError")
            raise

    async def items(self, name: str) -> AsyncIterator[int]:
        try:
            arrive(self.folder, f"{name} began")
            yield 1
            await asyncio.sleep(FOR_EVER_S)
        except asyncio.CancelledError:
            arrive(self.folder, f"{name} CancelledError")
            raise

    async def yields(self, name: str) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                arrive(self.folder, f"{name} began")
        except (GeneratorExit, asyncio.CancelledError):  # at a yield, or while it waits for its reader
            arrive(self.folder, f"{name} GeneratorExit")
            raise

    def sync_items(self, name: str) -> Iterator[int]:
        try:
            while True:
                yield 1
                arrive(self.folder, f"{name} began")
        except GeneratorExit:
            arrive(self.folder, f"{name} GeneratorExit")
            raise

    def poll(self, name: str) -> None:
        arrive(self.folder, f"{name} began")
        request = serve.get_request_context()
        while not request.cancelled:
            time.sleep(0.01)
        arrive(self.folder, f"{name} cancelled")

    async def poll_in_thread(self, name: str) -> None:
        await asyncio.to_thread(self.poll, name)

    def returns_coroutine(self, name: str) -> Coroutine[Any, Any, None]:
        return self.sleep(name)

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.05)
    async def batch(self, names: list[str]) -> list[None]:
        await self.sleep(names[0])
        return [None for _ in names]

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=60)
    async def pair(self, names: list[str]) -> list[str]:
        arrive(self.folder, f"pair of {' and '.join(names)}")
        await asyncio.to_thread(await_arrival, self.folder, "pair may end")
        return names

    async def pairs(self, name: str) -> str:
        arrive(self.folder, f"{name} waits")
        return await self.pair(name)

    async def undo(self, name: str) -> None:
        arrive(self.folder, f"{name} undone")

    async def wait(self, name: str) -> str:
        arrive(self.folder, f"{name} began")
        await asyncio.to_thread(await_arrival, self.folder, f"{name} may end")
        arrive(self.folder, f"{name} ended")
        return name


@serve.deployment
class Middle:
    """Waits for calls of ``Leaf`` in every way."""

    def __init__(self, leaf: DeploymentHandle, old: RayServeDeploymentHandle) -> None:
        self.leaf, self.old = leaf, old
        self.kept: Any = None

    async def awaits(self, name: str) -> Any:
        return await self.leaf.sleep.remote(name)

    async def awaits_twice(self, name: str) -> Any:
        return await (await self.old.sleep.remote(name))

    async def gathers(self, name: str) -> Any:
        return await asyncio.gather(self.leaf.sleep.remote(name), self.leaf.poll_in_thread.remote(f"{name} too"))

    async def groups(self, name: str) -> None:
        async def one(name: str) -> None:
            await self.leaf.sleep.remote(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(one(name))
            group.create_task(one(f"{name} too"))

    async def limits(self, name: str) -> Any:
        return await asyncio.wait_for(self.leaf.sleep.remote(name), FOR_EVER_S)

    async def iterates(self, name: str) -> None:
        async for _ in self.leaf.options(stream=True).items.remote(name):
            pass

    async def passes_on(self, name: str) -> AsyncIterator[int]:
        async for item in self.leaf.options(stream=True).items.remote(name):
            yield item

    def blocks(self, name: str) -> Any:
        try:
            return self.leaf.sleep.remote(name).result()
        except RequestCancelledError:
            self.leaf.undo.remote(name)
            raise

    async def hands_out(self, name: str) -> Any:
        return self.leaf.sleep.remote(name)

    async def cleans_up(self, name: str) -> None:
        try:
            await self.leaf.sleep.remote(name)
        except asyncio.CancelledError:
            await self.leaf.undo.remote(name)
            raise

    async def passes_results(self, name: str) -> Any:
        return await self.leaf.wait.remote(self.leaf.undo.remote(self.leaf.sleep.remote(name)))

    # -- what goes on

    async def shields(self, name: str) -> Any:
        return await asyncio.shield(self.leaf.wait.remote(name))

    async def limits_its_wait(self, name: str) -> None:
        call = self.leaf.wait.remote(name)
        try:
            await asyncio.wait_for(call, 0.2)
        except TimeoutError:
            assert not serve.get_request_context().cancelled
        await self.leaf.undo.remote(name)  # says that the wait is over
        await asyncio.sleep(FOR_EVER_S)

    async def starts(self, name: str) -> None:
        await self.leaf.wait.remote(name).accepted_async()
        await asyncio.sleep(FOR_EVER_S)

    async def shares(self, name: str) -> Any:
        if self.kept is None:
            self.kept = self.leaf.wait.remote(name)
        return await self.kept

    async def reads(self, request_id: str) -> Any:
        return await serve.get_ref(request_id)


@serve.deployment
class Top:
    def __init__(self, middle: DeploymentHandle) -> None:
        self.middle = middle

    async def __call__(self, method: str, name: str) -> Any:
        return await getattr(self.middle, method).remote(name)


TOLD: dict[str, tuple[Callable[[Any, str], Any], tuple[str, ...]]] = {
    "a coroutine": (lambda h, name: h.leaf.sleep.remote(name), ("{} CancelledError",)),
    "a coroutine that a sync method returns": (
        lambda h, name: h.leaf.returns_coroutine.remote(name), ("{} CancelledError",),
    ),
    "a sync method that asks": (lambda h, name: h.leaf.poll.remote(name), ("{} cancelled",)),
    "a thread of a coroutine that asks": (lambda h, name: h.leaf.poll_in_thread.remote(name), ("{} cancelled",)),
    "a batch of which this is the only call": (lambda h, name: h.leaf.batch.remote(name), ("{} CancelledError",)),
    "what is awaited over two deployments": (lambda h, name: h.remote("awaits", name), ("{} CancelledError",)),
    "what is awaited twice": (lambda h, name: h.remote("awaits_twice", name), ("{} CancelledError",)),
    "what is gathered": (lambda h, name: h.remote("gathers", name), ("{} CancelledError", "{} too cancelled")),
    "the tasks of a group": (lambda h, name: h.remote("groups", name), ("{} CancelledError", "{} too CancelledError")),
    "what is awaited for a time": (lambda h, name: h.remote("limits", name), ("{} CancelledError",)),
    "a stream that is iterated": (lambda h, name: h.remote("iterates", name), ("{} CancelledError",)),
    "what a sync method waits for": (lambda h, name: h.remote("blocks", name), ("{} CancelledError", "{} undone")),
    "the arguments of what is awaited": (lambda h, name: h.remote("passes_results", name), ("{} CancelledError",)),
    "a call that is returned": (lambda h, name: h.remote("hands_out", name), ("{} CancelledError",)),
    "a coroutine that cleans up": (lambda h, name: h.remote("cleans_up", name), ("{} CancelledError", "{} undone")),
}  # fmt: skip
STREAMS = {
    "an async generator that waits": ("leaf", "items", "{} CancelledError"),
    "an async generator at a yield": ("leaf", "yields", "{} GeneratorExit"),
    "a sync generator": ("leaf", "sync_items", "{} GeneratorExit"),
    "a stream that is passed on": ("middle", "passes_on", "{} CancelledError"),
}


class App:
    """The application, with handles to all of its deployments."""

    def __init__(self, run: ServeRun, folder: Path, **options: Any) -> None:
        self.folder = str(folder)
        leaf = Leaf.bind(self.folder)
        self.remote = run(Top.options(**options).bind(Middle.bind(leaf, leaf))).remote
        self.leaf = serve.get_deployment_handle("Leaf", "default")
        self.middle = serve.get_deployment_handle("Middle", "default")

    def expect(self, *names: str) -> None:
        for name in names:
            await_arrival(self.folder, name)


@pytest.mark.parametrize("what", TOLD)
def test_running_code_is_told(serve_run: ServeRun, tmp_path: Path, what: str) -> None:
    app = App(serve_run, tmp_path)
    begin, told = TOLD[what]
    call = begin(app, "it")
    app.expect("it began")

    call.cancel()

    app.expect(*(one.format("it") for one in told))
    with pytest.raises(RequestCancelledError, match="cancelled"):
        call.result(10)


@pytest.mark.parametrize("what", STREAMS)
def test_the_producer_of_a_stream_is_told(serve_run: ServeRun, tmp_path: Path, what: str) -> None:
    app = App(serve_run, tmp_path)
    deployment, method, told = STREAMS[what]
    stream = getattr(getattr(app, deployment).options(stream=True), method).remote("it")
    assert next(stream) == 1
    app.expect("it began")

    stream.cancel()

    app.expect(told.format("it"))


@pytest.mark.parametrize("what", ["a coroutine", "a sync method that asks", "what is awaited over two deployments"])
def test_running_code_is_told_of_its_deadline(serve_run: ServeRun, tmp_path: Path, what: str) -> None:
    app = App(serve_run, tmp_path, request_timeout_s=1.0)
    begin, told = TOLD[what]

    call = begin(app, "it")

    app.expect(*(one.format("it") for one in told))
    with pytest.raises(DeadlineExceeded):
        call.result(10)


GOES_ON = ("shields", "limits_its_wait", "starts")


@pytest.mark.parametrize("method", GOES_ON)
def test_a_call_goes_on_that_is_shielded_or_not_awaited_any_more(
    serve_run: ServeRun, tmp_path: Path, method: str
) -> None:
    app = App(serve_run, tmp_path)
    call = app.remote(method, "it")
    app.expect("it began", *(["it undone"] if method == "limits_its_wait" else []))

    call.cancel()
    with pytest.raises(RequestCancelledError):
        call.result(10)
    told = app.leaf.sleep.remote("other")
    app.expect("other began")
    told.cancel()
    app.expect("other CancelledError")  # by then the first cancellation has come as well
    arrive(app.folder, "it may end")

    app.expect("it ended")


def test_a_call_goes_on_for_those_that_still_wait_for_it(serve_run: ServeRun, tmp_path: Path) -> None:
    app = App(serve_run, tmp_path)
    first = app.remote("shares", "it")
    app.expect("it began")
    second, third = app.remote("shares", "it"), app.remote("awaits", "other")
    app.expect("other began")
    job = app.leaf.wait.remote("job")
    reader = app.remote("reads", job.request_id)
    app.expect("job began")

    first.cancel()
    third.cancel()
    reader.cancel()
    app.expect("other CancelledError")
    arrive(app.folder, "it may end")
    arrive(app.folder, "job may end")

    assert second.result(10) == "it"
    assert job.result(10) == "job"


def test_a_cancelled_call_is_not_in_a_batch_and_the_others_of_its_batch_go_on(
    serve_run: ServeRun, tmp_path: Path
) -> None:
    app = App(serve_run, tmp_path)
    first = app.leaf.pairs.remote("first")
    app.expect("first waits")
    first.cancel()
    told = app.leaf.sleep.remote("it")
    app.expect("it began")
    told.cancel()
    app.expect("it CancelledError")

    second, third = app.leaf.pairs.remote("second"), app.leaf.pairs.remote("third")
    app.expect("second waits", "third waits")
    wait_until(lambda: any(path.name.startswith("pair of") for path in tmp_path.iterdir()), description="a batch runs")
    second.cancel()
    with pytest.raises(RequestCancelledError):
        second.result(10)
    arrive(app.folder, "pair may end")

    assert third.result(10) == "third"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("pair of"))[0] in (
        "pair of second and third", "pair of third and second",
    )  # fmt: skip


def test_all_branches_of_a_graph_are_told(serve_run: ServeRun, tmp_path: Path) -> None:
    with InputNode() as inp:
        leaf = Leaf.bind(str(tmp_path))
        graph = both.bind(leaf.sleep.bind(inp[0]), leaf.poll_in_thread.bind(inp[1]))
    handle = serve_run(DAGDriver.bind(graph))
    call = handle.predict.remote(["left", "right"])
    await_arrival(str(tmp_path), "left began")
    await_arrival(str(tmp_path), "right began")

    call.cancel()

    await_arrival(str(tmp_path), "left CancelledError")
    await_arrival(str(tmp_path), "right cancelled")


@serve.deployment
def both(left: Any, right: Any) -> None:
    """Waits for two."""


def test_a_coroutine_that_goes_on_all_the_same_has_no_effects(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    class Stubborn:
        async def __call__(self, name: str) -> str:
            arrive(folder, "began")
            try:
                await asyncio.sleep(FOR_EVER_S)
            except asyncio.CancelledError:
                await asyncio.sleep(0)  # is told once only
            arrive(folder, "went on")
            return name

        async def after(self, name: str) -> None:
            arrive(folder, f"after {name}")

    with InputNode() as inp:
        stubborn = Stubborn.bind()
        handle = serve_run(DAGDriver.bind(stubborn.after.bind(stubborn.__call__.bind(inp))))
    call = handle.predict.remote("it")
    await_arrival(folder, "began")

    call.cancel()
    await_arrival(folder, "went on")

    with pytest.raises(RequestCancelledError):
        serve.get(call, timeout=10)
    assert not has_arrived(folder, "after it")
