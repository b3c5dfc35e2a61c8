#!/usr/bin/env python3
"""Measure streams: what an item costs, by each way to make and to read it, and what 1 to 64 streams at once give.

    python benchmarks/streams.py [--sizes 10,1000] [--at-once 1,8] [--seconds 3] [--quick]

A generator yields items of one byte as fast as it can. The replica, the broker and the reader share the machine. An
item that comes slowly must not wait for others: how long after it was yielded it has arrived is measured as well.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from harness.figures import Figure, Panel
from harness.program import Given, main
from harness.serving import serving

import qserve

SIZES, QUICK = (10, 100, 1000, 20_000), (10, 1000)
ITEMS_AT_ONCE = 500
ITEMS = ("items", "def, for", "def, async for", "async def, for", "def, HTTP")
AT_ONCE = ("streams at once", "items/s, all together")


@qserve.deployment(max_ongoing_requests=64)
class Source:
    def sync(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield b"x"

    async def coroutine(self, count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x"

    def slow(self, count: int) -> Iterator[float]:
        for _ in range(count):
            time.sleep(0.02)
            yield time.time()

    def __call__(self, request: Any) -> Iterator[bytes]:
        return self.sync(int(request.query_params["count"]))


def by_for(stream: Any) -> int:
    """Read a stream in sync code, and return how many items it had."""
    return sum(1 for _ in stream)


def by_async_for(stream: Any) -> int:
    """Read a stream on an event loop, and return how many items it had."""

    async def read() -> int:
        return sum([1 async for _ in stream])

    return asyncio.run(read())


def by_http(port: int, count: int) -> int:
    """Read a streamed response, and return how many items it had."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", f"/?count={count}")
    return len(connection.getresponse().read())


def item_ms(read: Callable[[int], int], count: int, seconds: float) -> float:
    """Return what an item costs, the median of some streams."""
    took: list[float] = []
    while len(took) < 3 or sum(took) < seconds:
        began = time.perf_counter()
        assert read(count) == count
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3 / count


def at_once(handle: Any, streams: int, count: int) -> float:
    """Return how many items per second so many streams give together."""
    threads = [threading.Thread(target=lambda: by_for(handle.sync.remote(count))) for _ in range(streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return streams * count / (time.perf_counter() - began)


def measure(given: Given) -> Iterator[Figure]:
    """Measure both on the same processes."""
    with serving(Source.bind()) as (plain, port):
        handle = plain.options(stream=True)
        ways: tuple[Callable[[int], int], ...] = (
            lambda count: by_for(handle.sync.remote(count)),
            lambda count: by_async_for(handle.sync.remote(count)),
            lambda count: by_for(handle.coroutine.remote(count)),
            lambda count: by_http(port, count),
        )
        rows = [(count, *(item_ms(way, count, given.seconds / len(ways)) for way in ways)) for count in given.numbers]
        late_ms = statistics.median((time.time() - sent) * 1e3 for sent in handle.slow.remote(50))
        yield Figure(
            "stream_items", "Streams: what an item costs", ITEMS, [*rows], (Panel("ms an item", ITEMS[1:]),),
            f"In a stream of {rows[-1][0]:,} items each costs {rows[-1][1]:.3f} ms, in one of {rows[0][0]:,}, where the"
            f" request itself is most of it, {rows[0][1]:.3f} ms; an item that comes slowly arrives {late_ms:.1f} ms"
            " after it was yielded.",
        )  # fmt: skip
        numbers = sorted(map(int, given.options.at_once.split(",")))
        rates = [(number, at_once(handle, number, ITEMS_AT_ONCE)) for number in numbers]
    yield Figure(
        "streams_at_once", f"Streams at once: each of {ITEMS_AT_ONCE} items", AT_ONCE, [*rates],
        (Panel("items/s", AT_ONCE[1:], from_zero=True),),
        f"{rates[-1][0]} streams give {rates[-1][1] / rates[0][1]:.1f} times as many items per second as"
        f" {rates[0][0]}, from one replica to one client.",
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what only this benchmark has."""
    parser.add_argument("--at-once", default="1,4,16,64", help="numbers of streams at once (1,4,16,64)")


if __name__ == "__main__":
    main(measure, __doc__, SIZES, QUICK, add_options)
