#!/usr/bin/env python3
"""Measure what counting for Prometheus costs: the throughput of a chain of three deployments with metrics and without.

    python benchmarks/metrics.py [--seconds 1] [--rounds 20] [--scrape-s 5]

One installation serves the chain under steady load, and counting is switched on and off in its processes for a second
each, in the order on, off, off, on, which makes a round. Two installations would not do: two that count alike
differ by up to 7 % of processor time for as long as they run. The page is read every five seconds that are counted,
several times as often as Prometheus does. Quote the ratios; nothing else should run meanwhile. That of the processor
time of all processes for each request depends less on what else the machine does than that of the rates.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from harness.load import answer_of, posting
from harness.processes import descendants, free_port, wait_until

CONNECTIONS = 16
SEND = posting(b"5", b"9")
ON, OFF = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2
"""The signals of harness/switch, by which replicas and gateways count and do not."""


def serve(cleanup: ExitStack) -> tuple[int, int]:
    """Start the chain, and return its port and its first process; what was started ends with ``cleanup``."""
    port = free_port()
    command = [sys.executable, "-m", "qserve", "run", "compared_qserve:chain", "--port", str(port)]
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": str(here / "harness/switch")}
    process = subprocess.Popen(command, cwd=here / "apps", env=env, stdout=subprocess.DEVNULL)
    cleanup.callback(process.wait, 20)
    cleanup.callback(process.send_signal, signal.SIGINT)
    wait_until(lambda: answer_of(port, b"5") == b"9", "the chain answers", 60.0)
    return port, process.pid


class Installation:
    """The processes of the chain, and the load that they have."""

    def __init__(self, port: int, pid: int) -> None:
        self._port = port
        below = descendants(pid)
        self._pids = [pid, *below]
        gateways = [one for one, (_, command) in below.items() if "gateway" in command]
        served = [one for one in gateways if below[one][0] in gateways]  # the first process of a gateway serves nothing
        self._counting = [*served, *(one for one, (_, command) in below.items() if "qserve replica" in command)]
        assert len(self._counting) == 4, below
        self._answered = 0
        self._is_over = False

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """Put load on it for as long as the body runs."""
        thread = threading.Thread(target=lambda: asyncio.run(self._load()))
        thread.start()
        try:
            yield
        finally:
            self._is_over = True
            thread.join()

    async def _load(self) -> None:
        async def connection() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            while not self._is_over:
                assert await SEND(reader, writer)
                self._answered += 1
            writer.close()

        await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))

    def measure(self, is_counted: bool, seconds: float, scrapes: bool) -> tuple[float, float]:
        """Return the requests per second, and the microseconds of processor time that each took of all processes."""
        for pid in self._counting:
            os.kill(pid, ON if is_counted else OFF)
        time.sleep(0.02)
        before, answered, began = self._used_s(), self._answered, time.monotonic()
        if scrapes:
            urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/metrics", timeout=10).read()
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        count, took_s = self._answered - answered, time.monotonic() - began
        return count / took_s, (self._used_s() - before) / count * 1e6

    def _used_s(self) -> float:
        """Return the processor time of all threads, in steps finer than those of the clock."""
        used = 0
        for pid in self._pids:
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    used += int(path.read_text().split()[0])
        return used / 1e9


def main() -> None:
    """Print the rates and processor times of each round, and the medians of their ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--scrape-s", type=float, default=5.0, help="0 for never")
    options = parser.parse_args()
    with ExitStack() as cleanup:
        chain = Installation(*serve(cleanup))
        cleanup.enter_context(chain.load())
        chain.measure(True, 2.0, options.scrape_s > 0)
        ratios, counted_s = [], 0.0
        for _ in range(options.rounds):
            found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
            for is_counted in (True, False, False, True):
                counted_s += options.seconds * is_counted
                scrapes = is_counted and 0 < options.scrape_s <= counted_s
                if scrapes:
                    counted_s = 0.0
                found[is_counted].append(chain.measure(is_counted, options.seconds, scrapes))
            (rate, cpu), (plain_rate, plain_cpu) = (
                map(statistics.fmean, zip(*found[of], strict=True)) for of in (True, False)
            )
            ratios.append((rate / plain_rate, cpu / plain_cpu))
            print(f"with {rate:6.0f}/s {cpu:5.0f} us  without {plain_rate:6.0f}/s {plain_cpu:5.0f} us"
                  f"  ratios {ratios[-1][0]:.3f} {ratios[-1][1]:.3f}")  # fmt: skip
        chain.measure(True, 0.1, False)
        for what, values in zip(("rates", "processor times"), zip(*ratios, strict=True), strict=True):
            low, median, high = statistics.quantiles(values, n=4)
            error = 1.25 * statistics.stdev(values) / len(values) ** 0.5
            print(f"median of the ratios of {what} {median:.3f} ± {error:.3f}, quartiles {low:.3f} and {high:.3f}")


if __name__ == "__main__":
    main()
