"""The memory of replicas that have a limit: the kernel keeps each to it, or it is measured where it cannot."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from qserve.base.log import get_logger
from qserve.base.memory import ControlGroup, used_bytes
from qserve.base.process import tag_of
from qserve_workers.replica.spec import ReplicaSpec
from qserve_workers.supervisor.replica_process import MemoryWatch, ReplicaProcess
from qserve_workers.supervisor.trouble import OVER_LIMIT

log = get_logger(__name__)
_PREFIX = "qserve-replica-"
_MEASURED_EACH_S = 1.0
_KILLED_AT = 1.2
"""The part of its limit at which a replica that is measured is killed; at the whole of it, it is replaced."""


class Over(NamedTuple):
    """A replica over its limit.

    Parameters:
      is_far: Whether it must end at once.
    """

    process: ReplicaProcess
    why: str
    is_far: bool


class MemoryLimits:
    """Keeps replicas to the ``memory`` of their deployment.

    Parameters:
      group: The control group of this process.
    """

    def __init__(self, group: ControlGroup | None = None) -> None:
        self._group = group or ControlGroup()
        self._has_groups = True
        self._inside: dict[int, tuple[ControlGroup, MemoryWatch]] = {}
        self._left: list[ControlGroup] = []
        self._next_at = 0.0

    def enter(self, pid: int, spec: ReplicaSpec) -> None:
        """Have the kernel limit a replica that was just started, if it has a limit and the kernel does that here."""
        limit = spec.options.resources.memory
        if not (limit and self._has_groups):
            return
        try:
            if not self._inside:
                self._group.remove_empty(_PREFIX)
            made = self._group.limit_child(pid, f"{_PREFIX}{tag_of(spec.name)}", limit)
        except OSError as error:
            self._has_groups = False
            log.info("the memory of replicas is measured, as no control group can be made here: %s", error.strerror)
        else:
            self._inside[pid] = made, MemoryWatch(made)

    def why_killed(self, pid: int) -> str:
        """Return why the kernel has killed a replica that has ended; "" if it has not, or this is not known."""
        self._left = [group for group in self._left if not group.remove()]
        found = self._inside.pop(pid, None)
        if found is None:
            return ""
        group, watch = found
        why = f"{OVER_LIMIT}: it was killed at its limit{watch.limit()}" if watch.has_killed() else ""
        self._left += [] if group.remove() else [group]  # what its user code has started may be there still
        return why

    def over(self, processes: Iterable[ReplicaProcess]) -> Iterator[Over]:
        """Yield the replicas that are over their limits, of those that the kernel does not limit; once a second."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + _MEASURED_EACH_S
        for process in processes:
            limit = process.spec.options.resources.memory
            if limit and process.pid not in self._inside:
                used = used_bytes(process.pid, limit)
                if used >= limit:
                    why = f"{OVER_LIMIT}: it used {used >> 20} MiB of its {limit >> 20} MiB"
                    yield Over(process, why, used >= _KILLED_AT * limit)
