#!/usr/bin/env python3
"""Measure what 1 to 8 replicas of a deployment get done: of calls that wait, and of calls that compute.

    python benchmarks/replicas.py [--sizes 1,2,4] [--seconds 3] [--quick]

A call waits for 10 ms, or computes for about as long; a replica runs one at a time. 32 requests are in flight.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from harness.figures import Figure, Panel
from harness.load import answers, over_http, posting
from harness.program import Given, main
from harness.serving import serving, warm

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

SIZES, QUICK = (1, 2, 4, 8), (1, 4)
CONNECTIONS, WORK_S = 32, 0.01
COLUMNS = ("replicas", "waiting, requests/s", "computing, requests/s")


@qserve.deployment(name="waiting", max_ongoing_requests=1, ray_actor_options={"num_cpus": 0.01})
def wait(x: int) -> int:
    time.sleep(WORK_S)
    return x


@qserve.deployment(name="computing", max_ongoing_requests=1, ray_actor_options={"num_cpus": 0.01})
def compute(x: int) -> int:
    until = time.thread_time() + WORK_S  # processor time, so that replicas without a core of their own get less done
    while time.thread_time() < until:
        pass
    return x


def measure(given: Given) -> Iterator[Figure]:
    """Serve both kinds with each number of replicas."""
    rows = []
    for count in given.numbers:
        with InputNode() as number:
            routes = {
                "/waiting": wait.options(num_replicas=count).bind(number),
                "/computing": compute.options(num_replicas=count).bind(number),
            }
        with serving(DAGDriver.bind(routes, http_adapter=json_request)) as (_, port):
            rates = []
            for path in routes:
                send = posting(b"5", b"5", path)
                warm(lambda send=send: answers(port, send))
                rates.append(over_http(port, send, CONNECTIONS, given.seconds).rate)
            rows.append((count, *rates))
    figure = Figure("replicas", "Replicas: calls of 10 ms, one at a time in each", COLUMNS, rows,
                    (Panel("requests/s", COLUMNS[1:]),), "")  # fmt: skip
    (low, *_, high) = rows if len(rows) > 1 else rows * 2
    yield figure.saying(
        f"{high[0]} replicas do {high[1] / low[1]:.1f} times as many calls that wait as {low[0]}, and"
        f" {high[2] / low[2]:.1f} times as many that compute, for which the cores are the limit."
    )


if __name__ == "__main__":
    main(measure, __doc__, SIZES, QUICK)
