"""User code: what may be a deployment, and how it is called, alike in local mode and on replicas."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import pytest
from processes import wait_until
from serving import ServeRun, ask

import qserve as serve
from qserve.dag import InputNode
from qserve.define.multiplexing import unload_models
from qserve.drivers import DAGDriver
from qserve.exceptions import TaskError
from qserve.handle import DeploymentHandle


@serve.deployment
def other() -> None: ...


@serve.deployment
class Machine:
    def __init__(self) -> None:
        self.loop_thread = 0

    async def look_around(self) -> None:
        self.loop_thread = threading.get_ident()

    def is_on_loop(self, seconds: float = 0.0) -> bool:
        time.sleep(seconds)
        return threading.get_ident() == self.loop_thread

    def items(self) -> Iterator[bool]:
        yield threading.get_ident() == self.loop_thread

    async def replica(self) -> str:
        await asyncio.sleep(0)
        return serve.get_replica_context().deployment

    def replica_later(self) -> Awaitable[str]:
        return self.replica()

    def raises(self, kind: str) -> None:
        raise {"SystemExit": SystemExit, "StopIteration": StopIteration}[kind](kind)

    def serves(self) -> None:
        serve.run(other.bind())

    async def starts(self) -> None:
        serve.start()


@pytest.fixture
def machine(serve_run: ServeRun) -> Any:
    handle = serve_run(Machine.bind())
    serve.get(handle.look_around.remote())
    return handle


def test_a_sync_method_moves_to_the_loop_once_it_is_fast_and_away_when_it_is_slow(machine: Any) -> None:
    def is_on_loop(seconds: float) -> bool:
        return bool(serve.get(machine.is_on_loop.remote(seconds)))

    def slow_call_ran_on_the_loop() -> bool:
        # a busy machine may make any call slow, which then has to prove itself again
        wait_until(lambda: is_on_loop(0.0), description="fast calls run on the loop")
        return is_on_loop(0.1)

    assert not is_on_loop(0.0), "it was not measured yet"
    wait_until(slow_call_ran_on_the_loop, description="a slow call runs where the fast ones before it ran")
    assert not is_on_loop(0.0), "the last call was slow"


def test_a_sync_generator_runs_in_the_thread(machine: Any) -> None:
    assert list(machine.options(stream=True).items.remote()) == [False]


def test_a_coroutine_that_a_sync_method_returns_knows_its_replica(machine: Any) -> None:
    assert [serve.get(machine.replica_later.remote()) for _ in range(3)] == ["Machine"] * 3


@pytest.mark.parametrize("kind", ["SystemExit", "StopIteration"])
def test_what_would_end_a_process_ends_its_call_alone(machine: Any, kind: str) -> None:
    for _ in range(3):
        with pytest.raises(TaskError, match=kind):
            serve.get(machine.raises.remote(kind))
    assert serve.get(machine.is_on_loop.remote()) is False


@pytest.mark.parametrize("method", ["serves", "starts"])
def test_a_deployment_that_would_start_processes_of_its_own_is_told_where_to(machine: Any, method: str) -> None:
    with pytest.raises(RuntimeError, match="Call them in the program that serves this one"):
        serve.get(getattr(machine, method).remote())
    assert serve.get(machine.is_on_loop.remote()) is False


@serve.deployment
class Counting:
    def __call__(self, value: int) -> int:
        return value + 1

    def items(self, count: int) -> Iterator[int]:
        yield from range(count)


@serve.deployment
class Asking:
    """Sync methods that wait for others, each of which is soon known to be fast."""

    def __init__(self, counting: DeploymentHandle, older: Any) -> None:
        self.counting = counting

        async def ask_for_it() -> int:
            return await counting.remote(0) + await (await older.remote(0))  # type: ignore[no-any-return]

        self.constructed = asyncio.run(ask_for_it())

    def in_constructor(self) -> int:
        return self.constructed

    async def for_in_async_code(self) -> list[int]:
        return list(self.counting.options(stream=True).items.remote(2))

    def own_loop(self) -> int:
        return asyncio.run(self.later())

    async def later(self) -> int:
        await asyncio.sleep(0)
        return 2

    def result(self) -> int:
        return self.counting.remote(1).result()  # type: ignore[no-any-return]

    def result_in_own_loop(self) -> int:
        async def ask_for_it() -> int:
            return await self.counting.remote(1)  # type: ignore[no-any-return]

        return asyncio.run(ask_for_it())

    def items(self) -> int:
        return len(list(self.counting.options(stream=True).items.remote(2)))

    def threads(self) -> int:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(self.result).result()

    def wait(self) -> int:
        ended, _ = serve.wait([self.counting.remote(1)])
        return ended[0].result()  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["own_loop", "result", "result_in_own_loop", "items", "wait", "in_constructor"])
def test_a_sync_method_may_block_in_its_first_call_and_in_each_after_it(serve_run: ServeRun, method: str) -> None:
    counting = Counting.bind()
    handle = serve_run(Asking.bind(counting, counting))

    assert [serve.get(getattr(handle, method).remote(), timeout=60) for _ in range(5)] == [2] * 5


@pytest.mark.slow
def test_a_sync_method_may_wait_for_threads_of_its_own_that_call_others(run_on_broker: ServeRun) -> None:
    counting = Counting.bind()
    handle = run_on_broker(Asking.bind(counting, counting))

    assert [serve.get(handle.threads.remote(), timeout=60) for _ in range(5)] == [2] * 5


def test_a_sync_loop_over_a_stream_in_async_code_says_to_write_async_for(serve_run: ServeRun) -> None:
    counting = Counting.bind()
    handle = serve_run(Asking.bind(counting, counting))

    with pytest.raises(RuntimeError, match="write `async for`"):
        serve.get(handle.for_in_async_code.remote(), timeout=60)


# -- what may be a deployment ----------------------------------------------------------------------


class Counter:
    """Not decorated here: each test decorates it in its own way."""

    def __init__(self, start: int = 0) -> None:
        self.count = start

    def __call__(self, by: int = 1) -> int:
        self.count += by
        return self.count


def double(value: int) -> int:
    return value * 2


async def double_async(value: int) -> int:
    return value * 2


FORMS = {
    "bare": serve.deployment,
    "called": serve.deployment(),
    "with a name": serve.deployment(name="other"),
    "with a label": serve.deployment("label", num_replicas=1),
    "with many options": serve.deployment(
        name="many",
        num_replicas=1,
        max_concurrent_queries=10,
        route_prefix="/many",
        ray_actor_options={"num_cpus": 0.15},
        health_check_period_s=1,
        health_check_timeout_s=2,
        graceful_shutdown_timeout_s=0,
        graceful_shutdown_wait_loop_s=1,
        version="v1",
    ),
    "scaling by itself": serve.deployment(autoscaling_config={"min_replicas": 1, "max_replicas": 2}),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("body", [double, double_async], ids=["def", "async def"])
def test_a_function_decorated_in_any_form_is_served(run_here: ServeRun, form: Any, body: Any) -> None:
    assert ask(run_here(form(body).bind()), 21) == 42


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_class_decorated_in_any_form_is_served(run_here: ServeRun, form: Any) -> None:
    handle = run_here(form(Counter).bind(5))

    assert [ask(handle), ask(handle, by=2)] == [6, 8]


def test_a_function_may_be_bound_to_arguments_and_to_the_input(serve_run: ServeRun) -> None:
    @serve.deployment
    def hello(name: str) -> str:
        return f"hello {name}"

    with InputNode() as inp:
        to_input = hello.bind(inp)

    assert [ask(serve_run(node), "given") for node in (hello.bind("bound"), to_input)] == ["hello bound", "hello given"]


def test_class_attributes_inherited_and_static_methods_are_there(run_here: ServeRun) -> None:
    class Base:
        scale = 10

        def predict(self, value: int) -> int:
            return self.compute(value)

        def compute(self, value: int) -> int:
            raise NotImplementedError

    @serve.deployment
    class Child(Base):
        def compute(self, value: int) -> int:
            return value * self.scale

        @staticmethod
        def plus_one(value: int) -> int:
            return value + 1

        @classmethod
        def scaled(cls, value: int) -> int:
            return cls.scale * value

    child = Child.bind()
    with InputNode() as inp:
        routes = {"/": child.predict.bind(inp), "/s": child.plus_one.bind(inp), "/c": child.scaled.bind(inp)}
    handle = run_here(DAGDriver.bind(routes))

    assert [ask(handle.predict_with_route, route, 2) for route in routes] == [20, 3, 20]


def test_a_dataclass_may_be_a_deployment(run_here: ServeRun) -> None:
    @serve.deployment
    @dataclasses.dataclass
    class Sum:
        left: int
        right: int = 2

        def __call__(self) -> int:
            return self.left + self.right

    assert ask(run_here(Sum.bind(1))) == 3


def test_a_wrapped_function_keeps_its_name_and_its_code(run_here: ServeRun) -> None:
    def loud(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> str:
            return f"{function(*args)}!"

        return wrapper

    @serve.deployment
    @loud
    def greet(name: str) -> str:
        return f"hello {name}"

    assert greet.name == "greet"
    assert ask(run_here(greet.bind()), "you") == "hello you!"


def test_a_name_that_is_defined_again_means_the_newer_code(run_here: ServeRun) -> None:
    @serve.deployment
    class Chatbot:
        def __call__(self) -> str:
            return "first"

    first = Chatbot.bind()

    @serve.deployment  # type: ignore[no-redef]
    class Chatbot:
        def __call__(self) -> str:
            return "second"

    assert ask(run_here(first)) == "first"
    assert ask(run_here(Chatbot.bind())) == "second"


# -- models ----------------------------------------------------------------------------------------


class Freed:
    """A model that is freed by an ``async def __del__``, and knows whether it was."""

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id
        self.is_freed = False

    async def __del__(self) -> None:
        self.is_freed = True


@serve.deployment(max_concurrent_queries=50)
class Users:
    """Uses models in every way in which a method can get one."""

    @serve.multiplexed(max_num_models_per_replica=2)
    async def load(self, model_id: str) -> Freed:
        await asyncio.sleep(0)
        return Freed(model_id)

    async def use(self, model: Freed) -> str:
        for _ in range(20):
            await asyncio.sleep(0.001)
            if model.is_freed:
                return f"{model.model_id} was freed"
        return model.model_id

    async def coroutine(self) -> str:
        return await self.use(await self.load(serve.get_multiplexed_model_id()))

    async def task(self) -> str:
        (model,) = await asyncio.gather(self.load(serve.get_multiplexed_model_id()))
        return await self.use(model)

    def promise(self) -> Any:
        return self.coroutine()

    async def stream(self) -> AsyncIterator[str]:
        model = await self.load(serve.get_multiplexed_model_id())
        yield await self.use(model)
        yield await self.use(model)

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.01)
    async def batch(self, items: list[None]) -> list[str]:
        used = await self.coroutine()
        return [used for _ in items]

    async def batched(self) -> str:
        return await self.batch(None)

    async def left_batch(self) -> str:
        """The first of a batch leaves, and the others go on."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.batch(None), 0.005)
        return await self.batch(None)

    async def unload(self) -> None:
        await unload_models()


@pytest.mark.parametrize("method", ["coroutine", "task", "promise", "stream", "batched", "left_batch"])
def test_no_model_is_freed_while_a_call_uses_it(run_here: ServeRun, method: str) -> None:
    handle: Any = run_here(Users.bind())
    ids = [str(number % 5) for number in range(20)]

    calls = [
        handle.options(method_name=method, multiplexed_model_id=model_id, stream=method == "stream").remote()
        for model_id in ids
    ]

    if method == "stream":
        assert [list(items) for items in calls] == [[model_id] * 2 for model_id in ids]
    else:
        assert serve.get(calls, timeout=60) == ids
    serve.get(handle.unload.remote(), timeout=60)
