#!/usr/bin/env python3
"""Measure a chain of three deployments with 1 to 256 requests in flight: latency, throughput, memory.

    python benchmarks/in_flight.py [--sizes 1,16,64] [--seconds 3] [--quick]

POST 5 → +2 → −1 → +3 → 9. Run it on two commits and quote the ratios: a figure on its own says little, machines differ.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from apps.compared_qserve import chain
from harness.figures import Figure, Panel
from harness.load import answers, by_handle, over_http, posting
from harness.processes import memory_mb
from harness.program import Given, main
from harness.serving import serving, warm

SIZES, QUICK = (1, 4, 16, 64, 256), (1, 16, 64)
COLUMNS = ("in flight", "p50 ms", "p99 ms", "requests/s", "failed")


def measure(given: Given) -> Iterator[Figure]:
    """Measure each number of connections on the same processes."""
    began = time.perf_counter()
    with serving(chain) as (handle, port):
        send = posting(b"5", b"9")
        warm(lambda: answers(port, send))
        ready_s = time.perf_counter() - began
        over_http(port, send, 4, given.seconds)
        loads = [(number, over_http(port, send, number, given.seconds)) for number in given.numbers]
        handle_ms = by_handle(lambda: handle.predict.remote(5), given.seconds).p50_ms
        used_mb = memory_mb()
    rows = [(number, *load) for number, load in loads]
    best = max(load.rate for _, load in loads)
    enough = next(number for number, load in loads if load.rate > 0.9 * best)
    yield Figure(
        "in_flight", "Requests in flight: a chain of three steps", COLUMNS, rows,
        (Panel("ms", COLUMNS[1:3]), Panel("requests/s", COLUMNS[3:4], from_zero=True)),
        f"Throughput is near its best from {enough} requests in flight on; then each waits for those before it, so"
        f" latency grows with their number. The first answer came after {ready_s:.1f} s, all processes take"
        f" {used_mb:.0f} MB, and by handle, without HTTP, a request takes {handle_ms:.2f} ms.",
    )  # fmt: skip


if __name__ == "__main__":
    main(measure, __doc__, SIZES, QUICK)
