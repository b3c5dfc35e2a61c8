"""Replicas that have run ``max_requests`` calls, or use more than ``max_memory_mb``: they are replaced one by one.

Another replica is started first, and the old one finishes what it runs once that takes calls: so there are never fewer
than wanted. Where GPUs are assigned, which have no room for both, the old one begins to end at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping

from qserve.base.log import get_logger
from qserve.base.memory import used_bytes
from qserve.deploy.log_tail import about
from qserve.wire.replies import warn_once
from qserve_workers.replica.spec import Leaving
from qserve_workers.supervisor.replica_process import ReplicaProcess
from qserve_workers.supervisor.scope import Target

log = get_logger(__name__)
_MEASURED_EACH_S = 1.0
YOUNG_S = 5.0
"""How long a replica takes calls before its memory counts: its successor may use as much from the start."""


class Recycling:
    """Decides which replicas are replaced, and when they stop.

    Parameters:
      is_running: Returns whether a replica reports that it takes calls.
      count: Counts a replacement: application, deployment and reason.
    """

    def __init__(self, is_running: Callable[[ReplicaProcess], bool], count: Callable[[str, str, str], object]) -> None:
        self._is_running = is_running
        self._count = count
        self._measured_at = 0.0

    def tick(self, processes: Collection[ReplicaProcess], targets: Mapping[str, Target]) -> None:
        """Choose one replica of each deployment that is due, and stop those whose successors take calls."""
        self._measure(processes)
        due = [one for one in processes if one.spec.note.leaving and not one.is_stopping]
        for stream in {one.spec.stream for one in due} & targets.keys():
            own = [one for one in processes if one.spec.stream == stream and not one.is_stopping]
            leaving = next((one for one in own if one.is_replaced), None)
            if leaving is None:
                leaving = next(one for one in due if one.spec.stream == stream)
                self._begin(leaving)
            if leaving.spec.devices or self._has_successors(leaving, own, targets[stream]):
                leaving.stop(leaving.spec.note.leaving)

    def _begin(self, process: ReplicaProcess) -> None:
        spec, why = process.spec, process.spec.note.leaving
        process.is_replaced = True
        process.have_options_read()  # and so report at once why it is replaced
        of = about(spec.record.name, spec.deployment)
        log.info("replica %s of %s is replaced (%s)", spec.name, spec.deployment, why, extra=of)
        self._count(spec.record.name, spec.deployment, why)

    def _has_successors(self, leaving: ReplicaProcess, own: Collection[ReplicaProcess], target: Target) -> bool:
        others = [one for one in own if not one.is_replaced and one.spec.devices == leaving.spec.devices]
        wanted = target.replicas[leaving.spec.devices]
        return len(others) >= wanted and sum(map(self._is_running, others)) >= wanted

    def _measure(self, processes: Collection[ReplicaProcess]) -> None:
        limited = [one for one in processes if one.spec.options.max_memory and not one.is_stopping]
        now = time.monotonic()
        if not limited or now < self._measured_at + _MEASURED_EACH_S:
            return
        self._measured_at = now
        for process, used, limit in _over(limited):
            if self._is_running(process):
                if now - process.ready_at >= YOUNG_S:
                    process.spec.note.leave(Leaving.MEMORY)
                else:
                    warn_once(
                        f"a replica of deployment {process.spec.deployment!r} uses {used >> 20} MiB as soon as it takes"
                        f" calls, more than its max_memory_mb of {limit >> 20}: it is replaced again and again. Raise"
                        " max_memory_mb"
                    )


def _over(limited: Collection[ReplicaProcess]) -> Iterator[tuple[ReplicaProcess, int, int]]:
    for process in limited:
        limit = process.spec.options.max_memory or 0
        used = used_bytes(process.pid, limit)
        if used > limit:
            yield process, used, limit
