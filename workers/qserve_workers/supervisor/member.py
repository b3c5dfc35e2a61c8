"""A replica as its supervisor knows it: a child process, from the fork to its burial."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from dataclasses import dataclass, field

import qserve_workers.process.preload  # noqa: F401
from qserve.base.log import get_logger
from qserve_workers.process.boot import run_replica
from qserve_workers.process.spec import ReplicaSpec

log = get_logger(__name__)
_SAY_FOR_S = 0.3
"""How long a process that stands still may take to write where it stands before it is killed."""


@dataclass
class Member:
    """A replica that this supervisor started.

    Parameters:
      config: The user_config that it was told of.
      is_ready: Whether it is known to have been constructed.
      stopping: Whether it was told to end.
      kill_at: When it is killed, by the monotonic clock.
      killed_because: Why this supervisor killed it; "" when it did not.
    """

    pid: int
    spec: ReplicaSpec
    stream: str
    config: str = ""
    is_ready: bool = False
    stopping: bool = False
    kill_at: float = math.inf
    killed_because: str = ""
    started_at: float = field(default_factory=time.monotonic)

    @property
    def retries(self) -> bool:
        """Whether calls of its deployment may wait for another try."""
        return self.spec.record.deployments[self.spec.deployment].max_retries > 0

    def stop(self) -> None:
        """Have it finish what it runs, and end; it is killed when it takes too long."""
        if not self.stopping:
            grace_s = self.spec.record.deployments[self.spec.deployment].grace_s
            self.stopping, self.kill_at = True, min(self.kill_at, time.monotonic() + grace_s + 3.0)
            os.kill(self.pid, signal.SIGTERM)

    def kill(self, because: str) -> None:
        """End it. It is asked first where it stands: that goes into the log even when it holds the interpreter."""
        if not self.killed_because:
            self.killed_because, self.kill_at = because, time.monotonic() + _SAY_FOR_S
            os.kill(self.pid, signal.SIGABRT)

    def kill_if_due(self) -> None:
        """Kill it when its time is over."""
        if time.monotonic() > self.kill_at:
            self.killed_because = self.killed_because or "it did not end in time"
            os.kill(self.pid, signal.SIGKILL)


def fork_replica(spec: ReplicaSpec) -> int:
    """Start a replica in a child of this process, which has imported the framework and no user code.

    Raises:
      OSError: The system allows no more processes, or has no memory for one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = run_replica(spec)
    except BaseException:
        log.exception("replica %s ended with an error", spec.name)
    finally:
        sys.stderr.flush()
        # no interpreter shutdown: the supervisor's own exit handlers must not run here (reliability.md, 0.17)
        os._exit(code)
