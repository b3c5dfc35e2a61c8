"""Handles: calls from outside and between deployments, refs as arguments, waiting, replacing."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pydantic
import pytest
from fastapi.encoders import jsonable_encoder
from rendezvous import arrive, await_arrival, has_arrived
from serving import ServeRun, ask
from starlette.responses import JSONResponse

import qserve as serve
from qserve.calls.ref import Ref
from qserve.calls.responses import DeploymentResponse, RefTask
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import (
    AppNotFound,
    BackPressureError,
    DeadlineExceeded,
    GetTimeoutError,
    PayloadError,
    QserveException,
    RayServeException,
    RayTaskError,
    RequestCancelledError,
    ResultUnavailable,
    TaskError,
)
from qserve.handle import (
    DeploymentHandle,
    RayServeDAGHandle,
    RayServeDeploymentHandle,
    RayServeHandle,
    RayServeSyncHandle,
)
from qserve.http.render import to_json


@serve.deployment
class Echo:
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    def same(self, value: Any) -> Any:
        return value

    def scaled(self, value: int, *, factor: int = 1) -> int:
        return value * factor

    async def later(self, value: Any) -> Any:
        await asyncio.sleep(0)
        return value


def test_arguments_and_methods_arrive_as_called(serve_run: ServeRun) -> None:
    handle = serve_run(Echo.bind())

    assert serve.get(handle.remote(1, b=2)) == [[1], {"b": 2}]
    assert serve.get(handle.same.remote(3)) == 3
    assert serve.get(handle.options(method_name="later").remote(4)) == 4
    assert serve.get(handle.scaled.remote(3, factor=5)) == 15
    assert serve.get(handle.__call__.remote(1)) == [[1], {}]
    assert serve.get(handle.remote()) == [[], {}]


def test_get_keeps_the_order_of_a_list(serve_run: ServeRun) -> None:
    handle = serve_run(Echo.bind())

    assert serve.get([handle.later.remote(n) for n in range(20)]) == list(range(20))
    assert serve.get([]) == []
    with pytest.raises(TypeError, match="int"):
        serve.get(3)


def test_get_gives_up_waiting_and_the_call_goes_on(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    def slow(value: int) -> int:
        await_arrival(folder, "go")
        return value

    handle = serve_run(slow.bind())
    ref = handle.remote(7)

    with pytest.raises(GetTimeoutError):
        serve.get(ref, timeout=0.05)
    with pytest.raises(GetTimeoutError) as late:
        serve.get([ref], timeout=0)
    assert isinstance(late.value, TimeoutError)
    arrive(folder, "go")
    assert serve.get(ref, timeout=60) == 7


def test_two_awaits_inside_a_deployment(serve_run: ServeRun) -> None:
    @serve.deployment
    class Caller:
        def __init__(self, echo: Any) -> None:
            self.echo = echo

        async def __call__(self, x: int) -> Any:
            self.echo.same.remote(0)  # nobody awaits this one
            task = self.echo.same.remote(x)
            ref = await task
            again = await task
            late = self.echo.later.remote(x + 1)
            return [await ref, await again, await ref, await (await late), type(self.echo).__name__]

    expected = [1, 1, 1, 2, RayServeDeploymentHandle.__name__]
    assert serve.get(serve_run(Caller.bind(Echo.bind())).remote(1)) == expected


@pytest.mark.parametrize("hint", [DeploymentHandle, DeploymentHandle[[int], int], "DeploymentHandle[[int], int]"])
def test_one_await_with_handles_of_the_newer_kind(serve_run: ServeRun, hint: Any) -> None:
    @serve.deployment
    class Caller:
        def __init__(self, echo: Any, other: Any) -> None:
            self.echo, self.other = echo, other.options(use_new_handle_api=True)

        async def __call__(self, x: int) -> Any:
            first = self.echo.same.remote(x)
            passed_on = self.other.same.remote(first)
            return [await first, await passed_on]

    Caller.func_or_class.__init__.__annotations__["echo"] = hint

    handle = serve_run(Caller.bind(Echo.bind(), Echo.bind()))

    assert serve.get(handle.remote(1)) == [1, 1]
    assert handle.options(use_new_handle_api=True).remote(1).result(timeout_s=60) == [1, 1]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_get_inside_a_deployment_does_not_stand_in_its_own_way(serve_run: ServeRun, kind: str) -> None:
    @serve.deployment
    class Caller:
        def __init__(self, first: Any, second: Any) -> None:
            self.first, self.second = first, second

        def sync(self, x: int) -> int:
            return sum(serve.get([self.first.same.remote(x), self.second.later.remote(x)]))

        async def async_(self, x: int) -> int:
            return serve.get(await self.first.same.remote(x)) + serve.get(self.second.later.remote(x))

    handle = serve_run(Caller.bind(Echo.bind(), Echo.bind()))
    method = handle.sync if kind == "sync" else handle.async_

    assert serve.get([method.remote(n) for n in range(5)], timeout=20) == [0, 2, 4, 6, 8]
    # one after the other: a method that was fast runs elsewhere the next time
    assert [serve.get(method.remote(n), timeout=20) for n in range(3)] == [0, 2, 4]


def test_refs_as_arguments_arrive_as_values(serve_run: ServeRun) -> None:
    handle = serve_run(Echo.bind())
    first = handle.later.remote("x")

    assert serve.get(handle.remote(first, 2, named=handle.same.remote(first))) == [["x", 2], {"named": "x"}]
    assert serve.get(handle.same.remote(first)) == "x"
    assert serve.get(handle.same.remote(handle.same.remote(handle.later.remote("deep")))) == "deep"


def test_unawaited_calls_as_arguments_chain_inside_a_deployment(serve_run: ServeRun) -> None:
    @serve.deployment
    class Caller:
        def __init__(self, echo: Any) -> None:
            self.echo = echo

        async def __call__(self, x: int) -> Any:
            task = self.echo.later.remote(x)
            for _ in range(5):
                task = self.echo.same.remote(task)
            ref = await task
            return [await (await self.echo.remote(one, named=one)) for one in (task, ref)]

    assert serve.get(serve_run(Caller.bind(Echo.bind())).remote(3)) == [[[3], {"named": 3}]] * 2


def test_refs_deep_in_an_argument_arrive_as_refs(serve_run: ServeRun) -> None:
    @serve.deployment
    class Receiver:
        async def __call__(self, box: dict[str, list[Any]]) -> Any:
            return [await item for item in box["refs"]]

    @serve.deployment
    class Caller:
        def __init__(self, echo: Any, receiver: Any) -> None:
            self.echo, self.receiver = echo, receiver

        async def __call__(self, x: int) -> Any:
            refs = [await self.echo.later.remote(x), await self.echo.same.remote(x + 1)]
            return await (await self.receiver.remote({"refs": refs}))

    assert serve.get(serve_run(Caller.bind(Echo.bind(), Receiver.bind())).remote(1)) == [1, 2]


def test_an_unfinished_argument_holds_up_nobody_else(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    class First:
        async def __call__(self, name: str) -> str:
            if name == "blocked":
                await asyncio.to_thread(await_arrival, folder, "go")
            return name

    @serve.deployment
    class Chain:
        def __init__(self, first: Any, second: Any) -> None:
            self.first, self.second = first, second

        async def __call__(self, name: str) -> str:
            return await (await self.second.same.remote(self.first.remote(name)))

    handle = serve_run(Chain.bind(First.bind(), Echo.bind()))
    blocked = handle.remote("blocked")

    assert serve.get(handle.remote("passes"), timeout=20) == "passes"
    arrive(folder, "go")
    assert serve.get(blocked, timeout=20) == "blocked"


def test_a_failed_argument_fails_the_call_with_its_error(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    class Failing:
        def divide(self, x: int) -> float:
            return 1 / x

        def take(self, value: float) -> float:
            arrive(folder, "taken")
            return value

    handle = serve_run(Failing.bind())

    with pytest.raises(ZeroDivisionError):
        serve.get(handle.take.remote(handle.divide.remote(0)))
    assert not has_arrived(folder, "taken")


def test_handles_travel_as_arguments_and_by_pickle(serve_run: ServeRun) -> None:
    @serve.deployment
    async def use(handle: Any, value: int) -> Any:
        return type(handle).__name__, await (await handle.remote(value))

    handle = serve_run(DAGDriver.bind({"/echo": Echo.bind(), "/use": use.bind(*_two_inputs())}))
    copy = pickle.loads(pickle.dumps(handle))

    assert copy == handle
    assert hash(copy) == hash(handle)
    assert serve.get(copy.predict_with_route.remote("/echo", 1)) == [[1], {}]
    echo = RayServeDeploymentHandle("Echo")
    kind, result = serve.get(handle.predict_with_route.remote("/use", echo, 2))
    assert (kind, result) == ("RayServeDeploymentHandle", [[2], {}])


def _two_inputs() -> tuple[Any, Any]:
    with InputNode() as inp:
        return inp[0], inp[1]


def test_a_handle_works_in_threads_and_across_event_loops(serve_run: ServeRun) -> None:
    handle = serve_run(Echo.bind())
    newer = handle.options(use_new_handle_api=True)

    async def ask(n: int) -> Any:
        return await newer.same.remote(n)

    async def ask_anew(n: int) -> Any:
        return await serve.get_app_handle("default").same.remote(n)

    for kind in (ask, ask_anew):
        assert [asyncio.run(kind(n)) for n in range(10)] == list(range(10))
    results: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: results.append(serve.get(handle.same.remote(n)))) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == list(range(5))


def test_many_calls_are_submitted_at_once_by_programs_and_by_deployments(serve_run: ServeRun) -> None:
    @serve.deployment
    class Front:
        def __init__(self, echo: DeploymentHandle) -> None:
            self.echo = echo

        async def many(self, count: int) -> list[int]:
            return await asyncio.gather(*serve.submit_many(self.echo.same, [(number,) for number in range(count)]))

    handle = serve_run(Front.bind(Echo.bind()))

    refs = serve.submit_many(handle.many, [(3,), {"count": 1}, (threading.Lock(),), (0,)])

    assert serve.get([refs[0], refs[1], refs[3]], timeout=60) == [[0, 1, 2], [0], []]
    with pytest.raises(PayloadError, match="lock"):
        refs[2].result(60)


def test_a_loop_that_gave_up_waiting_disturbs_nobody(serve_run: ServeRun, mode: str, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    def slow(value: int) -> int:
        await_arrival(folder, "go")
        return value

    handle = serve_run(slow.bind()).options(use_new_handle_api=True)
    response = handle.remote(1)

    async def give_up() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(_value(response)), 0.02)

    asyncio.run(give_up())
    arrive(folder, "go")

    assert handle.remote(2).result(timeout_s=20) == 2
    assert response.result(timeout_s=20) == 1


async def _value(response: Any) -> Any:
    return await response


def test_a_missing_method_names_those_there_are(serve_run: ServeRun) -> None:
    @serve.deployment
    class Model:
        def exists(self) -> str:
            return "yes"

        async def later(self) -> None: ...

        def _hidden(self) -> None: ...

    handle = serve_run(Model.bind())

    for name in ("does_not_exist", "__call__"):
        words = rf"'{name}' that does not exist.*Available methods: \['exists', 'later'\]"
        with pytest.raises(RayServeException, match=words) as told:
            serve.get(getattr(handle, name).remote())
        assert isinstance(told.value, RayTaskError)
    with pytest.raises(RayServeException, match="'__call__' that does not exist"):
        serve.get(handle.remote())
    assert serve.get(handle.exists.remote()) == "yes"


def test_a_cancelled_call_that_has_not_begun_never_runs(serve_run: ServeRun, mode: str, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    class Slow:
        def __call__(self, name: str) -> str:
            arrive(folder, f"{name} began")
            await_arrival(folder, "go")
            return name

    handle = serve_run(Slow.bind())
    first = handle.remote("first")
    await_arrival(folder, "first began")
    second, third = handle.remote("second"), handle.remote("third")

    second.cancel()
    with pytest.raises(RequestCancelledError, match="cancelled"):
        serve.get(second, timeout=60)
    arrive(folder, "go")

    assert serve.get([first, third], timeout=20) == ["first", "third"]
    assert not has_arrived(folder, "second began")


def test_what_a_cancelled_call_causes_is_dropped(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    class Steps:
        async def one(self, name: str) -> str:
            arrive(folder, "began")
            await asyncio.to_thread(await_arrival, folder, "go")
            return name

        async def two(self, name: str) -> str:
            arrive(folder, name)
            return name

    with InputNode() as inp:
        steps = Steps.bind()
        handle = serve_run(DAGDriver.bind(steps.two.bind(steps.one.bind(inp))))
    cancelled = handle.predict.remote("cancelled")
    await_arrival(folder, "began")

    cancelled.cancel()
    with pytest.raises(RequestCancelledError):
        serve.get(cancelled, timeout=20)
    arrive(folder, "go")

    assert serve.get(handle.predict.remote("other"), timeout=20) == "other"
    assert not has_arrived(folder, "cancelled")


def with_room_for_three(folder: str) -> Any:
    """A deployment that runs one call and queues two; a call notes that it has begun, and waits for "go"."""

    @serve.deployment(
        max_concurrent_queries=1,
        max_queued_requests=2,
        backpressure_config={"status_code": 429, "retry_after_s": 6.5},
    )
    class Slow:
        async def __call__(self, name: str) -> str:
            arrive(folder, name)
            await asyncio.to_thread(await_arrival, folder, "go")
            return name

    return Slow.bind()


def test_a_full_deployment_refuses_calls(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)
    handle = serve_run(with_room_for_three(folder))
    accepted = [handle.remote("0")]
    await_arrival(folder, "0")
    accepted += [handle.remote("1"), handle.remote("2")]

    with pytest.raises(BackPressureError) as refused:
        serve.get(handle.remote("3"), timeout=20)
    assert (refused.value.status, refused.value.retry_after_s) == (429, 7)
    arrive(folder, "go")
    assert serve.get(accepted, timeout=20) == ["0", "1", "2"]


def test_an_accepted_call_is_told_from_a_refused_one_before_it_has_run(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)
    handle = serve_run(with_room_for_three(folder)).options(use_new_handle_api=True)
    calls = [handle.remote("0")]
    calls[0].accepted(timeout_s=20)
    await_arrival(folder, "0")
    calls += [handle.remote("1"), handle.remote("2")]
    serve.accepted(calls, timeout_s=20)
    refused = [handle.remote("3"), handle.remote("4")]

    with pytest.raises(BackPressureError) as failure:
        serve.accepted([*calls, *refused], timeout_s=20)
    with pytest.raises(BackPressureError):
        asyncio.run(refused[1].accepted_async())

    assert failure.value.__notes__ == ["2 of 5 calls were refused; this is the first error"]
    arrive(folder, "go")
    assert serve.get(calls, timeout=20) == ["0", "1", "2"]


def test_every_kind_of_call_can_be_waited_for_until_it_is_accepted(serve_run: ServeRun) -> None:
    @serve.deployment
    class Model:
        def broken(self) -> None:
            raise ValueError("not today")

        def items(self) -> Any:
            yield from range(3)

    sync = serve_run(Model.bind())
    ref, response = sync.broken.remote(), sync.options(use_new_handle_api=True).broken.remote()
    stream = sync.items.options(stream=True).remote()

    for call in (ref, response, stream):
        call.accepted(timeout_s=20)
        asyncio.run(call.accepted_async())
    serve.accepted(stream)
    assert list(stream) == [0, 1, 2]
    with pytest.raises(ValueError, match="not today"):
        ref.result(20)
    serve.accepted((ref, response, stream))  # that a call fails later does not concern its acceptance

    async def block() -> None:
        ref.accepted()

    with pytest.raises(RuntimeError, match=r"await ref\.accepted_async\(\)"):
        asyncio.run(block())
    with pytest.raises(TypeError, match="qserve.accepted takes what .* got 'int'"):
        serve.accepted([ref, 1])  # type: ignore[list-item]
    with pytest.raises(ResultUnavailable, match="was a stream"):
        serve.get_ref(stream.request_id).result(20)


def test_max_concurrent_queries_limits_what_runs(serve_run: ServeRun) -> None:
    @serve.deployment(max_concurrent_queries=3)
    class Model:
        def __init__(self) -> None:
            self.running, self.three_run = 0, asyncio.Event()

        async def __call__(self) -> int:
            self.running += 1
            if self.running == 3:
                self.three_run.set()
            await self.three_run.wait()
            for _ in range(10):
                await asyncio.sleep(0)
            most, self.running = self.running, self.running - 1
            return most

    handle = serve_run(Model.bind())

    assert max(serve.get([handle.remote() for _ in range(20)], timeout=20)) == 3


def test_a_request_ends_at_its_deadline(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    async def slow() -> None:
        await asyncio.to_thread(await_arrival, folder, "go")

    ref = serve_run(slow.bind(), request_timeout_s=0.2).remote()

    with pytest.raises(DeadlineExceeded):
        serve.get(ref, timeout=20)
    arrive(folder, "go")


def test_applications_live_side_by_side_and_are_replaced_by_name(serve_run: ServeRun) -> None:
    one = serve_run(Echo.bind(), name="one")

    @serve.deployment
    def greet(name: str) -> str:
        return f"hello {name}"

    two = serve_run(greet.bind(), name="two")
    assert serve.get(one.same.remote(1)) == 1
    assert serve.get(two.remote("you")) == "hello you"

    replaced = serve_run(greet.options(name="other").bind(), name="one")
    assert serve.get(replaced.remote("me")) == "hello me"
    assert serve.get(two.remote("you")) == "hello you"


def test_the_replica_knows_who_it_is(serve_run: ServeRun) -> None:
    @serve.deployment
    class Model:
        def __init__(self) -> None:
            self.born_as = serve.get_replica_context().deployment

        def __call__(self) -> Any:
            here = serve.get_replica_context()
            return [self.born_as, here.app_name, here.deployment, here.servable_object is self]

    handle = serve_run(Model.options(name="Named").bind())

    assert serve.get(handle.remote()) == ["Named", "default", "Named", True]
    with pytest.raises(QserveException, match="from within a deployment"):
        serve.get_replica_context()


def test_the_model_id_is_not_passed_on_by_itself(serve_run: ServeRun) -> None:
    @serve.deployment
    def which() -> str:
        return serve.get_multiplexed_model_id()

    @serve.deployment
    class Front:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self) -> list[str]:
            own = serve.get_multiplexed_model_id()
            given = self.inner.options(multiplexed_model_id=own)
            return [own, await (await self.inner.remote()), await (await given.remote())]

    handle = serve_run(Front.bind(which.bind()))

    assert ask(handle.options(multiplexed_model_id="m")) == ["m", "", "m"]


def test_options_of_a_handle_leave_it_as_it_was(run_here: ServeRun) -> None:
    handle = run_here(Echo.bind())

    other = handle.options(method_name="same")

    assert (other == handle, other == handle.same) == (False, True)
    assert [ask(other, "a"), ask(handle)] == ["a", [[], {}]]


@serve.deployment
def hello(name: str) -> str:
    return f"hello {name}"


def test_refs_are_awaited_in_a_program_of_its_own_loop(run_here: ServeRun) -> None:
    handle = run_here(hello.bind())

    async def main() -> list[str]:
        first = handle.remote("a")
        both = await asyncio.gather(handle.remote("b"), handle.remote(first))
        return [await first, await asyncio.wait_for(handle.remote("c"), 10), *both]

    assert asyncio.run(main()) == ["hello a", "hello c", "hello b", "hello hello a"]


@serve.deployment
class Model:
    def __init__(self, weight: int = 1) -> None:
        self.weight = weight

    def compute(self, value: Any = 1) -> Any:
        return value * self.weight

    async def compute_async(self, value: Any = 1) -> Any:
        return value * self.weight


@serve.deployment
class Driver:
    def __init__(self, m1: RayServeHandle, m2: RayServeHandle) -> None:
        self.m1, self.m2 = m1, m2

    async def in_one_expression(self) -> int:
        return await (await self.m1.compute.remote(2))

    async def gathered_calls(self) -> list[int]:
        refs = await asyncio.gather(*[self.m1.compute.remote(n) for n in range(3)])
        return await asyncio.gather(*refs)

    async def gathered_refs(self) -> list[int]:
        return await asyncio.gather(await self.m1.compute.remote(1), await self.m2.compute.remote(1))

    async def chained(self) -> int:
        return await (await self.m2.compute.remote(self.m1.compute.remote(5)))

    async def chained_by_ref(self) -> int:
        ref = await self.m1.compute_async.remote(5)
        return await (await self.m2.compute.remote(value=ref))

    async def awaited_twice_and_never(self) -> list[int]:
        self.m1.compute.remote(0)
        call = self.m1.compute.remote(3)
        first, second = await call, await call
        return [await first, await first, await second]

    def got_in_sync(self) -> int:
        return sum(serve.get([self.m1.compute.remote(1), self.m2.compute.remote(1)]))

    async def got_in_async(self) -> int:
        return serve.get(await self.m1.compute.remote(4)) + sum(serve.get([self.m2.compute.remote(1)]))

    async def as_a_task(self) -> int:
        task = asyncio.create_task(self.in_one_expression())
        return await asyncio.wait_for(task, 10) + await asyncio.wait_for(await self.m1.compute.remote(1), 10)


def test_the_awaits_that_programs_write_inside_a_deployment(run_here: ServeRun) -> None:
    handle = run_here(Driver.bind(Model.bind(2), Model.bind(3)))
    expected = {
        "in_one_expression": 4,
        "gathered_calls": [0, 2, 4],
        "gathered_refs": [2, 3],
        "chained": 30,
        "chained_by_ref": 30,
        "awaited_twice_and_never": [6, 6, 6],
        "got_in_sync": 5,
        "got_in_async": 11,
        "as_a_task": 6,
    }

    assert {name: ask(getattr(handle, name)) for name in expected} == expected


@serve.deployment
class Waiting:
    def __init__(self, model: Any) -> None:
        self.model = model

    async def __call__(self) -> list[int]:
        calls = [self.model.compute.remote(number) for number in range(3)]
        done, late = await asyncio.wait(calls, timeout=10)
        assert not late
        assert all(call.done() and call.exception() is None for call in done)
        return [await call.result() for call in calls]

    async def first(self) -> int:
        done, _ = await asyncio.wait([self.model.compute.remote(1)], return_when=asyncio.FIRST_COMPLETED)
        return await done.pop().result()


def test_calls_can_be_waited_for_like_tasks(run_here: ServeRun) -> None:
    handle = run_here(Waiting.bind(Model.bind(2)))

    assert ask(handle) == [0, 2, 4]
    assert ask(handle.first) == 2


def test_constructors_may_call_the_handles_that_they_get(run_here: ServeRun) -> None:
    @serve.deployment
    class InSync:
        def __init__(self, model: RayServeHandle) -> None:
            self.value = serve.get(model.compute.remote(5))

        def __call__(self) -> int:
            return self.value

    @serve.deployment
    class InAsync:
        async def __init__(self, first: RayServeHandle, model: RayServeHandle) -> None:
            self.value = await (await model.compute.remote(await (await first.remote())))

        def __call__(self) -> int:
            return self.value

    assert ask(run_here(InAsync.bind(InSync.bind(Model.bind(2)), Model.bind(3)))) == 30


def test_a_handle_is_pickled_with_its_options_and_by_cloudpickle(run_here: ServeRun) -> None:
    handle = run_here(Echo.bind()).options(method_name="same")

    for copy in (pickle.loads(pickle.dumps(handle)), cloudpickle.loads(cloudpickle.dumps([handle]))[0]):
        assert (copy, hash(copy), ask(copy, "a")) == (handle, hash(handle), "a")


def test_a_ref_that_was_refused_at_once_raises_when_it_is_pickled(run_here: ServeRun) -> None:
    run_here(Echo.bind())
    ref = RayServeSyncHandle("NoSuch").remote()

    with pytest.raises(AppNotFound, match="no deployment 'NoSuch'"):
        pickle.dumps(ref)


def test_get_takes_a_tuple_too(run_here: ServeRun) -> None:
    handle = run_here(Echo.bind())

    assert serve.get((handle.same.remote(1), handle.same.remote(2))) == [1, 2]


def test_asking_for_a_handle_a_hundred_times_gives_one(run_here: ServeRun) -> None:
    run_here(Echo.bind())

    assert len({serve.get_app_handle("default") for _ in range(100)}) == 1
    assert len({serve.get_deployment_handle("Echo") for _ in range(100)}) == 1
    assert serve.get_app_handle("default") == serve.get_deployment_handle("Echo")


def test_a_deployment_finds_the_others_of_its_application_by_name(serve_run: ServeRun) -> None:
    @serve.deployment
    class Finder:
        def __init__(self, echo: Any) -> None: ...

        async def __call__(self, name: str) -> Any:
            return await serve.get_deployment_handle(name).same.remote("found")

        def blocking(self, name: str) -> Any:
            return serve.get_deployment_handle(name).same.remote("found").result(timeout_s=20)

    handle = serve_run(Finder.bind(Echo.bind()))

    assert ask(handle, "Echo") == ask(handle.blocking, "Echo") == "found"
    with pytest.raises(AppNotFound, match="no deployment 'Nobody'; it has"):
        ask(handle, "Nobody")


def test_a_call_with_a_refused_call_as_argument_has_its_error(serve_run: ServeRun, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
    class Narrow:
        async def __call__(self, path: str) -> str:
            while not Path(path).exists():
                await asyncio.sleep(0.005)
            return "done"

    @serve.deployment
    class Parent:
        def __init__(self, narrow: Any, echo: Any) -> None:
            self.narrow, self.echo = narrow, echo

        async def __call__(self, path: str) -> Any:
            return await (await self.echo.same.remote(self.narrow.remote(path)))

    handle = serve_run(Parent.bind(Narrow.bind(), Echo.bind()))
    narrow = serve.get_deployment_handle("Narrow")
    held = [narrow.remote(str(gate)) for _ in range(2)]
    serve.accepted(held, 20)
    with pytest.raises(BackPressureError):
        ask(handle, str(gate))
    gate.touch()
    assert [call.result(timeout_s=20) for call in held] == ["done", "done"]


def test_the_names_of_handles_in_annotations_are_only_names(run_here: ServeRun) -> None:
    @serve.deployment
    class Annotated:
        def __init__(
            self,
            one: RayServeHandle,
            two: RayServeSyncHandle,
            three: RayServeDeploymentHandle,
            four: RayServeDAGHandle,
            five: Any,
        ) -> None:
            self.all = [one, two, three, four, five]

        async def __call__(self) -> list[int]:
            return [await (await handle.compute.remote(1)) for handle in self.all]

    assert ask(run_here(Annotated.bind(*[Model.bind(n) for n in range(5)]))) == [0, 1, 2, 3, 4]


def test_a_handle_shows_its_target(run_here: ServeRun) -> None:
    handle = run_here(Model.bind())

    assert repr(RayServeDeploymentHandle("Model")) == "RayServeDeploymentHandle(deployment='Model')"
    assert repr(handle) == "RayServeSyncHandle(deployment='Model')"
    assert "deployment='Model'" in repr(handle.compute)
    assert repr(DeploymentHandle("Model")) == "DeploymentHandle(deployment='Model')"


def other_of(version: str) -> Any:
    @serve.deployment
    class Other:
        def __call__(self) -> list[Any]:
            context = serve.get_request_context()
            return [version, context.request_id, context.deadline_ms, context.app_name]

    return Other.bind()


@serve.deployment
class Reaches:
    """Calls another application and its own, by handles that it gets in its constructor, and in its methods."""

    def __init__(self) -> None:
        self.kept = serve.get_app_handle("other")

    async def constructed(self) -> list[Any]:
        return await self.kept.remote()

    async def fetched(self) -> list[Any]:
        return await serve.get_app_handle("other").remote()

    async def deployment(self) -> list[Any]:
        return await serve.get_deployment_handle("Other", "other").remote()

    def ref(self) -> Any:
        return serve.get_app_handle("other").remote()

    async def own(self) -> list[Any]:
        return await serve.get_app_handle("front").context.remote()

    async def own_deployment(self) -> list[Any]:
        return await serve.get_deployment_handle("Reaches").context.remote()

    def context(self) -> list[Any]:
        context = serve.get_request_context()
        return ["own", context.request_id, context.deadline_ms, context.app_name]

    async def __call__(self, method: str) -> list[Any]:
        own = serve.get_request_context()
        found = getattr(self, method)()
        found = await found if inspect.isawaitable(found) else found
        found = await found if inspect.isawaitable(found) else found
        return [*found, found[1] == own.request_id, found[2] == own.deadline_ms]

    async def missing(self) -> str:
        try:
            serve.get_app_handle("nowhere")
        except AppNotFound as error:
            return str(error)
        return ""


def test_a_deployment_reaches_other_applications_with_its_request_and_deadline(serve_run: ServeRun) -> None:
    for version in ("first", "second"):
        serve_run(other_of(version), name="other")
        if version == "first":
            front: Any = serve_run(Reaches.bind(), name="front", request_timeout_s=30)
        for method in ("constructed", "fetched", "deployment", "ref"):
            said, _, _, app, *is_carried_on = serve.get(front.remote(method), timeout=60)
            assert (said, app, is_carried_on) == (version, "other", [True, True]), method
    for method in ("own", "own_deployment"):
        said, _, _, app, *is_carried_on = serve.get(front.remote(method), timeout=60)
        assert (said, app, is_carried_on) == ("own", "front", [True, True]), method
    assert "'nowhere'" in serve.get(front.missing.remote(), timeout=60)


# -- one await or two ------------------------------------------------------------------------------

MISTAKES: dict[str, Any] = {
    "an item": lambda ref: ref["a"],
    "an attribute": lambda ref: ref.shape,
    "a method": lambda ref: ref.upper(),
    "a call": lambda ref: ref(1),
    "a sum": lambda ref: ref + 1,
    "a sum from the right": lambda ref: 1 + ref,
    "a quotient": lambda ref: 2 / ref,
    "a comparison": lambda ref: ref > 1,
    "a loop": lambda ref: list(ref),
    "membership": lambda ref: 1 in ref,
    "its length": lambda ref: len(ref),
    "a number": lambda ref: int(ref),
    "an index": lambda ref: [1][ref],
    "unpacking": lambda ref: (lambda a, b: a)(*ref),
    "JSON": lambda ref: to_json({"a": [ref]}),
    "a key": lambda ref: to_json({ref: 1}),
    "the JSON of FastAPI": lambda ref: jsonable_encoder({"a": ref}),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("kind", [lambda ref: ref, RefTask, DeploymentResponse], ids=["a ref", "a task", "a response"])
def test_a_ref_in_the_place_of_a_value_says_what_to_await(mistake: Any, kind: Any) -> None:
    ref = kind(Ref.resolved(1))

    with pytest.raises((TypeError, ValueError, AttributeError, PayloadError), match="not arrived: await it") as caught:
        mistake(ref)
    assert ("await it once more, or annotate" in str(caught.value)) is (kind is not DeploymentResponse)
    assert ref
    assert not hasattr(ref, "__array__")


class Text(pydantic.BaseModel):
    text: str


REFUSALS: dict[str, Any] = {
    "json.dumps": lambda ref: json.dumps([ref]),
    "a response": lambda ref: JSONResponse({"a": ref}),
    "a model": lambda ref: Text(text=ref),
    "text": lambda ref: "".join([ref]),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_library_that_refuses_a_ref_is_explained_as_well(run_here: ServeRun, refusal: Any) -> None:
    @serve.deployment
    class Leaf:
        def __call__(self) -> str:
            return "text"

    @serve.deployment
    class Top:
        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf

        async def __call__(self) -> Any:
            ref = await self.leaf.remote()
            return refusal(ref)

        async def own(self) -> None:
            await (ref := self.leaf.remote())
            raise ValueError(f"of the user, who holds {id(ref)}")

    handle: Any = run_here(Top.bind(Leaf.bind()))
    with pytest.raises(TaskError, match="await it once more, or annotate"):
        serve.get(handle.remote())
    with pytest.raises(TaskError) as caught:
        serve.get(handle.own.remote())
    assert "await it once more" not in str(caught.value)


def test_one_setting_gives_every_handle_of_an_application_one_await(serve_run: ServeRun) -> None:
    @serve.deployment
    class Leaf:
        def __call__(self, x: int) -> int:
            return x + 1

        def items(self, count: int) -> Iterator[int]:
            yield from range(count)

    @serve.deployment
    class Middle:
        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf

        async def __call__(self, x: int) -> int:
            return await self.leaf.remote(x) + 1  # type: ignore[no-any-return]

    @serve.deployment(use_new_handle_api=True)
    class Top:
        def __init__(self, middle: Any, leaf: Any, graph: Any) -> None:
            self.middle, self.leaf, self.graph = middle, leaf, graph

        async def __call__(self, x: int) -> list[Any]:
            items = [item async for item in self.leaf.options(stream=True).items.remote(2)]
            return [await self.middle.remote(x), await self.graph.remote(x), items]

    leaf = Leaf.bind()
    with InputNode() as inp:
        graph = leaf.__call__.bind(inp)

    assert ask(serve_run(Top.bind(Middle.bind(leaf), leaf, graph)), 1) == [3, 2, [0, 1]]


def test_a_stream_that_is_awaited_first_gives_refs(serve_run: ServeRun) -> None:
    """As in Ray Serve 2.5."""

    @serve.deployment
    class Source:
        def items(self, count: int) -> Iterator[int]:
            yield from range(count)
            if count > 2:
                raise KeyError("too many")

    @serve.deployment
    class Reader:
        def __init__(self, source: Any) -> None:
            self.source = source

        async def __call__(self, count: int) -> list[int]:
            return [await ref async for ref in await self.source.options(stream=True).items.remote(count)]

    handle = serve_run(Reader.bind(Source.bind()))

    assert ask(handle, 2) == [0, 1]
    with pytest.raises(KeyError):
        ask(handle, 3)
