"""Serve the same workload with one system after the other, and put the same load on each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from harness.figures import Cell
from harness.load import Load, answer_of, over_http, posting
from harness.processes import Place, free_port, memory_mb, wait_until

from peers.compared import FOLDERS, SYSTEMS, System
from peers.environments import Unavailable

READY_FOR_S, WARM_S = 180.0, 1.0


@dataclass(frozen=True)
class Workload:
    """The requests that every system gets.

    Parameters:
      name: The key of its targets.
      body: The body of its requests; None for the number as the system takes it.
      content_type: Of the body.
      is_right: Whether an answer is correct.
      connections: The numbers of requests in flight.
    """

    name: str
    is_right: Callable[[bytes], bool]
    number: int = 0
    body: bytes | None = None
    content_type: str = "application/json"
    connections: tuple[int, ...] = (1, 16, 64)


@dataclass
class Outcome:
    """The figures of one system.

    Parameters:
      note: Its version, or why there are no figures.
      ready_s: The time from its start to the first correct answer.
      loads: By requests in flight.
    """

    system: System
    note: str
    ready_s: float | None = None
    memory_mb: float | None = None
    loads: dict[int, Load] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Return how many requests had no correct answer."""
        return sum(load.failed for load in self.loads.values())

    def load(self, connections: int, part: str) -> Cell:
        """Return a part of a load, if it was measured."""
        return getattr(self.loads[connections], part) if connections in self.loads else None


def compare(workload: Workload, names: list[str], seconds: float) -> Iterator[Outcome]:
    """Yield what each of these systems does that has the workload."""
    for name in names:
        system = SYSTEMS[name]
        if workload.name not in system.targets:
            continue
        print(f"# {workload.name} on {system.label}", file=sys.stderr, flush=True)
        try:
            yield _measure(workload, system, seconds)
        except (Unavailable, RuntimeError, OSError) as error:  # the figures of the others are still worth having
            yield Outcome(system, f"none: {error}")


def _measure(workload: Workload, system: System, seconds: float) -> Outcome:
    programs, note = system.prepare()
    body = system.body(workload.number) if workload.body is None else workload.body
    path, port = system.path.format(workload.name), free_port()
    with closing(Place(*FOLDERS)) as place:
        outcome = Outcome(system, note)
        answer = b""

        def is_ready() -> bool:
            nonlocal answer
            answer = answer_of(port, body, path, workload.content_type)
            if place.restarts():
                raise RuntimeError(f"a process ended before the first answer: {place.end_of_log()}")
            return workload.is_right(answer)

        began = time.perf_counter()
        system.start(place, programs, system.targets[workload.name], port)
        try:
            wait_until(is_ready, "it answers", READY_FOR_S)
        except TimeoutError:
            raise RuntimeError(f"no correct answer, but {answer!r}: {place.end_of_log()}") from None
        outcome.ready_s = time.perf_counter() - began
        send = posting(body, answer, path, workload.content_type)
        over_http(port, send, 4, min(WARM_S, seconds))
        for connections in workload.connections:
            outcome.loads[connections] = over_http(port, send, connections, seconds)
        outcome.memory_mb = memory_mb()
        return outcome
