"""Processes of user code whose parent has ended: the kernel makes them children of the supervisor (Linux only)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Set

from qserve.base.process import adopt_orphans, children_of, left_behind, replica_of, tag_of
from qserve_workers.supervisor.replica_process import ReplicaProcess

_END_FOR_S = 1.0
"""How long a process may take to end before it is killed."""


class Strays:
    """Ends what user code has started, once the replica is gone that it belongs to."""

    def __init__(self) -> None:
        self._others: set[int] | None = None
        self._owners: dict[int, set[str]] = {}
        self._signalled_at: dict[int, float] = {}
        self._last_end = 0.0
        self.are_there = False
        """Whether some have to end, or may soon: their parents have just ended."""

    def begin(self) -> None:
        """Take all that become children of this process, and are not replicas, for what user code has started."""
        self._others = children_of(os.getpid())  # of the shell whose place this process has taken
        adopt_orphans()
        # a supervisor and its replicas may have been killed together
        for pid in left_behind():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def note_death(self) -> None:
        """Note that a replica has ended: what is found from now on is taken for its own."""
        self._last_end = time.monotonic()

    def end(self, replicas: Mapping[int, ReplicaProcess], policies: Set[int] = frozenset()) -> int:
        """End those whose replica is not among these any more; return how many there are.

        Parameters:
          policies: The processes of scaling policies.
        """
        self.are_there = False
        now, alive = time.monotonic(), {tag_of(replica.spec.name) for replica in replicas.values()}
        if self._others is None:
            return 0
        found = children_of(os.getpid()) - replicas.keys() - policies - self._others
        self._owners = {pid: self._owners.get(pid) or self._owners_of(pid, alive, now) for pid in found}
        strays = [pid for pid, owners in self._owners.items() if not owners & alive]
        for pid in strays:
            signalled_at = self._signalled_at.setdefault(pid, now)
            with contextlib.suppress(ProcessLookupError):
                os.kill(
                    pid,
                    signal.SIGTERM if signalled_at == now else signal.SIGKILL if now - signalled_at > _END_FOR_S else 0,
                )
            self._last_end = now  # its children come here when it has ended
        self._signalled_at = {pid: at for pid, at in self._signalled_at.items() if pid in found}
        self.are_there = bool(strays) or now - self._last_end < _END_FOR_S
        return len(strays)

    def _owners_of(self, pid: int, alive: set[str], now: float) -> set[str]:
        """Return the tag of the replica that a process belongs to; otherwise those of all that it may belong to."""
        named = replica_of(pid)
        if named:
            return {named}
        return {"a dead one"} if now - self._last_end < _END_FOR_S else alive
