#!/usr/bin/env python3
"""Measure what an item of a stream costs: 20,000 items of one byte, by each way to make and to read them.

    python benchmarks/streams.py [--items 20000] [--rounds 3]

The replica, the broker and the reader share the machine. An item that comes slowly must not wait for others: the last
lines say how long after it was yielded such an item has arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from chain import free_port

import qserve


@qserve.deployment
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


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    port = free_port()
    handle: Any = qserve.run(Source.bind(), port=port).options(stream=True)

    def over_http() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", f"/?count={options.items}")
        return len(connection.getresponse().read())

    def once(read: Callable[[], int]) -> float:
        began = time.perf_counter()
        assert read() == options.items
        return (time.perf_counter() - began) * 1e3 / options.items

    ways: dict[str, Callable[[], int]] = {
        "def, for": lambda: by_for(handle.sync.remote(options.items)),
        "def, async for": lambda: by_async_for(handle.sync.remote(options.items)),
        "async def, for": lambda: by_for(handle.coroutine.remote(options.items)),
        "def, HTTP": over_http,
    }
    for name, read in ways.items():
        times = [once(read) for _ in range(options.rounds)]
        print(f"{name:16} {statistics.median(times):.4f} ms an item, best {min(times):.4f}", flush=True)
    late = [(time.time() - sent) * 1e3 for sent in handle.slow.remote(50)]
    print(f"slow items       arrive {statistics.median(late):.2f} ms after they were yielded, at most {max(late):.2f}")
    qserve.shutdown()


if __name__ == "__main__":
    main()
