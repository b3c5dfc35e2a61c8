"""What a request carries reaches each step, and each call that its code makes, in local mode and on replicas."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from serving import ServeRun, ask

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def seen() -> list[Any]:
    context = serve.get_request_context()
    return [context.tenant, context.headers.get("X-Region"), context.traceparent[3:35], context.tracestate]


ACME = ["acme", "eu", PARENT[3:35], "a=1"]
NOTHING: list[Any] = ["", None, "", ""]


def as_acme() -> Any:
    return serve.call_context(tenant="acme", headers={"X-Region": "eu"}, traceparent=PARENT, tracestate="a=1")


def steps() -> Any:
    """A graph of three steps: a function, a method and a coroutine."""

    @serve.deployment
    def first(given: Any) -> list[Any]:
        return [seen()]

    @serve.deployment
    class Second:
        def look(self, before: list[Any]) -> list[Any]:
            return [*before, seen()]

    @serve.deployment
    class Third:
        async def look(self, before: list[Any]) -> list[Any]:
            await asyncio.sleep(0)
            return [*before, seen()]

    with InputNode() as given:
        return DAGDriver.bind(Third.bind().look.bind(Second.bind().look.bind(first.bind(given))))


def callers() -> Any:
    """A deployment whose code calls another one in every way that there is."""

    @serve.deployment
    class Inner:
        def __call__(self, *before: Any) -> Any:
            return seen()

        def items(self) -> Iterator[Any]:
            yield seen()
            yield seen()

    @serve.deployment
    class Outer:
        def __init__(self, inner: Any) -> None:
            self.inner = inner.options(use_new_handle_api=True)

        async def by_await(self) -> Any:
            return await self.inner.remote()

        def in_thread(self) -> Any:
            return self.inner.remote().result()

        async def with_argument(self) -> Any:
            return await self.inner.remote(self.inner.remote())

        async def together(self) -> Any:
            refs = serve.submit_many(self.inner, [(), ()])
            return [await ref for ref in refs][1]

        async def by_task(self) -> Any:
            return await asyncio.create_task(self.by_await())

        def in_own_thread(self) -> Any:
            found: list[Any] = []
            here = contextvars.copy_context()
            thread = threading.Thread(target=lambda: found.append(here.run(self.in_thread)))
            thread.start()
            thread.join()
            return found[0]

        async def items(self) -> AsyncIterator[Any]:
            yield seen()
            async for item in self.inner.options(stream=True).items.remote():
                yield item

        async def as_another(self) -> Any:
            with serve.call_context(tenant="other"):
                return await self.inner.remote()

    return Outer.bind(Inner.bind())


def batches() -> Any:
    @serve.deployment
    class Batched:
        @serve.batch(max_batch_size=3, batch_wait_timeout_s=30)
        async def __call__(self, numbers: list[int]) -> list[Any]:
            context = serve.get_request_context()
            tenants = [call.tenant for call in context.batch]
            return [(number, tenant, context.tenant) for number, tenant in zip(numbers, tenants, strict=True)]

    return Batched.bind()


def test_each_step_of_a_graph_sees_what_its_request_carries(serve_run: ServeRun) -> None:
    handle = serve_run(steps()).predict
    with as_acme():
        ref = handle.remote(1)
    assert serve.get(ref, timeout=60) == [ACME] * 3
    assert ask(handle, 1) == [NOTHING] * 3


def test_calls_of_user_code_carry_what_its_request_carries(serve_run: ServeRun) -> None:
    handle = serve_run(callers(), name="callers")
    ways = ["by_await", "in_thread", "with_argument", "together", "by_task", "in_own_thread"]
    with as_acme():
        refs = [getattr(handle, way).remote() for way in ways]
        other = handle.as_another.remote()
        stream = handle.options(stream=True).items.remote()
    assert {way: serve.get(ref, timeout=60) for way, ref in zip(ways, refs, strict=True)} == dict.fromkeys(ways, ACME)
    assert serve.get(other, timeout=60) == ["other", *ACME[1:]]
    assert list(stream) == [ACME] * 3
    assert ask(handle.by_await) == NOTHING


def test_a_batch_sees_what_each_of_its_calls_carries(serve_run: ServeRun) -> None:
    handle = serve_run(batches(), name="batches")
    for tenants, shared in ((["a", "b", ""], ""), (["a", "a", "a"], "a")):
        refs = []
        for number, tenant in enumerate(tenants):
            with serve.call_context(tenant=tenant):
                refs.append(handle.remote(number))
        assert serve.get(refs, timeout=60) == [(number, tenant, shared) for number, tenant in enumerate(tenants)]


def test_outside_of_a_request_there_is_nothing(run_here: ServeRun) -> None:
    assert seen() == NOTHING
    assert dict(serve.get_request_context().headers) == {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"headers": {"x region": "eu"}}, "not the name of a header"),
        ({"headers": {"x-region": "eu\r\nx-admin: 1"}}, "control characters"),
        ({"headers": {"x-region": "e" * 1025}}, "1025 characters"),
        ({"headers": {f"x-{number}": "" for number in range(17)}}, "at most 16 headers"),
        ({"headers": {f"x-{number}": "y" * 1000 for number in range(5)}}, "4096"),
        ({"tenant": "a\0b"}, "control characters"),
        ({"traceparent": "00-0-0-0"}, "not a traceparent"),
        ({"tracestate": "a=1"}, "has no traceparent"),
        ({"traceparent": PARENT, "tracestate": "A"}, "not a tracestate"),
    ],
)
def test_what_cannot_be_carried_is_refused_where_it_is_given(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told), serve.call_context(**given):
        raise AssertionError
    with pytest.raises(TypeError, match="must be strings"), serve.call_context(headers={"x-region": 1}):  # type: ignore[dict-item]
        raise AssertionError
