#!/usr/bin/env python3
"""Kill parts of qserve, Ray Serve and Celery under load, and count what happens to the requests.

    python benchmarks/kills.py                                   # everything; three quarters of an hour
    python benchmarks/kills.py --only qserve --faults replica    # half a minute
    python benchmarks/kills.py --only qserve-hosts --faults worker --rounds 10
    python benchmarks/kills.py --json kills.json                 # the figures as data as well

Each contender serves the same chain of three steps over HTTP (5 + 2 - 1 + 3 = 9) with two replicas a step; each step
takes 20 ms. Clients send at a constant rate, whatever happens to their requests, and give up after ``--timeout-s``.
Each fault is injected ``--rounds`` times into a freshly started contender, each time after it has recovered from the
last. Processes that end and have no supervisor are restarted after 1 s, as a service manager does.

Contenders, with their default settings:

- qserve: ``qserve run`` on its embedded broker, from this environment; ``qserve-roles`` has a broker, a worker for each
  step and a gateway that are started separately, so that a whole worker can be killed; ``qserve-hosts`` has a second
  worker for the step whose worker is killed; ``qserve-retry`` has clients
  that resend a failed request until their time is over, with one ``Idempotency-Key``.
- ray: Ray Serve; ``ray-retry`` with such clients. On one host it has no broker, and no worker that can be killed alone.
- celery: Flask, gunicorn and a Celery chain on Redis; ``celery-late`` with late acknowledgement, rejection of the calls
  of a lost process and an append-only file; ``celery-late-retry`` with such clients. As in qserve and Ray, the process
  that is killed is the one that runs the step (a child of the pool); its parent lives on.

Linux only, and on 127.0.0.1 only. Ray and Celery are installed into environments of their own in
``~/.cache/qserve-bench`` (Ray takes 1 GB); the broker's binary is the one that qserve finds for itself. All processes
are ended, also on Ctrl-C, and no recovery is waited for longer than ``--cap-s``. Keep the machine idle, and quote only
rows of one run side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

from harness.processes import Place, adopt_orphans, wait_until
from peers.contenders import APPLICATIONS, CONTENDERS, Contender
from peers.faults import CALM_S, FAULTS, Fault, Recovery
from peers.figures import Figures, figures_of, not_applicable, table
from peers.ledger import Ledger
from peers.load import Call, Load, ask

READY_FOR_S = 180.0
WARM_S, MEASURED_S = 3.0, 3.0
_AT_LEAST_NORMAL_S = 0.25
"""A response within this time never counts as disturbed: a shared machine may hesitate that long on its own."""


@contextlib.contextmanager
def serving(name: str) -> Iterator[Contender]:
    """Start a contender and wait until it responds; stop all of it at the end."""
    place = Place(APPLICATIONS)
    try:
        contender = CONTENDERS[name](place)
        contender.prepare()
        contender.start()
        wait_until(lambda: _answers(contender), f"{name} answers", READY_FOR_S)
        yield contender
    except Exception:
        with contextlib.suppress(OSError):
            print(f"# the end of {name}'s log:", *place.log.read_text().splitlines()[-30:], sep="\n# ", file=sys.stderr)
        raise
    finally:
        place.close()


def _answers(contender: Contender) -> bool:
    if contender.place.restarts():
        raise RuntimeError("one of its processes ended before the first response")
    return asyncio.run(ask(contender.port, "warm", 5.0)) == "ok"


def run(name: str, fault: str, arguments: argparse.Namespace) -> Figures:
    """Inject one fault into one contender, as often as requested."""
    if fault in CONTENDERS[name].lacks:
        return not_applicable(name, fault)
    with serving(name) as contender:
        ledger = Ledger(contender.place.ledger)
        load = Load(contender.port, arguments.rate, arguments.timeout_s, contender.retries)
        load.start()
        try:
            time.sleep(WARM_S + MEASURED_S)
            recovery = Recovery(load, ledger, _normal_s(load.calls))
            rounds = list(_rounds(contender, fault, ledger, recovery, arguments))
        finally:
            load.stop()
        time.sleep(CALM_S)  # requests that their clients have given up may still be running
        return figures_of(name, fault, load.calls, ledger, rounds, contender.place.restarts())


def _rounds(
    contender: Contender, fault: str, ledger: Ledger, recovery: Recovery, arguments: argparse.Namespace
) -> Iterator[Fault]:
    # a blocked process may stay for ever, and the next round would find nothing left to block
    for _ in range(1 if fault == "blocked" else arguments.rounds):
        done = FAULTS[fault][1](contender, ledger)
        recovery.watch(done, arguments.cap_s)
        yield done
        if done.normal_at is None:
            return
        time.sleep(CALM_S)


def _normal_s(calls: list[Call]) -> float:
    """Return how long a response may take: three times the 99th percentile without faults, after warming up."""
    measured = sorted(call.latency_s for call in calls if call.due > calls[0].due + WARM_S and call.end is not None)
    if not measured:
        raise RuntimeError("no request had a response before the first fault")
    return max(_AT_LEAST_NORMAL_S, 3 * measured[int(len(measured) * 0.99)])


def _chosen(text: str, known: list[str], option: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            sys.exit(f"{option} does not know {name!r}; choose from: {', '.join(known)}")
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, separated by commas")
    parser.add_argument("--faults", default=",".join(FAULTS), help="faults, separated by commas")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (%(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="how often a fault is injected (%(default)d)")
    parser.add_argument("--timeout-s", type=float, default=30.0, help="how long a client waits (%(default)g)")
    parser.add_argument("--cap-s", type=float, default=60.0, help="longest wait for a recovery (%(default)g)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    arguments = parser.parse_args()
    arguments.only = _chosen(arguments.only, list(CONTENDERS), "--only")
    arguments.faults = _chosen(arguments.faults, list(FAULTS), "--faults")
    return arguments


def main() -> None:
    """Run the contenders and print the table."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    adopt_orphans()
    rows: list[Figures] = []
    failures = 0
    for fault, name in product(arguments.faults, arguments.only):
        print(f"# {time.strftime('%H:%M:%S')} {name}: {FAULTS[fault][0]}", file=sys.stderr, flush=True)
        try:
            rows.append(run(name, fault, arguments))
        except (OSError, RuntimeError, StopIteration, subprocess.SubprocessError) as error:
            failures += 1  # the figures of the others are still worth having
            print(f"# no figures: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        print(f"#   {rows[-1]}", file=sys.stderr, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, {arguments.rate:g} requests/s\n")
    labels = {name: one.label for name, one in CONTENDERS.items()}
    print(table(rows, labels, {fault: FAULTS[fault][0] for fault in arguments.faults}))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
