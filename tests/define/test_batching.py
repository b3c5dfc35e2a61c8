"""Calls with one item each run as batches: exact sizes, exact waits, nobody held up by anybody else's failure."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tasks import outcomes, running, turns

from qserve.base.context import RequestContext, request_context
from qserve.define import batching
from qserve.define.batching import Batcher, Limits, batch
from qserve.define.multiplexing import get_multiplexed_model_id
from qserve.exceptions import QserveException

FOREVER_S = 1000.0


class Body:
    """A body that notes its batches and, once closed, waits at its door."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.began = asyncio.Event()
        self.door = asyncio.Event()
        self.door.set()
        self.was_cancelled = False

    async def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(items)
        self.began.set()
        try:
            await self.door.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return [item * 10 for item in items]


def batched_body(**options: Any) -> tuple[Body, Any]:
    body = Body()

    @batch(**options)
    async def run(items: list[Any]) -> list[Any]:
        return await body(items)

    return body, run


async def many(call: Callable[[Any], Awaitable[Any]], items: Any) -> list[Any]:
    return await asyncio.gather(*map(call, items))


# -- the rule --------------------------------------------------------------------------------------


def drained(batcher: Batcher[Any], now_s: float) -> list[list[Any]]:
    batches = []
    while batch_now := batcher.ready(now_s):
        batches.append(batch_now)
    return batches


@given(
    arrivals=st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 10)), max_size=40),
    size=st.integers(1, 6),
    timeout_s=st.floats(0, 5),
)
def test_every_item_runs_once_in_order_with_its_own_kind_and_never_later_than_it_may_wait(
    arrivals: list[tuple[str, float]], size: int, timeout_s: float
) -> None:
    batcher: Batcher[tuple[int, str]] = Batcher(Limits(size, timeout_s))
    now_s, batches, came = 0.0, [], {}
    for number, (kind, pause_s) in enumerate(arrivals):
        now_s += pause_s
        batcher.add((number, kind), kind, now_s)
        came[number, kind] = now_s
        for one in drained(batcher, now_s):
            assert len(one) == size or now_s >= came[one[0]] + timeout_s
            batches.append(one)
        due_s = batcher.due_s()
        assert due_s is None or now_s < due_s <= now_s + timeout_s
    batches += drained(batcher, now_s + timeout_s)

    assert all(len(one) <= size and len({kind for _, kind in one}) == 1 for one in batches)
    for kind in "ab":
        assert [item for one in batches for item in one if item[1] == kind] == [k for k in came if k[1] == kind]
    assert batcher.due_s() is None


@given(sizes=st.lists(st.integers(1, 10), max_size=30))
def test_a_measured_batch_is_as_large_as_it_can_be_and_no_larger(sizes: list[int]) -> None:
    items = list(enumerate(sizes))
    batcher: Batcher[tuple[int, int]] = Batcher(Limits(10), lambda some: sum(size for _, size in some))
    for item in items:
        batcher.add(item, "", 0.0)

    batches = drained(batcher, 0.0)

    assert [item for one in batches for item in one] == items
    totals = [sum(size for _, size in one) for one in batches]
    assert all(total <= 10 for total in totals)
    assert all(total + after[0][1] > 10 for total, after in zip(totals, batches[1:], strict=False))


def test_the_kind_that_waits_longest_runs_first_and_a_discarded_item_does_not_run() -> None:
    batcher: Batcher[str] = Batcher(Limits(2, 1.0))
    for now_s, item in enumerate(["b1", "a1", "b2", "a2"]):
        batcher.add(item, item[0], now_s)

    assert batcher.discard("b1", "b")
    assert not batcher.discard("b1", "b")

    assert drained(batcher, 3.0) == [["a1", "a2"], ["b2"]]


# -- sizes and waits -------------------------------------------------------------------------------


def test_bare_and_with_options_a_caller_passes_one_item_and_gets_one_result() -> None:
    class Model:
        @batch
        async def double(self, items: list[int]) -> list[int]:
            return [2 * item for item in items]

    @batch(max_batch_size=2, batch_wait_timeout_s=0)
    async def triple(items: list[int]) -> tuple[int, ...]:
        return tuple(3 * item for item in items)

    assert asyncio.run(many(Model().double, range(30))) == [2 * item for item in range(30)]
    assert asyncio.run(many(triple, range(5))) == [0, 3, 6, 9, 12]
    assert inspect.iscoroutinefunction(Model().double)


def test_without_a_wait_the_first_item_runs_alone_and_those_that_come_meanwhile_run_together() -> None:
    async def scene() -> None:
        body, run = batched_body(max_batch_size=5)

        assert await many(run, range(12)) == [item * 10 for item in range(12)]
        assert body.batches == [[0], [1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11]]

    asyncio.run(scene())


def test_a_full_batch_runs_at_once_and_a_smaller_one_waits() -> None:
    async def scene() -> None:
        body, run = batched_body(max_batch_size=3, batch_wait_timeout_s=FOREVER_S)
        await many(run, range(3))
        waiting = [running(run(item)) for item in (3, 4)]
        await turns()
        assert body.batches == [[0, 1, 2]]

        await run(5)
        assert body.batches == [[0, 1, 2], [3, 4, 5]]
        assert [await one for one in waiting] == [30, 40]

    asyncio.run(scene())


def test_a_smaller_batch_runs_when_its_first_item_has_waited_long_enough() -> None:
    async def scene() -> None:
        body, run = batched_body(batch_wait_timeout_s=0.02)
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        await many(run, range(3))

        assert body.batches == [[0, 1, 2]]
        assert loop.time() - began_s >= 0.019

    asyncio.run(scene())


@pytest.mark.parametrize("limit", [1, 2])
def test_no_more_batches_run_at_once_than_allowed(limit: int) -> None:
    async def scene() -> None:
        body, run = batched_body(max_batch_size=1, max_concurrent_batches=limit)
        body.door.clear()
        calls = running(many(run, range(4)))
        await turns()
        assert len(body.batches) == limit

        body.door.set()
        await calls
        assert body.batches == [[0], [1], [2], [3]]

    asyncio.run(scene())


def test_size_and_wait_can_be_changed_while_it_runs() -> None:
    class Model:
        sizes: list[int] = []

        @batch(max_batch_size=10, batch_wait_timeout_s=FOREVER_S)
        async def run(self, items: list[int]) -> list[int]:
            self.sizes.append(len(items))
            return items

    async def scene() -> None:
        model = Model()
        model.run.set_max_batch_size(2)
        await many(model.run, range(4))
        model.run.set_batch_wait_timeout_s(0)
        await model.run(4)

        assert model.sizes == [2, 2, 1]
        with pytest.raises(ValueError, match="max_batch_size"):
            model.run.set_max_batch_size(0)

    asyncio.run(scene())


def test_a_batch_may_be_measured_by_a_function_of_its_items() -> None:
    async def scene() -> None:
        body, run = batched_body(
            max_batch_size=4, batch_wait_timeout_s=FOREVER_S, batch_size_fn=lambda s: len("".join(s))
        )

        await many(run, ["ab", "a", "abc", "a"])
        assert body.batches == [["ab", "a"], ["abc", "a"]]
        with pytest.raises(ValueError, match="is larger than max_batch_size on its own"):
            await run("abcde")

    asyncio.run(scene())


def test_a_measuring_function_that_fails_fails_the_items_it_saw_and_no_others() -> None:
    def measure(items: list[int]) -> int:
        return len(items) if len(items) < 2 else items[0] // 0

    async def scene() -> None:
        body, run = batched_body(batch_wait_timeout_s=FOREVER_S, batch_size_fn=measure)

        assert [type(one) for one in await outcomes(run(1), run(2))] == [ZeroDivisionError] * 2
        run.set_max_batch_size(1)
        assert await run(3) == 30
        assert body.batches == [[3]]

    asyncio.run(scene())


# -- parameters ------------------------------------------------------------------------------------


def test_parameters_by_position_keyword_mixed_or_out_of_order_arrive_as_parallel_lists() -> None:
    @batch(max_batch_size=4, batch_wait_timeout_s=FOREVER_S)
    async def show(a: list[int], b: list[int], *, c: list[int] = 9) -> list[Any]:  # type: ignore[assignment]
        return [(a, b, c)] * len(a)

    async def scene() -> None:
        rows = await asyncio.gather(show(1, 2, c=3), show(4, b=5), show(b=8, a=7), show(c=1, b=2, a=3))
        assert rows == [([1, 4, 7, 3], [2, 5, 8, 2], [3, 9, 9, 1])] * 4

        with pytest.raises(TypeError, match="missing a required argument: 'b'"):
            await show(1)

    asyncio.run(scene())


def test_calls_with_different_numbers_of_further_arguments_do_not_share_a_batch() -> None:
    @batch
    async def count(first: list[int], *others: list[int], **named: list[int]) -> list[Any]:
        return [(first, others, named)] * len(first)

    async def scene() -> None:
        assert await asyncio.gather(count(0), count(1, 2), count(3), count(4, 5), count(6, x=7)) == [
            ([0], (), {}),
            ([1, 4], ([2, 5],), {}),
            ([3], (), {}),
            ([1, 4], ([2, 5],), {}),
            ([6], (), {"x": [7]}),
        ]

    asyncio.run(scene())


# -- failures --------------------------------------------------------------------------------------


def test_an_error_in_the_body_reaches_every_caller_of_that_batch_and_no_other() -> None:
    @batch(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
    async def invert(items: list[int]) -> list[float]:
        return [1 / item for item in items]

    async def scene() -> None:
        first, second, *fine = await outcomes(invert(1), invert(0), invert(1), invert(2))
        assert isinstance(first, ZeroDivisionError)
        assert isinstance(second, ZeroDivisionError)
        assert fine == [1, 0.5]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("result", "told"),
    [([1], "list of 2 results, one for each item, not 1"), ([1, 2, 3], "not 3")]
    + [(value, f"not {type(value).__name__}") for value in ("ab", {1: 1, 2: 2}, None, 2, {1, 2})],
)
def test_a_result_that_is_no_list_or_has_another_length_is_a_clear_error_for_each(result: Any, told: str) -> None:
    @batch(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
    async def answer(items: list[int]) -> Any:
        return result

    async def scene() -> None:
        for error in await outcomes(answer(1), answer(2)):
            assert isinstance(error, QserveException)
            assert "answer is batched" in str(error)
            assert told in str(error)

    asyncio.run(scene())


def test_an_array_is_as_good_as_a_list() -> None:
    numpy = pytest.importorskip("numpy")

    @batch
    async def double(items: list[int]) -> Any:
        return numpy.array(items) * 2

    assert asyncio.run(many(double, range(5))) == [0, 2, 4, 6, 8]


# -- cancelling ------------------------------------------------------------------------------------


def test_a_cancelled_item_is_left_out_of_a_batch_that_has_not_started() -> None:
    async def scene() -> None:
        body, run = batched_body(max_batch_size=3, batch_wait_timeout_s=FOREVER_S)
        first, second = running(run(1)), running(run(2))
        await turns()
        first.cancel()
        # in the same turn: the cancelled task has not even learned of it
        third = running(run(3))
        await turns()
        assert body.batches == []

        assert await many(run, [4]) == [40]
        assert await outcomes(second, third) == [20, 30]
        assert body.batches == [[2, 3, 4]]

    asyncio.run(scene())


def test_a_cancelled_item_does_not_hold_up_the_batch_it_runs_in() -> None:
    async def scene() -> None:
        body, run = batched_body(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
        body.door.clear()
        first, second = running(run(1)), running(run(2))
        await body.began.wait()

        first.cancel()
        await turns()
        assert not body.was_cancelled
        body.door.set()

        assert await second == 20
        assert first.cancelled()

    asyncio.run(scene())


def test_a_batch_that_all_its_callers_left_stops_and_makes_room_for_the_next() -> None:
    async def scene() -> None:
        body, run = batched_body(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
        body.door.clear()
        calls = [running(run(item)) for item in range(2)]
        await body.began.wait()

        for call in calls:
            call.cancel()
        await turns()
        assert body.was_cancelled
        body.door.set()

        assert await many(run, [3, 4]) == [30, 40]

    asyncio.run(scene())


def test_a_caller_that_stops_waiting_leaves_no_timer_behind() -> None:
    class Model:
        @batch(batch_wait_timeout_s=FOREVER_S)
        async def run(self, items: list[int]) -> list[int]:
            return items

        def __del__(self) -> None:
            died.append(True)

    died: list[bool] = []

    async def scene() -> None:
        model = Model()
        call = running(model.run(1))
        await turns()
        call.cancel()
        await outcomes(call)
        del model, call
        await turns()
        assert died

    asyncio.run(scene())


# -- generators ------------------------------------------------------------------------------------


async def listed(values: AsyncIterator[Any]) -> list[Any]:
    return [value async for value in values]


def test_a_batched_generator_streams_to_each_caller() -> None:
    class Model:
        @batch(max_batch_size=3, batch_wait_timeout_s=FOREVER_S)
        async def count(self, starts: list[int]) -> AsyncIterator[list[int]]:
            for step in range(3):
                yield [start + step for start in starts]

    async def scene() -> None:
        model = Model()
        assert inspect.isasyncgenfunction(model.count)
        assert await many(lambda start: listed(model.count(start)), [0, 10, 20]) == [
            [0, 1, 2],
            [10, 11, 12],
            [20, 21, 22],
        ]

    asyncio.run(scene())


@pytest.mark.parametrize("stop", [StopIteration, StopAsyncIteration, StopIteration()], ids=repr)
def test_stop_iteration_ends_the_results_of_one_item(stop: Any) -> None:
    @batch(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
    async def count(limits: list[int]) -> AsyncIterator[list[Any]]:
        for step in range(max(limits) + 1):
            yield [step if step < limit else stop for limit in limits]

    assert asyncio.run(many(lambda limit: listed(count(limit)), [1, 3])) == [[0], [0, 1, 2]]


def test_an_error_and_a_wrong_length_end_the_results_of_all_items() -> None:
    @batch(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
    async def answer(kinds: list[str]) -> AsyncIterator[Any]:
        yield kinds
        if kinds[0] == "raise":
            raise KeyError("k")
        yield kinds[:1]

    async def ending(kind: str) -> tuple[list[str], type]:
        seen = []
        try:
            async for value in answer(kind):
                seen.append(value)
        except Exception as error:
            return seen, type(error)
        raise AssertionError

    async def scene() -> None:
        assert await many(ending, ["raise", "raise"]) == [(["raise"], KeyError)] * 2
        assert await many(ending, ["short", "short"]) == [(["short"], QserveException)] * 2

    asyncio.run(scene())


def test_a_generator_that_all_its_readers_left_is_closed() -> None:
    async def scene() -> None:
        closed = asyncio.Event()

        @batch(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
        async def count(starts: list[int]) -> AsyncIterator[list[int]]:
            try:
                yield starts
                await asyncio.Event().wait()
            finally:
                closed.set()

        readers = [count(0), count(1)]
        assert await many(anext, readers) == [0, 1]
        await readers[0].aclose()
        await turns()
        assert not closed.is_set()

        await readers[1].aclose()
        await closed.wait()

    asyncio.run(scene())


# -- contexts, models, loops -----------------------------------------------------------------------


def test_requests_for_different_models_never_share_a_batch() -> None:
    @batch(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
    async def run(items: list[int]) -> list[Any]:
        return [(get_multiplexed_model_id(), items)] * len(items)

    async def ask(model_id: str, item: int) -> Any:
        request_context.set(RequestContext(multiplexed_model_id=model_id))
        return await run(item)

    async def scene() -> None:
        answers = await asyncio.gather(*(ask("ab"[item % 2], item) for item in range(4)))
        assert answers == [("a", [0, 2]), ("b", [1, 3])] * 2

    asyncio.run(scene())


def test_the_body_sees_what_is_true_of_all_its_requests_and_changes_nothing_outside() -> None:
    seen: list[RequestContext] = []
    mark = contextvars.ContextVar("mark", default="outside")

    @batch(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
    async def run(items: list[int]) -> list[int]:
        seen.append(request_context.get())
        mark.set("inside")
        return items

    async def ask(deadline_ms: int) -> None:
        own = RequestContext(f"r{deadline_ms}", "/", "app", "m", deadline_ms)
        request_context.set(own)
        await run(1)
        assert request_context.get() == own
        assert mark.get() == "outside"

    async def scene() -> None:
        await many(ask, [5, 7])
        run.set_max_batch_size(1)
        await ask(9)

    asyncio.run(scene())

    assert seen == [RequestContext("", "", "app", "m", 7), RequestContext("r9", "/", "app", "m", 9)]


def test_calls_from_several_event_loops_each_have_their_own_queue() -> None:
    _, run = batched_body()

    assert [asyncio.run(many(run, range(3))) for _ in range(3)] == [[0, 10, 20]] * 3


def test_a_sync_caller_in_a_thread_joins_the_batches_of_the_loop_it_hands_its_call_to() -> None:
    async def scene() -> None:
        body, run = batched_body(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
        loop = asyncio.get_running_loop()

        def sync_method() -> Any:
            return asyncio.run_coroutine_threadsafe(run(1), loop).result()

        assert await asyncio.gather(asyncio.to_thread(sync_method), run(2)) == [10, 20]
        assert sorted(body.batches[0]) == [1, 2]

    asyncio.run(scene())


def test_threads_with_loops_of_their_own_do_not_disturb_each_other() -> None:
    class Model:
        @batch(max_batch_size=4)
        async def run(self, items: list[int]) -> list[tuple[int, int]]:
            return [(threading.get_ident(), item) for item in items]

    model = Model()
    answers: dict[int, Any] = {}

    def work() -> None:
        answers[threading.get_ident()] = asyncio.run(many(model.run, range(50)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(got == [(ident, item) for item in range(50)] for ident, got in answers.items())


# -- instances -------------------------------------------------------------------------------------


class Named:
    """Notes which instance ran what, and its end."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    @batch(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
    async def run(self, items: list[int]) -> list[int]:
        self.log.append((id(self), items))
        return [1 // item for item in items]

    def __del__(self) -> None:
        self.log.append("deleted")


def test_instances_and_their_copies_never_share_a_batch() -> None:
    async def scene() -> None:
        log: list[Any] = []
        one = Named(log)
        await many(one.run, [1, 1])
        other = copy.copy(one)
        await asyncio.gather(one.run(1), other.run(2), one.run(3), other.run(4))

        assert log[1:3] == [(id(one), [1, 3]), (id(other), [2, 4])]
        await many(copy.deepcopy(one).run, [1, 1])

    asyncio.run(scene())


@pytest.mark.parametrize("items", [[1, 1], [0, 0]], ids=["fine", "failing"])
def test_an_instance_dies_with_its_last_reference(items: list[int]) -> None:
    async def scene() -> None:
        log: list[Any] = []
        model = Named(log)
        await outcomes(*map(model.run, items))
        await turns()
        del model
        assert log[-1] == "deleted"

    gc.disable()
    try:
        asyncio.run(scene())
    finally:
        gc.enable()


def test_a_subclass_may_batch_anew_and_call_what_it_overrides() -> None:
    class Base:
        @batch
        async def run(self, items: list[int]) -> list[int]:
            return [item + 1 for item in items]

    class Derived(Base):
        @batch(max_batch_size=3)
        async def run(self, items: list[int]) -> list[int]:
            return [10 * item for item in await many(super().run, items)]

    assert asyncio.run(many(Derived().run, range(5))) == [10, 20, 30, 40, 50]


def test_an_instance_without_a_dict_is_refused_with_what_to_do() -> None:
    class Slotted:
        __slots__ = ()

        @batch
        async def run(self, items: list[int]) -> list[int]:
            return items

    with pytest.raises(TypeError, match="add '__dict__' to its __slots__"):
        asyncio.run(Slotted().run(1))


def test_a_batched_function_travels_by_value_even_after_it_was_used() -> None:
    @batch(max_batch_size=2, batch_wait_timeout_s=FOREVER_S)
    async def double(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    @batch
    async def count(items: list[int]) -> AsyncIterator[list[int]]:
        yield items

    asyncio.run(many(double, [1, 2]))
    again, stream = cloudpickle.loads(cloudpickle.dumps((double, count)))

    assert asyncio.run(many(again, [1, 2])) == [2, 4]
    assert asyncio.run(listed(stream(1))) == [1]
    again.set_max_batch_size(1)
    assert asyncio.run(again(3)) == 6


# -- validation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_batch_size": -1}, ValueError),
        ({"max_batch_size": 1.1}, TypeError),
        ({"max_batch_size": "a"}, TypeError),
        ({"batch_wait_timeout_s": -0.1}, ValueError),
        ({"batch_wait_timeout_s": float("nan")}, ValueError),
        ({"batch_wait_timeout_s": "a"}, TypeError),
        ({"max_concurrent_batches": 0}, ValueError),
        ({"batch_size_fn": 3}, TypeError),
    ],
    ids=repr,
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=next(iter(options))):
        batch(**options)


@pytest.mark.parametrize(
    "options", [{"max_batch_size": 1.0}, {"batch_wait_timeout_s": 0}, {"batch_wait_timeout_s": 0.0}]
)
def test_whole_numbers_and_no_wait_are_accepted(options: dict[str, Any]) -> None:
    _, run = batched_body(**options)

    assert asyncio.run(many(run, range(3))) == [0, 10, 20]


def test_what_is_not_async_is_refused_by_its_name() -> None:
    def predict(items: list[int]) -> list[int]:
        return items

    with pytest.raises(TypeError, match=r"`async def` function or method, and .*predict is not one"):
        batch(predict)
    with pytest.raises(TypeError, match="async def"):
        batch(max_batch_size=3)(Body)
    with pytest.raises(TypeError, match="async def"):
        batch(5)


def test_a_batch_that_cannot_be_started_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        body, run = batched_body(max_batch_size=2)
        start, starts = batching._Queue._start, []

        def fail_first(queue: Any, items: Any) -> None:
            starts.append(items)
            if len(starts) == 1:
                raise ZeroDivisionError("a bug")
            start(queue, items)

        monkeypatch.setattr(batching._Queue, "_start", fail_first)
        found = await outcomes(*map(run, range(4)))
        assert [type(one) for one in found[:1]] == [ZeroDivisionError]
        assert found[2:] == [20, 30]
        assert body.batches

    asyncio.run(scene())


def test_a_size_function_that_ends_the_interpreter_fails_its_calls_and_not_the_loop() -> None:
    def measure(items: list[Any]) -> int:
        if len(items) > 1:
            raise SystemExit(3)
        return 1

    async def scene() -> None:
        _, run = batched_body(max_batch_size=3, batch_wait_timeout_s=0.01, batch_size_fn=measure)

        async def caught(item: int) -> Any:
            try:
                return await run(item)
            except SystemExit as error:
                return error

        found = await outcomes(caught(1), caught(2))
        assert any(isinstance(one, SystemExit) for one in found)
        assert await run(3) == 30

    asyncio.run(scene())
