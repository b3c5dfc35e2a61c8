#!/usr/bin/env python3
"""Measure what 1 to 64 deployments cost: how long ``qserve deploy`` takes, and how much memory they hold.

    python benchmarks/deployments.py [--sizes 4,16,32,64] [--quick]

Each deployment is a class with one replica; a worker runs already. Memory is the proportional set size
of all processes.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.broker import broker
from harness.figures import Figure, Panel
from harness.processes import adopt_orphans, memory_mb, wait_until
from harness.program import Given, each_more, main

SIZES, QUICK = (1, 4, 16, 32, 64), (1, 8)
COLUMNS = ("deployments", "deploy, s", "memory, MB")
QSERVE = [sys.executable, "-m", "qserve"]


def deploy(count: int) -> tuple[float, float]:
    """Return the seconds and the memory of so many deployments."""
    with TemporaryDirectory(prefix="many-") as name, contextlib.ExitStack() as ends:
        env = {
            **os.environ, "COUNT": str(count), "QSERVE_SECRET_KEY": secrets.token_hex(32),
            "QSERVE_BROKER_URL": f"unix://{ends.enter_context(broker(Path(name)))}",
        }  # fmt: skip
        log = ends.enter_context((Path(name) / "log").open("w+"))
        apps = Path(__file__).parent / "apps"
        worker = subprocess.Popen([*QSERVE, "worker"], cwd=apps, env=env, stdout=log, stderr=log)
        ends.callback(worker.wait)
        ends.callback(worker.terminate)
        wait_until(lambda: "the worker of host" in Path(log.name).read_text(), "the worker offers its places", 30.0)
        done = subprocess.run(
            [*QSERVE, "deploy", "idle:app"], cwd=apps, env=env, capture_output=True, text=True, check=False
        )
        took = re.search(r" replicas?, in ([0-9.]+) s", done.stdout)
        if took is None:
            raise SystemExit(done.stdout + done.stderr)
        return float(took[1]), memory_mb()


def measure(given: Given) -> Iterator[Figure]:
    """Deploy each number of deployments to an installation of its own."""
    adopt_orphans()
    rows = [(count, *deploy(count)) for count in given.numbers]
    figure = Figure("deployments", "Deployments: one replica each", COLUMNS, [*rows],
                    (Panel("s", COLUMNS[1:2]), Panel("MB", COLUMNS[2:])), "")  # fmt: skip
    counts = figure.column(COLUMNS[0])
    yield figure.saying(
        f"Each further deployment adds {1000 * each_more(counts, figure.column(COLUMNS[1])):.0f} ms to a deploy and"
        f" {each_more(counts, figure.column(COLUMNS[2])):.1f} MB."
    )


if __name__ == "__main__":
    main(measure, __doc__, SIZES, QUICK)
