"""Results that come as items, at the pace of their reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from rendezvous import arrive, await_arrival, has_arrived
from serving import ServeRun

import qserve as serve
from qserve.calls.items import PIECE_BYTES, WINDOW
from qserve.exceptions import QserveException, TaskError


@serve.deployment
class Counter:
    def up_to(self, end: int) -> Iterator[int]:
        yield from range(end)

    async def later(self, end: int) -> AsyncIterator[int]:
        for number in range(end):
            await asyncio.sleep(0)
            yield number

    def breaks(self, at: int) -> Iterator[int]:
        yield from range(1, at)
        raise ValueError(f"broken at {at}")

    async def breaks_later(self, at: int) -> AsyncIterator[int]:
        for number in self.breaks(at):
            yield number

    def plain(self) -> int:
        return 1


@pytest.mark.parametrize("method", ["up_to", "later"])
@pytest.mark.parametrize("end", [0, 3, 5 * WINDOW])
def test_items_arrive_in_order(serve_run: ServeRun, method: str, end: int) -> None:
    handle = serve_run(Counter.bind()).options(stream=True, method_name=method)

    async def gather() -> list[int]:
        return [item async for item in handle.remote(end)]

    assert list(handle.remote(end)) == asyncio.run(gather()) == list(range(end))


def test_items_are_iterated_inside_a_deployment(serve_run: ServeRun) -> None:
    @serve.deployment
    class Reader:
        def __init__(self, counter: Any) -> None:
            self.counter = counter.options(stream=True)

        async def __call__(self) -> list[int]:
            return [item async for item in self.counter.later.remote(20)]

    assert serve.get(serve_run(Reader.bind(Counter.bind())).remote(), timeout=60) == list(range(20))


@pytest.mark.parametrize("method", ["breaks", "breaks_later"])
@pytest.mark.parametrize("at", [2, 9])
def test_an_error_comes_after_the_items_before_it(serve_run: ServeRun, method: str, at: int) -> None:
    items = iter(serve_run(Counter.bind()).options(stream=True, method_name=method).remote(at))

    assert [next(items) for _ in range(1, at)] == [*range(1, at)]
    with pytest.raises(ValueError, match=f"broken at {at}"):
        next(items)


def test_a_stream_and_a_plain_result_are_not_taken_for_each_other(serve_run: ServeRun) -> None:
    handle = serve_run(Counter.bind())

    with pytest.raises(TypeError, match="did not return a generator") as told:
        next(iter(handle.options(stream=True).plain.remote()))
    assert isinstance(told.value, TaskError)
    with pytest.raises(TypeError, match=r"You must use `handle.options\(stream=True\)`"):
        serve.get(handle.up_to.remote(3))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_producer_waits_for_its_reader(serve_run: ServeRun, tmp_path: Path, kind: str) -> None:
    folder = str(tmp_path)

    @serve.deployment
    class Fast:
        def sync(self) -> Iterator[tuple[int, bytes]]:
            for number in range(4 * WINDOW):
                arrive(folder, str(number))
                yield number, bytes(PIECE_BYTES)  # of short ones more may be on their way

        async def async_(self) -> AsyncIterator[tuple[int, bytes]]:
            for item in self.sync():
                yield item

    handle = serve_run(Fast.bind()).options(stream=True)
    items = iter((handle.sync if kind == "sync" else handle.async_).remote())

    assert next(items)[0] == 0
    await_arrival(folder, str(WINDOW - 1))
    assert not has_arrived(folder, str(WINDOW + 4))
    assert [number for number, _ in items] == list(range(1, 4 * WINDOW))


def test_closing_a_stream_early_ends_its_producer(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    class Endless:
        async def __call__(self) -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
            finally:
                arrive(folder, "closed")

    response = serve_run(Endless.bind()).options(stream=True).remote()
    assert next(iter(response)) == 1

    response.cancel()

    await_arrival(folder, "closed")
    with pytest.raises(QserveException, match="cancelled"):
        list(response)


def test_dropping_a_stream_ends_its_producer(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    class Endless:
        def __call__(self) -> Iterator[int]:
            try:
                while True:
                    yield 1
            finally:
                arrive(folder, "closed")

    response = serve_run(Endless.bind()).options(stream=True).remote()
    assert next(response) == 1

    del response

    wait_until(lambda: has_arrived(folder, "closed"), description="the producer is closed")
