#!/usr/bin/env python3
"""Measure what counting for Prometheus costs: the throughput of a chain of three deployments with metrics and without.

    python benchmarks/metrics.py [--seconds 3] [--rounds 10]

Both kinds are served at the same time, each by a broker, replicas and a gateway of its own, and get the load in turns,
first one and then the other, in an order that changes with each round. So what else the machine does hits both alike.
The page is read once a second while it has the load, as Prometheus would do several times a minute. Quote the ratios;
nothing else should run meanwhile. That of the processor time of all processes for each request depends less on what
else the machine does than that of the rates.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import threading
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from harness.load import answers, over_http, posting
from harness.processes import descendants, free_port, processor_s, wait_until

CONNECTIONS = 16
SEND = posting(b"5", b"9")


def serve(cleanup: ExitStack, metrics: str) -> tuple[int, int]:
    """Start the chain, and return its port and its first process; what was started ends with ``cleanup``."""
    port = free_port()
    command = [sys.executable, "-m", "qserve", "run", "compared_qserve:chain", "--port", str(port)]
    # the same order of what is hashed: two processes of one kind differ by 2 % otherwise
    env = {**os.environ, "QSERVE_METRICS": metrics, "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(command, cwd=Path(__file__).parent / "apps", env=env, stdout=subprocess.DEVNULL)
    cleanup.callback(process.wait, 20)
    cleanup.callback(process.send_signal, signal.SIGINT)
    wait_until(lambda: answers(port, SEND), "the chain answers", 60.0)
    return port, process.pid


def measure(port: int, pid: int, seconds: float, scrapes: bool) -> tuple[float, float]:
    """Return the requests per second, and the microseconds of processor time that each took of all processes."""
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(1.0):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/metrics", timeout=10).read()

    thread = threading.Thread(target=scrape if scrapes else is_over.wait)
    thread.start()
    pids = [pid, *descendants(pid)]
    before = sum(map(processor_s, pids))
    try:
        rate = over_http(port, SEND, CONNECTIONS, seconds).rate
    finally:
        is_over.set()
        thread.join()
    return rate, (sum(map(processor_s, pids)) - before) / (rate * seconds) * 1e6


def main() -> None:
    """Print the rates and processor times of each round, and the medians of their ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with ExitStack() as cleanup:
        served = {name: serve(cleanup, name) for name in ("1", "0")}
        for one in served.values():
            measure(*one, options.seconds, False)
        ratios = []
        for number in range(options.rounds):
            order = ("1", "0") if number % 2 else ("0", "1")
            found = {name: measure(*served[name], options.seconds, name == "1") for name in order}
            (rate, cpu), (plain_rate, plain_cpu) = found["1"], found["0"]
            ratios.append((rate / plain_rate, cpu / plain_cpu))
            print(f"with {rate:6.0f}/s {cpu:5.0f} us  without {plain_rate:6.0f}/s {plain_cpu:5.0f} us"
                  f"  ratios {ratios[-1][0]:.3f} {ratios[-1][1]:.3f}")  # fmt: skip
        for what, values in zip(("rates", "processor times"), zip(*ratios, strict=True), strict=True):
            low, median, high = statistics.quantiles(values, n=4)
            print(f"median of the ratios of {what} {median:.3f}, quartiles {low:.3f} and {high:.3f}")


if __name__ == "__main__":
    main()
