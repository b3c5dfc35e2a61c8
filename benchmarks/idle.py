#!/usr/bin/env python3
"""Measure what an installation costs that has nothing to do: processor time, broker commands, connections, memory.

    python benchmarks/idle.py [--sizes 3,64] [--watch-s 20] [--settle-s 10] [--quick]
    python benchmarks/idle.py --sizes 3 --tls    # over TLS, which a process of its own ends, and is not counted

Each deployment is a class with one replica. ``qserve run`` is started with all of them, left alone for ``--settle-s``,
and watched for ``--watch-s``. Processor time is user and system time of /proc/PID/stat, so it hardly depends on what
else the machine does; memory is the proportional set size of /proc/PID/smaps_rollup. A wake-up is a time that a process
went to sleep (``voluntary_ctxt_switches`` of all its threads). It needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from harness.broker import broker, tls_door
from harness.figures import Figure, Panel
from harness.processes import descendants, free_port, processor_s, pss_mb
from harness.program import Given, each_more, main

SIZES, QUICK = (3, 16, 64), (3,)
COLUMNS = ("deployments", "% of a core", "memory, MB", "broker commands a minute", "connections a minute")


@dataclass
class Row:
    """The costs of one kind of process."""

    role: str
    processes: int = 0
    core_percent: float = 0.0
    wakeups_s: float = 0.0
    pss_mb: float = 0.0


@dataclass
class Result:
    """The costs of an idle installation."""

    deployments: int
    rows: list[Row] = field(default_factory=list)
    commands_per_minute: float = 0.0
    connections_per_minute: float = 0.0
    most: dict[str, float] = field(default_factory=dict)

    @property
    def core_percent(self) -> float:
        """Return the processor time of all processes, as percent of one core."""
        return sum(row.core_percent for row in self.rows)

    @property
    def memory_mb(self) -> float:
        """Return the memory of all processes."""
        return sum(row.pss_mb for row in self.rows)


def role_of(command: str) -> str:
    """Return what a process is, by its command line."""
    for word, role in (
        ("qserve replica", "replica"),
        ("qserve worker", "supervisor"),
        ("qserve_gateway", "gateway"),
        ("qserve gateway", "gateway"),
        ("gunicorn", "gateway"),
        ("valkey", "broker"),
        ("redis-server", "broker"),
        ("qserve", "qserve run"),
    ):
        if word in command:
            return role
    return command[:20] or "other"


def wakeups(pid: int) -> int:
    """Return how often the threads of a process went to sleep."""
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):
            for line in status.read_text().splitlines():
                count += int(line.split()[1]) if line.startswith("voluntary_ctxt_switches") else 0
    return count


def watch(count: int, tls: bool, settle_s: float, watch_s: float) -> Result:
    """Start an installation, leave it alone, and return what it has cost."""
    with tempfile.TemporaryDirectory(prefix="idle-") as name, contextlib.ExitStack() as ends:
        folder = Path(name)
        env = {**os.environ, "TMPDIR": name, "COUNT": str(count)}
        not_counted: set[int] = set()
        if tls:
            unix_socket = ends.enter_context(broker(folder))
            started = set(descendants())
            url = ends.enter_context(tls_door(folder, unix_socket))
            not_counted = set(descendants()) - started
            env |= {"QSERVE_BROKER_URL": url, "QSERVE_SECRET_KEY": secrets.token_hex(32)}
        command = [sys.executable, "-m", "qserve", "run", "idle:app", "--port", str(free_port())]
        with (folder / "log").open("wb") as log:
            apps = Path(__file__).parent / "apps"
            run = subprocess.Popen(command, cwd=apps, env=env, stdout=subprocess.PIPE, stderr=log)
        ends.callback(run.wait)
        ends.callback(run.terminate)
        assert run.stdout is not None
        if not any(b"qserve: ready" in line for line in run.stdout):
            raise SystemExit((folder / "log").read_text())
        time.sleep(settle_s)
        if not tls:
            (unix_socket,) = map(str, folder.glob("qserve-*/broker.sock"))
        client = redis.Redis(unix_socket_path=unix_socket)
        roles = {pid: role_of(command) for pid, (_, command) in descendants().items() if pid not in not_counted}
        before = {pid: (processor_s(pid), wakeups(pid)) for pid in roles}
        client.config_resetstat()
        connected = client.info("stats")["total_connections_received"]
        began = time.monotonic()
        time.sleep(watch_s)
        took_s = time.monotonic() - began
        info: Any = client.info("commandstats")
        result = Result(count)
        result.connections_per_minute = (client.info("stats")["total_connections_received"] - connected) * 60 / took_s
        calls = Counter({one.removeprefix("cmdstat_"): stats["calls"] for one, stats in info.items()})
        calls.subtract({"info": 2, "config|resetstat": 1})
        result.commands_per_minute = round(calls.total() * 60 / took_s, 1)
        result.most = {one: round(number * 60 / took_s, 1) for one, number in calls.most_common(12)}
        rows: defaultdict[str, Row] = defaultdict(lambda: Row(""))
        for pid, (used_s, slept) in before.items():
            row = rows[roles[pid]]
            row.role, row.processes = roles[pid], row.processes + 1
            row.core_percent += 100 * (processor_s(pid) - used_s) / took_s
            row.wakeups_s += (wakeups(pid) - slept) / took_s
            row.pss_mb += pss_mb(pid)
        result.rows = list(rows.values())
        return result


def show(result: Result) -> None:
    """Print what each kind of process took."""
    print(f"\n{result.deployments} deployments\n\n| role | processes | % of a core | wake-ups a second | PSS, MB |")
    print("| --- " * 5 + "|")
    for row in result.rows:
        print(f"| {row.role} | {row.processes} | {row.core_percent:.3f} | {row.wakeups_s:.1f} | {row.pss_mb:.1f} |")
    print("\na minute: " + ", ".join(f"{name} {number:g}" for name, number in result.most.items()), flush=True)


def measure(given: Given) -> Iterator[Figure]:
    """Watch an installation of each size."""
    tls = given.options.tls
    watch_s = given.options.watch_s or (8.0 if given.options.quick else 20.0)  # heartbeats come every few seconds
    rows = []
    for count in given.numbers:
        result = watch(count, tls, given.options.settle_s, watch_s)
        show(result)
        rows.append((
            count, result.core_percent, result.memory_mb, result.commands_per_minute, result.connections_per_minute
        ))  # fmt: skip
    figure = Figure("idle", "Idle" + (", over TLS" if tls else ""), COLUMNS, [*rows],
                    (Panel("% of a core", COLUMNS[1:2], True), Panel("a minute", COLUMNS[3:4])), "")  # fmt: skip
    counts = figure.column(COLUMNS[0])
    yield figure.saying(
        f"{rows[0][0]} deployments take {rows[0][1]:.2f} % of a core while nothing happens; each further one adds"
        f" {each_more(counts, figure.column(COLUMNS[1])):.3f} %, {each_more(counts, figure.column(COLUMNS[2])):.1f} MB"
        f" and {each_more(counts, figure.column(COLUMNS[3])):.0f} broker commands a minute, and"
        f" {rows[-1][4]:g} connections a minute are new."
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what only this benchmark has."""
    parser.add_argument("--tls", action="store_true", help="with a broker behind TLS")
    parser.add_argument("--watch-s", type=float, help="how long it is watched (20)")
    parser.add_argument("--settle-s", type=float, default=10.0, help="how long it is left alone before (10)")


if __name__ == "__main__":
    main(measure, __doc__, SIZES, QUICK, add_options)
