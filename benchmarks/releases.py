#!/usr/bin/env python3
"""Deploy new code under load, with and without room for both versions, and measure what requests notice.

    python benchmarks/releases.py                       # three minutes
    python benchmarks/releases.py --json releases.json  # the figures as data as well

A chain of three steps, two replicas a step, 20 ms each, is served over HTTP by a gateway and one worker, which has room
for both versions, or not. Requests come at a constant rate. After a while the next version of the code is put in place
and deployed.

Columns: how long the deploy took; how many requests there were from its beginning until two seconds after its end, and
how many of them failed; their 99th percentile as a multiple of that before the deploy, and the longest. Quote ratios
of one run; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.processes import Place, adopt_orphans, wait_until
from peers.contenders import APPLICATIONS, QserveRoles
from peers.load import Call, Load

_QSERVE = [sys.executable, "-m", "qserve"]
_TARGET = "qserve_app:graph"
READY_FOR_S, DEPLOY_FOR_S = 60.0, 90.0
WARM_S, BEFORE_S, AFTER_S = 5.0, 20.0, 2.0
REPLICAS = 6
"""How many replicas the three steps have together."""


@dataclass(frozen=True)
class Case:
    """A way to deploy.

    Parameters:
      places: How many replicas the worker has room for.
      options: Of ``qserve deploy``.
    """

    name: str
    places: int
    options: Sequence[str] = ()


CASES = (
    Case("room for both versions", 2 * REPLICAS),
    Case("--max-surge 1", 2 * REPLICAS, ("--max-surge", "1")),
    Case("--max-surge 0", 2 * REPLICAS, ("--max-surge", "0")),
    Case("no room for a second version", REPLICAS),
)


@dataclass(frozen=True)
class Row:
    """How requests fared during one deploy."""

    deploy: str
    deploy_s: float
    requests: int
    failed: int
    p99_before_ms: float
    p99_ratio: float
    longest_ms: float


class Pool(QserveRoles):
    """A broker, a gateway, and one worker that offers places."""

    def serve(self, places: int) -> None:
        """Start them, and deploy the first version."""
        self._folder.mkdir()
        self._broker = self.place.start(self.broker_command())
        options = ["--broker", self._url]
        self.place.start([*_QSERVE, "worker", *options, "--name", "default", "--places", str(places)], **self._secret)
        self.place.start([*_QSERVE, "gateway", "--port", str(self.port), *options], **self._secret)
        self.release()

    def release(self, *options: str) -> None:
        """Deploy the code as it is now."""
        command = [*_QSERVE, "deploy", _TARGET, "--broker", self._url, "--gateways", "1", *options]
        self.place.run(command, DEPLOY_FOR_S, **self._secret)


def measure(case: Case, rate: float, timeout_s: float) -> Row:
    """Deploy once under load."""
    with closing(Place(APPLICATIONS)) as place:
        pool = Pool(place)
        pool.serve(case.places)
        load = Load(pool.port, rate, timeout_s, retries=False)
        load.start()
        try:
            wait_until(lambda: any(call.ok for call in list(load.calls)), "it answers", READY_FOR_S)
            time.sleep(WARM_S)
            began = time.monotonic()
            time.sleep(BEFORE_S)
            place.write_version("v2")
            deployed = time.monotonic()
            pool.release(*case.options)
            took_s = time.monotonic() - deployed
            time.sleep(AFTER_S)
        finally:
            load.stop()
    before = [call for call in load.calls if began <= call.due < deployed]
    during = [call for call in load.calls if call.due >= deployed]
    usual_s = percentile(before, 0.99)
    return Row(
        case.name,
        round(took_s, 1),
        len(during),
        sum(not call.ok for call in during),
        round(1000 * usual_s, 1),
        round(percentile(during, 0.99) / usual_s, 1),
        round(1000 * percentile(during, 1.0)),
    )


def percentile(calls: Sequence[Call], part: float) -> float:
    """Return the latency that this part of the requests did not exceed, in seconds."""
    found = sorted(call.latency_s for call in calls)
    return found[min(len(found) - 1, math.ceil(part * len(found)) - 1)]


def main() -> None:
    """Measure every case, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second [50]")
    parser.add_argument("--timeout-s", type=float, default=30.0, help="how long a client waits [30]")
    parser.add_argument("--rounds", type=int, default=1, help="how often each case is measured [1]")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends as well
    adopt_orphans()
    print(f"{os.cpu_count()} cores, {given.rate:g} requests/s, {REPLICAS} replicas")
    print("| deploy | took, s | requests | failed | p99 before, ms | p99, times that | longest, ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for case in CASES:
        for _ in range(given.rounds):
            row = measure(case, given.rate, given.timeout_s)
            rows.append(row)
            print("|", " | ".join(str(value) for value in asdict(row).values()), "|", flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
