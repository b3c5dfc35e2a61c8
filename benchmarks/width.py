#!/usr/bin/env python3
"""Measure what a branch more in a graph costs: 1 to 64 calls at once, and one that waits for all of their results.

    python benchmarks/width.py [--sizes 1,2,4] [--seconds 3] [--quick]

Up to eight branches have a deployment each, more of them share these; so the number of processes stays the same.
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

SIZES, QUICK = (1, 2, 4, 8, 16, 32, 64), (1, 8, 64)
CONNECTIONS, PROCESSES = 16, 8


@qserve.deployment(ray_actor_options={"num_cpus": 0.01})
class Branch:
    def add_one(self, x: int) -> int:
        return x + 1


@qserve.deployment(ray_actor_options={"num_cpus": 0.01})
def total(*numbers: int) -> int:
    """Wait for all branches, and add up what they found."""
    return sum(numbers)


def measure(given: Given) -> Iterator[Figure]:
    """Serve graphs of each width as routes of one application."""
    branches = [Branch.bind() for _ in range(min(PROCESSES, given.numbers[-1]))]
    with InputNode() as number:
        routes = {
            f"/{width}": total.bind(*(branches[place % len(branches)].add_one.bind(number) for place in range(width)))
            for width in given.numbers
        }
    rows = []
    with serving(DAGDriver.bind(routes, http_adapter=json_request)) as (_, port):
        for width in given.numbers:
            send = posting(b"0", str(width).encode(), f"/{width}")
            warm(lambda send=send: answers(port, send))
            one = over_http(port, send, 1, given.seconds)
            many = over_http(port, send, CONNECTIONS, given.seconds)
            rows.append((width, one.p50_ms, one.p99_ms, many.rate, many.rate * width, one.failed + many.failed))
    columns = (
        "branches",
        "p50 ms, alone",
        "p99 ms, alone",
        f"requests/s, {CONNECTIONS} in flight",
        "branches/s",
        "failed",
    )
    figure = Figure("width", "Width: steps side by side", columns, rows,
                    (Panel("ms", columns[1:3]), Panel("a second", columns[3:5])), "")  # fmt: skip
    branch_ms = each_more(figure.column("branches"), figure.column(columns[1]))
    yield figure.saying(f"Time grows with the number of branches, by {branch_ms:.2f} ms for each.")


if __name__ == "__main__":
    main(measure, __doc__, SIZES, QUICK)
