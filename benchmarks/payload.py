#!/usr/bin/env python3
"""Measure what the size of a value costs on its way from one step to the next: bytes and arrays of 1 KB to 256 MB.

    python benchmarks/payload.py [--sizes 1000,1000000] [--seconds 3] [--quick]

The first step makes a value, the second returns its length. Beside it are the same with no value to speak of, a SET and
a GET of as many bytes at the same broker, and a copy in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import redis
from harness.figures import Cell, Figure, Panel
from harness.load import by_handle
from harness.program import Given, main
from harness.serving import broker, serving

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import QserveException

SIZES, QUICK = (10**3, 10**4, 10**5, 10**6, 8 * 10**6, 64 * 10**6, 256 * 10**6), (10**3, 10**5, 8 * 10**6)
LARGEST_STRING = 512 << 20
"""A broker keeps no longer string."""
COLUMNS = ("bytes", "bytes, ms", "array, ms", "SET and GET, ms", "copy in memory, ms")


@qserve.deployment
class Maker:
    """Makes a value once, and returns it again and again."""

    def __init__(self) -> None:
        self.made: dict[tuple[str, int], Any] = {}

    def make(self, asked: tuple[str, int]) -> Any:
        if asked not in self.made:
            self.made = {asked: bytes(asked[1])}
            if asked[0] == "array":
                import numpy

                self.made = {asked: numpy.zeros(asked[1], dtype=numpy.uint8)}
        return self.made[asked]


@qserve.deployment
def length(value: Any) -> int:
    return len(value)


def median_ms(act: Callable[[], Any], seconds: float) -> float:
    """Return how long something takes."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2] * 1e3


def hop_ms(handle: Any, kind: str, size: int, seconds: float) -> Cell:
    """Return the time of a request, or why it has none."""
    try:
        assert qserve.get(handle.predict.remote((kind, size))) == size
        return by_handle(lambda: handle.predict.remote((kind, size)), seconds).p50_ms
    except QserveException as error:
        return f"refused: {type(error).__name__}"


def set_and_get_ms(client: redis.Redis, size: int, seconds: float) -> Cell:
    if size > LARGEST_STRING:
        return None
    data = bytes(size)

    def there_and_back() -> None:
        client.set("benchmark", data, ex=60)
        client.get("benchmark")

    try:
        return median_ms(there_and_back, seconds)
    finally:
        client.delete("benchmark")


def measure(given: Given) -> Iterator[Figure]:
    """Measure each size in turn, and all ways to move it side by side."""
    with InputNode() as asked:
        graph = DAGDriver.bind(length.bind(Maker.bind().make.bind(asked)))
    rows: list[tuple[Cell, ...]] = []
    with serving(graph) as (handle, _), redis.Redis.from_url(broker()[0]) as client:
        least = by_handle(lambda: handle.predict.remote(("bytes", 1)), given.seconds).p50_ms
        for size in given.numbers:
            seconds = given.seconds / 2
            data = bytes(size)
            rows.append((
                size, hop_ms(handle, "bytes", size, seconds), hop_ms(handle, "array", size, seconds),
                set_and_get_ms(client, size, seconds / 2), median_ms(lambda data=data: bytearray(data), seconds / 4),
            ))  # fmt: skip
    passed = [row for row in rows if isinstance(row[2], float)]
    size, bytes_ms, array_ms, set_ms, _ = passed[-1]
    yield Figure(
        "payload", "Payload: a value from one step to the next", COLUMNS, rows, (Panel("ms", COLUMNS[1:]),),
        f"A request of two steps takes {least:.1f} ms without a value; at {size:,} bytes it takes"
        f" {_times(bytes_ms, set_ms)} times as long as a SET and a GET of as many bytes, and {_times(array_ms, set_ms)}"
        " times for an array.",
    )  # fmt: skip


def _times(one: Cell, other: Cell) -> str:
    return f"{one / other:.2g}" if isinstance(one, float) and isinstance(other, float) else "?"


if __name__ == "__main__":
    main(measure, __doc__, SIZES, QUICK)
