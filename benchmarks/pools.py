#!/usr/bin/env python3
"""Measure autoscaling: a day of traffic that is simulated, and bursts and the way from zero with real processes.

    python benchmarks/pools.py                     # a day, a minute
    python benchmarks/pools.py --hours 2           # its first two hours
    python benchmarks/pools.py --processes         # bursts, and from zero to the first answer, a minute and a half
    python benchmarks/pools.py --json pools.json   # the figures as data as well

The day starts no process: ``qserve.fleet.decide`` decides, and everything else is simulated. Requests
come at random, few in the night, none for three hours of it, many at noon; three times a day there are several times as
many at once, for some minutes. Each takes ``--work-s`` of one of the ``--target`` places of a replica; a new replica
takes ``--start-s`` until it works.

Columns: hours of replicas; the same as a multiple of the optimum, which has just as many replicas as requests are in
work at each moment, and knows it before; the part of the requests that waited longer than ``--patience-s``, and the
99th percentile of the wait; the most replicas at a time; how often their number changed.

With ``--processes``, an application on this machine, whose constructor does nothing, is left without load until it has
one replica, or none. Then ten calls for each of its ``--replicas`` come at once, with ``upscale_delay_s=0``. Measured
is when so many replicas have begun a call. From none, one call comes, and its answer is waited for. Each is done
``--rounds`` times; keep the machine idle.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import qserve
from qserve.fleet.decide import decide, remember
from qserve.fleet.values import Decision, Load
from qserve.wire.application import Scaling

STEP_S = 0.25
"""How often the leader decides."""
HOUR_S = 3600.0
NIGHT_H = (1, 4)
BURSTS_H = {8.5: 4.0, 12.25: 3.0, 20.0: 5.0}
"""The hours at which bursts begin, and by how much they multiply the load."""
BURST_S = 240.0


@dataclass(frozen=True)
class Row:
    """The result of one set of options."""

    options: str
    replica_hours: float
    over_optimum: float
    late_percent: float
    p99_wait_s: float
    most: int
    changes: int


def rate_at(hour: float, peak: float) -> float:
    """Return the requests per second at an hour of the day."""
    if NIGHT_H[0] <= hour < NIGHT_H[1]:
        return 0.0
    usual = peak * (0.55 - 0.45 * math.cos(2 * math.pi * (hour - 1) / 24))
    return usual * next((more for begin, more in BURSTS_H.items() if begin <= hour < begin + BURST_S / HOUR_S), 1.0)


def arrivals(hours: float, peak: float, chance: random.Random) -> Iterator[int]:
    """Yield how many requests come in each step: a Poisson process."""
    for step in range(int(hours * HOUR_S / STEP_S)):
        mean, count, product = rate_at(step * STEP_S / HOUR_S, peak) * STEP_S, 0, chance.random()
        while product > math.exp(-mean):
            count, product = count + 1, product * chance.random()
        yield count


class Pool:
    """A simulated deployment: its queue, its replicas, and how long its requests waited."""

    def __init__(self, target: int, work_s: float, start_s: float, count: int) -> None:
        self.target, self.work, self.start = target, max(1, round(work_s / STEP_S)), round(start_s / STEP_S)
        self.count = self.ready = count
        self.starting: deque[int] = deque()
        """The steps at which starting replicas become ready."""
        self.waiting: deque[tuple[int, int]] = deque()
        """The steps at which requests came, and how many."""
        self.ends: deque[tuple[int, int]] = deque()
        """The steps at which requests end, and how many."""
        self.queued = self.running = self.done = 0
        self.waits: dict[int, int] = {}
        """How many requests waited for each number of steps."""

    def step(self, now: int, came: int) -> None:
        """Simulate one step."""
        while self.starting and self.starting[0] <= now:
            self.starting.popleft()
            self.ready += 1
        while self.ends and self.ends[0][0] <= now:
            self.running -= self.ends.popleft()[1]
        if came:
            self.waiting.append((now, came))
            self.queued += came
        free = self.ready * self.target - self.running
        while self.waiting and free > 0:
            then, number = self.waiting.popleft()
            taken = min(number, free)
            if taken < number:
                self.waiting.appendleft((then, number - taken))
            free, self.queued, self.running = free - taken, self.queued - taken, self.running + taken
            self.ends.append((now + self.work, taken))
            self.waits[now - then] = self.waits.get(now - then, 0) + taken

    def scale(self, now: int, count: int) -> None:
        """Start or stop replicas; those that are not ready are stopped first."""
        for _ in range(count - self.count):
            self.starting.append(now + self.start)
        for _ in range(self.count - count):
            if self.starting:
                self.starting.pop()
            else:
                self.ready -= 1
        self.count = count

    def load(self, now: int) -> Load:
        """Return the load as the broker would report it."""
        oldest_s = (now - self.waiting[0][0]) * STEP_S if self.waiting else 0.0
        return Load(now * STEP_S, self.queued, self.running, oldest_s)


def play(name: str, scaling: Scaling, traffic: list[int], given: argparse.Namespace) -> Row:
    """Let a day pass with these options."""
    pool = Pool(given.target, given.work_s, given.start_s, max(1, scaling.min_replicas))
    history: list[Load] = []
    decision: Decision | None = None
    spent = optimum = most = changes = in_work = 0
    for now, came in enumerate(traffic):
        pool.step(now, came)
        remember(history, pool.load(now), scaling)
        decision = decide(history, pool.count, scaling, decision, now * STEP_S)
        changes += decision.count != pool.count
        pool.scale(now, decision.count)
        spent, most = spent + pool.count, max(most, pool.count)
        in_work += came - (traffic[now - pool.work] if now >= pool.work else 0)
        optimum += math.ceil(in_work / given.target)
    hours = STEP_S / HOUR_S
    late = sum(number for wait, number in pool.waits.items() if wait * STEP_S > given.patience_s) + pool.queued
    return Row(
        name,
        round(spent * hours, 1),
        round(spent / max(1, optimum), 2),
        round(100 * late / max(1, sum(traffic)), 2),
        _percentile(pool.waits, 0.99),
        most,
        changes,
    )


def _percentile(waits: dict[int, int], part: float) -> float:
    left = part * sum(waits.values())
    for wait in sorted(waits):
        left -= waits[wait]
        if left <= 0:
            return wait * STEP_S
    return 0.0


def options_of(target: int, most: int) -> dict[str, Scaling]:
    """Return the options that are compared."""
    defaults = Scaling(max_replicas=most, target_ongoing_requests=target)
    quick = replace(defaults, upscale_delay_s=0.0, downscale_delay_s=60.0)
    return {
        "as many as the peak needs, always": replace(defaults, min_replicas=most),
        "defaults": defaults,
        "upscale_delay_s=0": replace(defaults, upscale_delay_s=0.0),
        "upscale_delay_s=0, downscale_delay_s=60": quick,
        "the same, target 70 %": replace(quick, target_ongoing_requests=0.7 * target),
        "the same, min_replicas=0": replace(quick, min_replicas=0, target_ongoing_requests=0.7 * target),
    }


# -- with real processes ---------------------------------------------------------------------------


@qserve.deployment(max_ongoing_requests=1, ray_actor_options={"num_cpus": 0.01})
class Model:
    """Says which replica has run a call, and when it began."""

    def __call__(self, work_s: float) -> tuple[int, float]:
        began = time.time()
        time.sleep(work_s)
        return os.getpid(), began


@dataclass(frozen=True)
class Measured:
    """Seconds of some rounds."""

    what: str
    median_s: float
    lowest_s: float
    highest_s: float


def measure(given: argparse.Namespace) -> list[Measured]:
    """Start an application for each measurement, and print a table."""
    found = []
    print("| | median s | lowest | highest |\n" + "| --- " * 4 + "|")
    for what, least, act in (
        (f"from a burst to {given.replicas} replicas that serve", 1, _burst),
        ("from zero to the first answer", 0, _first),
    ):
        scaling = {
            "min_replicas": least,
            "max_replicas": given.replicas,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 0,
            "downscale_delay_s": 1,
            "look_back_period_s": 1,
        }
        handle = qserve.run(Model.options(autoscaling_config=scaling).bind(), port=given.port)
        took = []
        for _ in range(given.rounds):
            _wait(lambda least=least: _count() == (least, least))
            took.append(act(handle, given))
        found.append(Measured(what, *(round(pick(took), 2) for pick in (statistics.median, min, max))))
        print("| " + " | ".join(str(value) for value in asdict(found[-1]).values()) + " |", flush=True)
    qserve.shutdown()
    return found


def _burst(handle: Any, given: argparse.Namespace) -> float:
    began = time.time()
    calls = [handle.remote(given.work_s / 10) for _ in range(10 * given.replicas)]
    while True:
        first: dict[int, float] = {}
        for pid, at in qserve.get([*calls]):
            first[pid] = min(at, first.get(pid, at))
        if len(first) >= given.replicas:
            return sorted(first.values())[given.replicas - 1] - began
        calls += [handle.remote(given.work_s / 10) for _ in range(10 * given.replicas)]


def _first(handle: Any, given: argparse.Namespace) -> float:
    began = time.time()
    qserve.get(handle.remote(0.0))
    return time.time() - began


def _count() -> tuple[int, int]:
    one = qserve.status().applications["default"].deployments["Model"]
    return one.target_num_replicas, sum(one.replica_states.values())


def _wait(is_there: Callable[[], bool]) -> None:
    while not is_there():
        time.sleep(0.1)
    time.sleep(1.0)  # the leader and the host are at rest


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--peak", type=float, default=20.0, help="requests a second at noon, without bursts")
    parser.add_argument("--target", type=int, default=2, help="how many requests a replica works on at a time")
    parser.add_argument("--work-s", type=float, default=1.0)
    parser.add_argument("--start-s", type=float, default=2.0)
    parser.add_argument("--patience-s", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", action="store_true", help="bursts and from zero, with real processes")
    parser.add_argument("--replicas", type=int, default=4, help="how many a burst needs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.processes:
        _write(given.json, measure(given))
        return
    traffic = list(arrivals(given.hours, given.peak, random.Random(given.seed)))
    # the most that the day needs, and what chance may add
    highest = max(rate_at(step / 60, given.peak) for step in range(int(given.hours * 60) + 1)) * given.work_s
    most = math.ceil((highest + 3 * math.sqrt(highest)) / given.target)
    print(f"{sum(traffic):,} requests in {given.hours:g} hours\n")
    rows = []
    print("| options | replica-hours | x optimum | late % | p99 wait s | most | changes |\n" + "| --- " * 7 + "|")
    for name, scaling in options_of(given.target, most).items():
        rows.append(play(name, scaling, traffic, given))
        print("| " + " | ".join(str(value) for value in asdict(rows[-1]).values()) + " |", flush=True)
    _write(given.json, rows)


def _write(path: Path | None, rows: list[Any]) -> None:
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
