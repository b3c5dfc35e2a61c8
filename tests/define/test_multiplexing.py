"""Models take turns in one instance: loaded once, in parallel, the least recently used one leaving first."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tasks import outcomes, running, turns

from qserve.base.context import RequestContext, request_context
from qserve.define.multiplexing import (
    ModelCache,
    get_multiplexed_model_id,
    loaded_models,
    multiplexed,
    on_change,
    unload_models,
)
from qserve.exceptions import QserveException


class Model:
    """A model that notes its end."""

    def __init__(self, model_id: str, log: list[str]) -> None:
        self.model_id = model_id
        self.log = log

    def __del__(self) -> None:
        self.log.append(f"-{self.model_id}")


class AsyncModel(Model):
    """The same, with an end that takes a while."""

    async def __del__(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.log.append(f"-{self.model_id}")
        if self.model_id == "bad":
            raise ValueError("cannot end")


class Host:
    """A deployment whose loader notes what it does and can be held at its door."""

    kind: type[Model] = Model

    def __init__(self) -> None:
        self.log: list[str] = []
        self.doors: dict[str, asyncio.Event] = {}

    def close_door(self, *model_ids: str) -> None:
        self.doors |= {model_id: asyncio.Event() for model_id in model_ids}

    @multiplexed(max_num_models_per_replica=2)
    async def load(self, model_id: str) -> Any:
        self.log.append(f"+{model_id}")
        if model_id in self.doors:
            await self.doors[model_id].wait()
        if model_id == "missing":
            raise KeyError(model_id)
        return self.kind(model_id, self.log)


class AsyncHost(Host):
    kind = AsyncModel


def models_in(owner: Any) -> tuple[str, ...]:
    """The ids of the models that were loaded by the methods of an instance, or by a function."""
    loaders = vars(owner).get("__qserve_models__", {})
    return tuple(model_id for models in loaders.values() for model_id in models.cache.ids())


# -- the rule --------------------------------------------------------------------------------------


@given(capacity=st.integers(1, 4), steps=st.lists(st.tuples(st.sampled_from("upg"), st.integers(0, 6)), max_size=60))
def test_loaded_and_loading_models_never_exceed_the_capacity_and_the_least_recently_used_goes(
    capacity: int, steps: list[tuple[str, int]]
) -> None:
    cache, used, loading = ModelCache(capacity), list[str](), list[str]()
    for step, number in steps:
        model_id = str(number)
        if step == "u" and model_id in used:
            assert cache.use(model_id) == model_id
            used.append(used.pop(used.index(model_id)))
        elif step == "u" and model_id not in loading:
            evicted = cache.reserve()
            assert (evicted is None) == (len(loading) == capacity)
            if evicted is not None:
                loading.append(model_id)
                assert evicted == used[: len(evicted)]
                del used[: len(evicted)]
        elif step == "p" and loading:
            used.append(loading.pop(0))
            cache.put(used[-1], used[-1])
        elif step == "g" and loading:
            loading.pop(0)
            cache.release()
        assert cache.ids() == tuple(used)
        assert len(used) + len(loading) <= capacity


def test_a_model_in_use_is_evicted_only_when_its_users_wait_for_each_other() -> None:
    cache = ModelCache(2)
    for model_id, user in (("a", "x"), ("b", "y")):
        assert cache.reserve() == []
        cache.put(model_id, model_id.upper(), [user])
    assert cache.reserve() is None
    assert cache.reserve(["x"]) is None

    cache.use("a", ["z"])
    cache.leave("y")
    assert cache.reserve(["x"]) == ["B"]
    assert cache.reserve(["x", "z"]) is None, "one is loading, which may end their wait"
    cache.put("c", "C", ["x"])
    assert cache.reserve(["x"]) is None, "z does not wait"
    assert cache.reserve(["x", "z"]) == ["A"]


def test_a_cache_without_limit_evicts_nothing() -> None:
    cache = ModelCache(-1)
    for number in range(50):
        assert cache.reserve() == []
        cache.put(str(number), number)

    assert len(cache.ids()) == 50


# -- loading ---------------------------------------------------------------------------------------


def test_a_model_is_loaded_once_and_then_kept() -> None:
    async def scene() -> None:
        host = Host()
        first = await host.load("a")

        assert await host.load(model_id="a") is first
        assert host.log == ["+a"]
        assert inspect.iscoroutinefunction(host.load)

    asyncio.run(scene())


def test_concurrent_calls_for_one_model_load_it_once() -> None:
    async def scene() -> None:
        host = Host()
        host.close_door("a")
        calls = [running(host.load("a")) for _ in range(5)]
        await turns()
        host.doors["a"].set()

        models = await asyncio.gather(*calls)
        assert len({id(model) for model in models}) == 1
        assert host.log == ["+a"]

    asyncio.run(scene())


def test_different_models_load_at_the_same_time() -> None:
    async def scene() -> None:
        host = Host()
        host.close_door("slow")
        slow = running(host.load("slow"))

        assert (await host.load("fast")).model_id == "fast"
        assert not slow.done()
        host.doors["slow"].set()
        assert (await slow).model_id == "slow"

    asyncio.run(scene())


def test_a_load_waits_while_all_places_are_loading_and_never_evicts_one_of_them() -> None:
    async def scene() -> None:
        host = Host()
        host.close_door("a", "b")
        calls = [running(host.load(model_id)) for model_id in "abc"]
        await turns()
        assert host.log == ["+a", "+b"]
        assert models_in(host) == ()

        host.doors["b"].set()
        assert (await calls[2]).model_id == "c"
        assert models_in(host) == ("c",)
        host.doors["a"].set()
        assert [model.model_id for model in await asyncio.gather(*calls)] == ["a", "b", "c"]
        assert models_in(host) == ("c", "a")

    asyncio.run(scene())


def test_a_caller_that_is_cancelled_leaves_the_load_to_the_others() -> None:
    async def scene() -> None:
        host = Host()
        host.close_door("a")
        first, second = running(host.load("a")), running(host.load("a"))
        await turns()
        first.cancel()
        await turns()
        host.doors["a"].set()

        assert (await second).model_id == "a"
        assert first.cancelled()

    asyncio.run(scene())


def test_a_failed_load_reaches_all_who_wait_and_is_tried_again() -> None:
    async def scene() -> None:
        host = Host()
        host.close_door("missing")
        calls = [running(host.load("missing")) for _ in range(3)]
        await turns()
        host.doors["missing"].set()

        assert [type(error) for error in await outcomes(*calls)] == [KeyError] * 3
        assert [type(error) for error in await outcomes(host.load("missing"))] == [KeyError]
        assert host.log == ["+missing", "+missing"]
        await asyncio.gather(host.load("a"), host.load("b"))
        assert models_in(host) == ("a", "b")

    asyncio.run(scene())


def test_a_loop_that_ends_while_a_model_loads_leaves_nobody_waiting_for_it() -> None:
    host = Host()

    async def release() -> None:
        host.close_door("a")
        call = running(host.load("a"))
        await turns()
        call.cancel()

    asyncio.run(release())
    host.doors.clear()

    assert asyncio.run(host.load("a")).model_id == "a"


def test_a_load_that_was_cancelled_is_an_error_that_says_so() -> None:
    @multiplexed
    async def load(model_id: str) -> None:
        raise asyncio.CancelledError

    with pytest.raises(QserveException, match="loading of model 'a' was cancelled"):
        asyncio.run(load("a"))


def test_a_model_is_loaded_once_for_several_threads_with_loops_of_their_own() -> None:
    began, go_on, log = threading.Event(), threading.Event(), list[str]()

    @multiplexed
    async def load(model_id: str) -> str:
        log.append(model_id)
        began.set()
        await asyncio.to_thread(go_on.wait)
        return model_id.upper()

    async def scene() -> None:
        other = asyncio.to_thread(lambda: asyncio.run(load("a")))
        first = running(other)
        await asyncio.to_thread(began.wait)
        second = running(load("a"))
        await turns()
        go_on.set()
        assert await asyncio.gather(first, second) == ["A", "A"]
        assert log == ["a"]

    asyncio.run(scene())


# -- making room -----------------------------------------------------------------------------------


def test_the_least_recently_used_model_goes_before_the_next_one_loads() -> None:
    async def scene() -> None:
        host = Host()
        for model_id in ("a", "b", "a", "c"):
            await host.load(model_id)

        assert models_in(host) == ("a", "c")
        assert host.log == ["+a", "+b", "-b", "+c"]
        for model_id in ("a", "b"):
            await host.load(model_id)
        assert host.log == ["+a", "+b", "-b", "+c", "-c", "+b"]

    asyncio.run(scene())


def test_an_evicted_model_lives_on_while_a_request_uses_it() -> None:
    async def scene() -> None:
        host = Host()
        in_use = await host.load("a")
        await host.load("b")
        await host.load("c")
        assert "-a" not in host.log

        del in_use
        assert host.log[-1] == "-a"

    asyncio.run(scene())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_model_ends_while_a_call_uses_it_and_no_more_live_than_may(count: int) -> None:
    """Twenty calls ask at once, each for one of five models."""
    most = 0

    async def scene() -> None:
        host = AsyncHost()

        async def call(model_id: str) -> str:
            model = await host.load(model_id)
            for _ in range(5):
                await turns()
                assert host.log.count(f"-{model_id}") < host.log.count(f"+{model_id}"), "it has ended"
            return str(model.model_id)

        def count_living() -> int:
            return sum(1 if entry[0] == "+" else -1 for entry in host.log)

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, count_living())
                await asyncio.sleep(0)

        watching = running(watch())
        ids = [str(number % count) for number in range(20)]
        assert await asyncio.gather(*map(call, ids)) == ids
        watching.cancel()
        await unload_models()

    asyncio.run(scene())
    assert most <= 2


def test_one_call_may_use_more_models_than_there_is_room_for_one_after_the_other() -> None:
    async def scene() -> None:
        host = AsyncHost()

        async def call() -> list[str]:
            return [(await host.load(model_id)).model_id for model_id in "abcd"]

        assert await asyncio.gather(call(), call()) == [list("abcd")] * 2
        await unload_models()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_load_that_nobody_waits_for_any_more_gives_its_turn_to_the_next() -> None:
    async def scene() -> None:
        host = Host()
        go_on = asyncio.Event()

        async def hold(model_id: str) -> None:
            await host.load(model_id)
            await go_on.wait()

        holders = [running(hold(model_id)) for model_id in "ab"]
        await turns()
        given_up, patient = running(host.load("c")), running(host.load("d"))
        await turns()
        given_up.cancel()
        again = running(host.load("c"))
        await turns()
        again.cancel()
        await turns()
        assert host.log == ["+a", "+b"]

        go_on.set()
        assert (await patient).model_id == "d"
        await asyncio.gather(*holders)
        assert "+c" not in host.log
        assert (await host.load("c")).model_id == "c"

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_an_async_end_is_awaited_once_before_the_next_model_loads() -> None:
    async def scene() -> None:
        host = AsyncHost()
        for model_id in "abc":
            await host.load(model_id)
        await turns()

        assert host.log == ["+a", "+b", "-a", "+c"]
        await unload_models()
        assert host.log[4:] == ["-b", "-c"]
        assert models_in(host) == ()

    asyncio.run(scene())


def test_an_async_end_that_fails_is_logged_and_the_next_model_loads(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        host = AsyncHost()
        for model_id in ("bad", "b", "c"):
            await host.load(model_id)

        assert models_in(host) == ("b", "c")
        await unload_models()

    asyncio.run(scene())

    assert "__del__ of a model of type AsyncModel failed: cannot end" in caplog.text


def test_without_a_limit_all_models_stay() -> None:
    @multiplexed(max_num_models_per_replica=-1)
    async def load(model_id: str) -> str:
        return model_id

    async def scene() -> None:
        ids = [str(number) for number in range(20)]
        assert await asyncio.gather(*map(load, ids)) == ids
        assert sorted(models_in(load)) == sorted(ids)

    asyncio.run(scene())


# -- instances -------------------------------------------------------------------------------------


def test_each_instance_and_each_loader_has_its_own_models() -> None:
    class Two(Host):
        @multiplexed
        async def load_other(self, model_id: str) -> str:
            return model_id

    async def scene() -> None:
        one, two = Two(), Two()
        await asyncio.gather(one.load("a"), one.load_other("b"), two.load("c"))

        assert set(models_in(one)) == {"a", "b"}
        assert models_in(two) == ("c",)
        assert models_in(copy.deepcopy(Host())) == ()
        assert {"a", "b", "c"} <= set(loaded_models())

    asyncio.run(scene())


@pytest.mark.parametrize("model_id", ["a", "missing"])
def test_an_instance_dies_with_its_last_reference_and_its_models_with_it(model_id: str) -> None:
    ends: list[str] = []

    class Mortal(Host):
        def __del__(self) -> None:
            ends.append("host")

    async def scene() -> None:
        host = Mortal()
        await outcomes(host.load(model_id))
        await turns()
        log = host.log
        del host
        assert ends == ["host"]
        assert log == (["+a", "-a"] if model_id == "a" else ["+missing"])

    gc.disable()
    try:
        asyncio.run(scene())
    finally:
        gc.enable()


def test_a_loader_travels_by_value_even_after_it_was_used() -> None:
    @multiplexed
    async def load(model_id: str) -> str:
        return model_id

    asyncio.run(load("a"))
    again = cloudpickle.loads(cloudpickle.dumps(load))

    assert models_in(again) == ()
    assert asyncio.run(again("b")) == "b"
    assert models_in(again) == ("b",)


# -- telling ---------------------------------------------------------------------------------------


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """What a listener saw; the first entry is the object it looks at."""
    seen: list[Any] = [None]
    stop = on_change(lambda: seen.append(models_in(seen[0])))
    yield seen
    stop()


def test_listeners_are_told_when_a_model_comes_or_goes_and_not_otherwise(told: list[Any]) -> None:
    async def scene() -> None:
        host = told[0] = Host()
        for model_id in ("a", "a", "missing", "b", "c"):
            await outcomes(host.load(model_id))
        assert told[1:] == [("a",), ("a", "b"), ("b",), ("b", "c")]

        await unload_models()
        assert told[-1] == ()

    asyncio.run(scene())


def test_a_listener_that_fails_is_logged_and_nobody_else_notices(
    told: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("not now")

    async def scene() -> None:
        host = told[0] = Host()
        stop = on_change(fail)
        try:
            assert (await host.load("a")).model_id == "a"
        finally:
            stop()

    asyncio.run(scene())

    assert told[1:] == [("a",)]
    assert "a listener for loaded models failed: not now" in caplog.text


def test_the_model_of_a_request_is_known_in_it_and_empty_outside() -> None:
    assert get_multiplexed_model_id() == ""

    token = request_context.set(RequestContext(multiplexed_model_id="m"))
    try:
        assert get_multiplexed_model_id() == "m"
    finally:
        request_context.reset(token)


# -- validation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "kind"), [(0, ValueError), (-2, ValueError), ("3", TypeError), (1.5, TypeError), (True, TypeError)]
)
def test_a_wrong_limit_is_refused(limit: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="max_num_models_per_replica must be"):
        multiplexed(max_num_models_per_replica=limit)


def test_what_cannot_load_by_an_id_is_refused_by_its_name() -> None:
    def plain(model_id: str) -> None: ...

    async def nothing() -> None: ...

    async def two(self: Any, model_id: str, version: str) -> None: ...

    with pytest.raises(TypeError, match=r"`async def` function or method, and .*plain is not one"):
        multiplexed(plain)
    with pytest.raises(TypeError, match=r"one parameter, the model's id: `async def .*nothing\(model_id\)`, not \(\)"):
        multiplexed(nothing)
    with pytest.raises(TypeError, match=r"`async def .*two\(self, model_id\)`"):
        multiplexed(two)


def test_a_call_without_a_proper_id_is_refused_by_the_loaders_name() -> None:
    host = Host()

    with pytest.raises(TypeError, match=r"Host\.load must be called with one model id, a string"):
        asyncio.run(host.load(3))
    with pytest.raises(ValueError, match=r"Host\.load got an empty model id.*header serve_multiplexed_model_id"):
        asyncio.run(host.load(""))
    with pytest.raises(TypeError, match="missing a required argument: 'model_id'"):
        asyncio.run(host.load())
