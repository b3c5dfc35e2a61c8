"""Errors of user code, wherever in a graph they are raised."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from serving import ServeRun, ask
from starlette.exceptions import HTTPException

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import DeployError, PayloadError, RayServeException, RayTaskError, TaskError


def quotient(a: float, b: float) -> float:
    return a / b


@serve.deployment
def divide(a: float, b: float) -> float:
    return quotient(a, b)


@serve.deployment
def add(a: Any, b: Any) -> Any:
    return a + b


def test_an_error_is_of_its_own_type_and_a_task_error(serve_run: ServeRun) -> None:
    ref = serve_run(divide.bind()).remote(1, 0)

    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        serve.get(ref)
    error = caught.value
    assert isinstance(error, TaskError)
    assert isinstance(error, RayTaskError)
    assert isinstance(error, RayServeException)
    assert (error.deployment, error.remote_type) == ("divide", "ZeroDivisionError")
    assert all(words in str(error) for words in ("Traceback", "in quotient", "return a / b"))


@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_an_error_anywhere_in_a_graph_fails_that_request_only(serve_run: ServeRun, at: str) -> None:
    with InputNode() as inp:
        first = divide.bind(1, inp["first"])
        middle = add.bind(divide.bind(first, inp["middle"]), first)
        handle = serve_run(DAGDriver.bind(divide.bind(middle, inp["last"])))
    good = {"first": 1, "middle": 1, "last": 1}
    before, bad, after = [handle.predict.remote(values) for values in (good, {**good, at: 0}, good)]

    assert serve.get([before, after]) == [2, 2]
    with pytest.raises(ZeroDivisionError):
        serve.get(bad)


def test_wrong_arguments_are_told_by_python(serve_run: ServeRun) -> None:
    @serve.deployment
    def none() -> None: ...

    handle = serve_run(none.bind())

    with pytest.raises(TypeError, match=r"none\(\) takes 0 positional arguments but 1 was given") as too_many:
        serve.get(handle.remote(1))
    with pytest.raises(TypeError, match=r"none\(\) got an unexpected keyword argument 'x'") as unknown:
        serve.get(handle.remote(x=1))
    assert isinstance(too_many.value, TaskError)
    assert isinstance(unknown.value, TaskError)


def test_an_error_keeps_its_origin_through_other_deployments(serve_run: ServeRun) -> None:
    @serve.deployment
    class Caller:
        def __init__(self, divide: Any) -> None:
            self.divide = divide

        async def __call__(self) -> float:
            return await (await self.divide.remote(1, 0))

        async def careful(self) -> str:
            try:
                await (await self.divide.remote(1, 0))
            except ZeroDivisionError:
                return "caught"
            return "nothing happened"

    handle = serve_run(Caller.bind(divide.bind()))

    with pytest.raises(ZeroDivisionError) as caught:
        serve.get(handle.remote())
    assert isinstance(caught.value, TaskError)
    assert caught.value.deployment == "divide"
    assert serve.get(handle.careful.remote()) == "caught"


@pytest.mark.parametrize("error", [StopIteration, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_strange_exceptions_fail_the_request_and_nothing_else(run_here: ServeRun, error: type[BaseException]) -> None:
    @serve.deployment
    class Strange:
        def sync(self) -> None:
            raise error("strange")

        async def later(self) -> None:
            raise error("strange")

        def fine(self) -> str:
            return "fine"

    handle = run_here(Strange.bind())

    for method in (handle.sync, handle.later):
        with pytest.raises(TaskError, match="strange"):
            serve.get(method.remote(), timeout=60)
    assert serve.get(handle.fine.remote(), timeout=60) == "fine"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_code_that_would_end_its_process_ends_only_its_call(serve_run: ServeRun, error: type[BaseException]) -> None:
    """In a batch, in a task of its own, in a callback, and in the items of a stream."""

    @serve.deployment
    class Strange:
        def __init__(self) -> None:
            self.replica = os.urandom(8).hex()

        def who(self) -> str:
            return self.replica

        @serve.batch
        async def batched(self, items: list[int]) -> list[int]:
            raise error("strange")

        @serve.batch
        async def rows(self, items: list[int]) -> AsyncIterator[list[int]]:
            yield items
            raise error("strange")

        async def in_a_batch(self) -> int:
            return await self.batched(1)

        async def in_gathered_batches(self) -> list[int]:
            return await asyncio.gather(self.batched(1), self.batched(2))

        async def later(self) -> None:
            raise error("strange")

        async def in_a_task(self) -> None:
            await asyncio.create_task(self.later())

        async def beside_a_task(self) -> str:
            task = asyncio.create_task(self.later())
            await asyncio.wait([task])
            return "went on"

        async def beside_a_callback(self) -> str:
            called = asyncio.Event()

            def call() -> None:
                called.set()
                raise error("strange")

            asyncio.get_running_loop().call_soon(call)
            await called.wait()
            return "went on"

        async def in_a_stream(self) -> AsyncIterator[int]:
            yield 1
            raise error("strange")

        def in_a_sync_stream(self) -> Iterator[int]:
            yield 1
            raise error("strange")

    handle: Any = serve_run(Strange.bind())
    replica = serve.get(handle.who.remote(), timeout=60)

    for method in (handle.in_a_batch, handle.in_gathered_batches, handle.in_a_task):
        with pytest.raises(TaskError, match=f"{error.__name__}: strange .in deployment 'Strange'"):
            serve.get(method.remote(), timeout=60)
    for method in (handle.beside_a_task, handle.beside_a_callback):
        assert serve.get(method.remote(), timeout=60) == "went on"
    for method, *args in ((handle.in_a_stream,), (handle.in_a_sync_stream,), (handle.rows, 1)):
        items = method.options(stream=True).remote(*args)
        assert next(items) == 1
        with pytest.raises(TaskError, match=f"{error.__name__}: strange"):
            next(items)
    assert serve.get(handle.who.remote(), timeout=60) == replica
    gc.collect()  # a task ends whose error was never read: its traceback is printed here, and not in another test


def test_a_caller_gets_a_group_with_its_members_and_the_end_of_an_iteration_as_an_error(serve_run: ServeRun) -> None:
    @serve.deployment
    class Below:
        async def group(self) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.fails())

        async def fails(self) -> None:
            raise KeyError("lost")

        def stop(self) -> None:
            raise StopIteration("strange")

        async def memory(self) -> None:
            raise MemoryError("full")

    @serve.deployment
    class Above:
        def __init__(self, below: Any) -> None:
            self.below = below

        async def __call__(self, method: str) -> str:
            text = "nothing"
            try:
                await (await getattr(self.below, method).remote())
            except* Exception as group:
                text = str(group.exceptions[0])
            return text

    handle = serve_run(Above.bind(Below.bind()))

    assert "Below" in serve.get(handle.remote("group"), timeout=60)
    for method, text in (("stop", "StopIteration: strange"), ("memory", "MemoryError: full")):
        said = serve.get(handle.remote(method), timeout=60)
        assert said.startswith(f"{text} (in deployment 'Below')")
        assert f"in {method}" in said


def test_a_result_that_cannot_travel_fails_its_request(serve_run: ServeRun) -> None:
    @serve.deployment
    class Locked:
        def __call__(self) -> Any:
            return threading.Lock()

        def fine(self) -> int:
            return 1

    handle = serve_run(Locked.bind())

    with pytest.raises(PayloadError, match="'lock' cannot be pickled"):
        serve.get(handle.remote())
    assert serve.get(handle.fine.remote()) == 1


def test_an_argument_that_cannot_travel_is_refused_at_the_call(serve_run: ServeRun) -> None:
    handle = serve_run(add.bind())

    with pytest.raises(PayloadError, match="'lock' cannot be pickled"):
        handle.remote(threading.Lock(), 1)


def test_a_constructor_that_raises_fails_the_start_and_what_ran_goes_on(serve_run: ServeRun) -> None:
    @serve.deployment
    class Broken:
        def __init__(self, child: Any) -> None:
            raise ValueError("no model file")

    handle = serve_run(add.bind())

    with pytest.raises(DeployError, match=r"(?s)'Broken' could not be started.*Traceback.*ValueError: no model file"):
        serve_run(Broken.bind(add.bind()))
    assert serve.get(handle.remote(1, 2)) == 3


class TenantError(Exception):
    def __init__(self, tenant: str, code: int) -> None:
        super().__init__(f"no tenant {tenant}")
        self.tenant, self.code = tenant, code
        self.connection = object()


def test_an_error_keeps_the_plain_attributes_that_its_constructor_set(run_here: ServeRun) -> None:
    @serve.deployment
    def fail() -> None:
        raise TenantError("acme", code=7)

    with pytest.raises(TenantError) as caught:
        ask(run_here(fail.bind()))

    assert (caught.value.tenant, caught.value.code) == ("acme", 7)
    assert not hasattr(caught.value, "connection")


def test_a_caller_reads_status_and_detail_of_an_http_exception_from_below(run_here: ServeRun) -> None:
    @serve.deployment
    def fail() -> None:
        raise HTTPException(status_code=404, detail={"missing": "item"}, headers={"x-reason": "gone"})

    @serve.deployment
    class Front:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self) -> Any:
            try:
                return await (await self.inner.remote())
            except HTTPException as error:
                return error.status_code, error.detail, error.headers

    got = ask(run_here(Front.bind(fail.bind())))

    assert got == (404, {"missing": "item"}, {"x-reason": "gone"})
