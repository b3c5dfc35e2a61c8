"""A replica as a child process of its supervisor: how it is started, stopped and killed, and how it ended."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import NoReturn

from qserve.base.log import get_logger
from qserve.base.memory import ControlGroup
from qserve.base.process import exit_words
from qserve.exceptions import BrokerUnavailable
from qserve.wire.application import DeploymentRecord
from qserve_workers.process.boot import run_replica
from qserve_workers.process.loading import Loaded
from qserve_workers.replica.spec import MEANINGS, Exit, Note, ReplicaSpec

log = get_logger(__name__)
_KILL_AFTER_S = 3.0
"""How much longer than its deployment's grace a replica may take to end."""
_DUMP_FOR_S = 0.3
"""How long a process that stands still may take to write its stack before it is killed."""


@dataclass
class ReplicaProcess:
    """A replica that this supervisor started.

    Parameters:
      config: The digest of the options that it was last signalled to read.
      is_ready: Whether it is known to have been constructed.
      ready_at: Since when that is known, by the monotonic clock.
      is_replaced: Whether its successor is started, while it still takes calls.
      stopped_because: Why it was sent SIGTERM; "" when it was not.
      kill_at: When it is killed, by the monotonic clock, as is ``started_at``.
      killed_because: Why this supervisor killed it; "" when it did not.
    """

    pid: int
    spec: ReplicaSpec
    config: str = ""
    is_paused: bool = False
    is_ready: bool = False
    ready_at: float = 0.0
    is_replaced: bool = False
    stopped_because: str = ""
    kill_at: float = math.inf
    killed_because: str = ""
    started_at: float = field(default_factory=time.monotonic)

    @property
    def is_stopping(self) -> bool:
        """Whether it was sent SIGTERM."""
        return bool(self.stopped_because)

    def stop(self, because: str) -> None:
        """Have it finish what it runs, and end; it is killed when it takes too long."""
        if not self.is_stopping:
            grace_s = self.spec.options.grace_s
            self.stopped_because = because
            self.kill_at = min(self.kill_at, time.monotonic() + grace_s + _KILL_AFTER_S)
            os.kill(self.pid, signal.SIGTERM)

    def reconfigure(self, options: DeploymentRecord, is_paused: bool) -> None:
        """Have it read its options again, and whether it is paused, if that has changed."""
        self.spec.adopt(options)
        if (options.config, is_paused) != (self.config, self.is_paused) and not self.is_stopping:
            self.config, self.is_paused = options.config, is_paused
            self.have_options_read()

    def have_options_read(self) -> None:
        """Have it read its options again, and report itself."""
        os.kill(self.pid, signal.SIGHUP)

    def kill(self, because: str) -> None:
        """Kill it soon. First it writes its stack into the log, even when user code holds the interpreter."""
        if not self.killed_because:
            self.killed_because, self.kill_at = because, time.monotonic() + _DUMP_FOR_S
            os.kill(self.pid, signal.SIGABRT)

    def is_late(self, limit_s: float) -> bool:
        """Return whether its constructor may have taken longer than that: no report of it is known yet."""
        return not (self.is_ready or self.is_stopping) and time.monotonic() - self.started_at >= limit_s

    def kill_if_due(self) -> None:
        if time.monotonic() > self.kill_at:
            self.killed_because = self.killed_because or "it did not end in time"
            os.kill(self.pid, signal.SIGKILL)


def fork_replica(spec: ReplicaSpec) -> int:
    """Start a replica in a child of this process, which has imported the framework and no user code.

    Raises:
      OSError: The system allows no more processes, or has no memory for one.
    """
    flush_streams()
    # a child that has no handler for it yet would be ended by it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        raise
    if pid == 0:
        run_to_end(spec)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    return pid


def flush_streams() -> None:
    """Write what is buffered, which a child would write again."""
    sys.stdout.flush()
    sys.stderr.flush()


def run_to_end(spec: ReplicaSpec, loaded: Loaded | None = None) -> NoReturn:
    """Run a replica in this process, a child of the supervisor, and end it.

    Parameters:
      loaded: What the process has loaded that it was forked from.
    """
    code: int = Exit.FAILED
    try:
        code = run_replica(spec, loaded)
    except BrokerUnavailable as error:
        log.error("replica %s ended: %s", spec.name, error)
        code = Exit.NO_BROKER
    except BaseException:
        log.exception("replica %s ended with an error", spec.name)
    finally:
        with contextlib.suppress(Exception):  # user code may have closed it
            sys.stderr.flush()
        # no interpreter shutdown: the supervisor's own exit handlers must not run here (reliability.md, 0.17)
        spec.end_process(code)


# -- how it ended ----------------------------------------------------------------------------------


class MemoryWatch:
    """Tells whether the kernel has killed a process of this control group because it was out of memory."""

    def __init__(self, group: ControlGroup | None = None) -> None:
        self._group = group or ControlGroup()
        self._kills = self._count()

    def has_killed(self) -> bool:
        """Return whether that has happened since the last time this was asked."""
        before, self._kills = self._kills, self._count()
        return self._kills > before

    def limit(self) -> str:
        """Return the limit, for messages; "" when there is none."""
        found = self._group.limit_bytes()
        return "" if found is None else f" of {found >> 20} MiB"

    def _count(self) -> int:
        found = re.search(r"^oom_kill (\d+)", self._group.read("memory.events", "memory.oom_control"), re.MULTILINE)
        return int(found[1]) if found else 0


def describe_end(code: int, killed_because: str, memory: MemoryWatch, note: Note) -> str:
    """Say how a replica ended.

    Parameters:
      code: Its exit code, negative for a signal.
      killed_because: Why its supervisor killed it; "" when it did not.
      note: What it noted when it ended itself.
    """
    if killed_because:
        return killed_because
    if code >= 0:
        meant = MEANINGS.get(code) if note.agrees(code) else ""
        return meant or f"{exit_words(code)}: its user code, or a library of that, has ended the process"
    if code != -signal.SIGKILL:
        return exit_words(code)
    if memory.has_killed():
        return f"oom_killed: SIGKILL, because of the memory limit{memory.limit()}"
    return "killed: SIGKILL, perhaps out of memory"
