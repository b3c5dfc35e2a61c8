#!/usr/bin/env python3
"""Measure what counting for Prometheus costs: the throughput of a chain of three deployments with metrics and without.

    python benchmarks/metrics.py [--seconds 3] [--rounds 10]

Both kinds are served at the same time, each by a broker, replicas and a gateway of its own, and get the load in turns,
first one and then the other, in an order that changes with each round. So what else the machine does hits both alike.
The page is read once a second while it has the load, as Prometheus would do several times a minute. Quote the ratio;
nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import threading
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from chain import free_port, load, wait_ready

CONNECTIONS = 16


def serve(cleanup: ExitStack, metrics: str) -> int:
    """Start the chain, and return its port; what was started ends with ``cleanup``."""
    port = free_port()
    command = [sys.executable, "-m", "qserve", "run", "chain:graph", "--port", str(port)]
    env = {**os.environ, "QSERVE_METRICS": metrics}
    process = subprocess.Popen(command, cwd=Path(__file__).parent, env=env, stdout=subprocess.DEVNULL)
    cleanup.callback(process.wait, 20)
    cleanup.callback(process.send_signal, signal.SIGINT)
    wait_ready(port, process)
    return port


def rate(port: int, seconds: float, scrapes: bool) -> float:
    """Return the requests per second."""
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(1.0):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/metrics", timeout=10).read()

    thread = threading.Thread(target=scrape if scrapes else is_over.wait)
    thread.start()
    try:
        return asyncio.run(load(port, CONNECTIONS, seconds))[2]
    finally:
        is_over.set()
        thread.join()


def main() -> None:
    """Print both rates of each round, and the median of their ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with ExitStack() as cleanup:
        ports = {name: serve(cleanup, name) for name in ("1", "0")}
        for port in ports.values():
            rate(port, options.seconds, False)
        ratios = []
        for number in range(options.rounds):
            order = ("1", "0") if number % 2 else ("0", "1")
            found = {name: rate(ports[name], options.seconds, name == "1") for name in order}
            ratios.append(found["1"] / found["0"])
            print(f"with {found['1']:6.0f}/s  without {found['0']:6.0f}/s  ratio {ratios[-1]:.3f}")
        low, median, high = statistics.quantiles(ratios, n=4)
        print(f"median of the ratios {median:.3f}, quartiles {low:.3f} and {high:.3f}")


if __name__ == "__main__":
    main()
