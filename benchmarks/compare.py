#!/usr/bin/env python3
"""Compare qserve with Ray Serve, BentoML, Celery by hand and LitServe, side by side in one run.

    python benchmarks/compare.py [--sizes qserve,ray] [--workloads chain] [--seconds 3] [--quick]

chain: POST 5 → +2 → −1 → +3 → 9, each step in a process of its own. single: one step. array: one step makes an array
of 8 MB, the next returns its length; array64 is the same with 64 MB. LitServe serves a single step only, and Celery
moves no arrays.

Each system runs in a virtual environment of its own in ``~/.cache/qserve-bench``, which is made at the first run (Ray
takes 1 GB); one that cannot be installed has the reason in its row. Ray has its settings for throughput, but for the
array, which fails with them, and no system writes a line for each request. Memory is that of all of a system's
processes. Quote ratios of one run only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from harness.figures import Figure, Panel
from harness.processes import adopt_orphans
from harness.program import Given, main
from peers.compared import SYSTEMS
from peers.comparison import Workload, compare

ARRAY = 8_000_000
WORKLOADS = {
    "chain": (Workload("chain", lambda answer: _value(answer) == 9, 5), "a chain of three steps"),
    "single": (Workload("single", lambda answer: _value(answer) == 7, 5), "a single step"),
    "array": (
        Workload("array", lambda answer: _value(answer) == ARRAY, ARRAY, connections=(1, 4)),
        "an array of 8 MB from one step to the next",
    ),
    "array64": (
        Workload("array", lambda answer: _value(answer) == 8 * ARRAY, 8 * ARRAY, connections=(1, 4)),
        "an array of 64 MB from one step to the next",
    ),
}


def _value(answer: bytes) -> object:
    """Return the number in an answer; LitServe puts it into an object."""
    try:
        found = json.loads(answer)
    except ValueError:
        return None
    return found.get("output") if isinstance(found, dict) else found


def measure(given: Given) -> Iterator[Figure]:
    """Yield a figure for each workload."""
    adopt_orphans()
    for name in given.options.workloads.split(","):
        workload, words = WORKLOADS[name]
        outcomes = list(compare(workload, given.sizes, given.seconds))
        fewest, *_, most = workload.connections
        rates = tuple(f"requests/s, {number} in flight" for number in workload.connections[1:])
        p99 = f"p99 ms, {most} in flight"
        columns = ("system", "version", "first answer, s", "memory, MB", "p50 ms, alone", *rates, p99, "failed")
        rows = [
            (
                one.system.label, one.note, one.ready_s, one.memory_mb, one.load(fewest, "p50_ms"),
                *(one.load(number, "rate") for number in workload.connections[1:]), one.load(most, "p99_ms"),
                one.failed,
            )
            for one in outcomes
        ]  # fmt: skip
        figure = Figure(
            f"compare_{name}", f"Side by side: {words}", columns, rows,
            (Panel("requests/s", rates[-1:]), Panel("ms, alone", columns[4:5]), Panel("MB", columns[3:4])), "",
            bars=True,
        )  # fmt: skip
        yield figure.saying(_law(figure, rates[-1]))


def _law(figure: Figure, rate: str) -> str:
    """Return how many times the first system is as fast as each other one."""
    alone, rates = figure.column("p50 ms, alone"), figure.column(rate)
    parts = [
        f"{rates[0] / rates[number]:.1f} times the throughput of {row[0]} and {alone[0] / alone[number]:.2f} times its"
        " latency"
        for number, row in enumerate(figure.rows)
        if number and rates[number] == rates[number]
    ]
    return f"{figure.rows[0][0]} has " + "; ".join(parts) + "."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what only this benchmark has."""
    parser.add_argument("--workloads", default="chain,single,array", help="of " + ", ".join(WORKLOADS))


if __name__ == "__main__":
    main(measure, __doc__, SYSTEMS, SYSTEMS, add_options)
