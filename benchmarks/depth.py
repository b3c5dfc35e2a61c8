#!/usr/bin/env python3
"""Measure what a step more in a graph costs: chains of 1 to 32 steps, each step a deployment in its own process.

    python benchmarks/depth.py [--sizes 1,2,4] [--seconds 3] [--quick]

All chains are routes of one application, so they run on the same processes.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.figures import Figure, Panel
from harness.load import answers, over_http, posting
from harness.program import Given, each_more, main
from harness.serving import serving, warm

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

SIZES, QUICK = (1, 2, 4, 8, 16, 32), (1, 4, 16)
CONNECTIONS = 16


def add_one(x: int) -> int:
    return x + 1


def measure(given: Given) -> Iterator[Figure]:
    """Serve the longest chain with all the shorter ones on its first steps."""
    routes = {}
    with InputNode() as number:
        value = number
        for step in range(1, given.numbers[-1] + 1):
            value = qserve.deployment(name=f"step{step}", ray_actor_options={"num_cpus": 0.01})(add_one).bind(value)
            if step in given.numbers:
                routes[f"/{step}"] = value
    rows = []
    with serving(DAGDriver.bind(routes, http_adapter=json_request)) as (_, port):
        for steps in given.numbers:
            send = posting(b"0", str(steps).encode(), f"/{steps}")
            warm(lambda send=send: answers(port, send))
            one = over_http(port, send, 1, given.seconds)
            many = over_http(port, send, CONNECTIONS, given.seconds)
            rows.append((steps, one.p50_ms, one.p99_ms, many.rate, one.failed + many.failed))
    columns = ("steps", "p50 ms, alone", "p99 ms, alone", f"requests/s, {CONNECTIONS} in flight", "failed")
    figure = Figure("depth", "Depth: steps one after the other", columns, rows,
                    (Panel("ms", columns[1:3]), Panel("requests/s", columns[3:4])), "")  # fmt: skip
    step_ms = each_more(figure.column("steps"), figure.column(columns[1]))
    yield figure.saying(f"Time grows with the number of steps, by {step_ms:.2f} ms for each.")


if __name__ == "__main__":
    main(measure, __doc__, SIZES, QUICK)
