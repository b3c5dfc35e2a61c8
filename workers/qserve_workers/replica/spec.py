"""The contract of a supervisor and its replicas: which replica a process is, and what its exit code means."""

from __future__ import annotations

import mmap
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import NoReturn

from qserve.base.keys import Keys
from qserve.base.process import kill_descendants
from qserve.base.settings import Settings
from qserve.deploy import log_tail
from qserve.deploy.sources import Sources
from qserve.metrics import totals
from qserve.wire.application import ApplicationRecord, DeploymentRecord


@dataclass
class ReplicaSpec:
    """The identity of a replica's process.

    Parameters:
      name: The consumer's name in the group; unique for ever.
      record: The application's version that it runs.
      target: ``module:node`` to import; "" takes what the record names.
      sources: The user's modules, which it imports from here instead of from their files.
      is_paused: Whether it begins without taking calls.
      parent: The supervisor's process id.
      worker: The id of the worker that it belongs to.
      devices: The GPUs that were assigned to it.
      told: By which it tells its supervisor what it has counted; None where nothing is counted.
      note: What it says of itself.

    Attributes:
      options: Those of the deployment that hold now.
    """

    name: str
    record: ApplicationRecord
    deployment: str
    settings: Settings
    target: str = ""
    sources: Sources = field(default_factory=lambda: Sources({}))
    is_paused: bool = False
    parent: int = field(default_factory=os.getpid)
    worker: str = ""
    devices: tuple[str, ...] = ()
    told: socket.socket | None = field(default=None, compare=False, repr=False)
    note: Note = field(default_factory=lambda: Note(), compare=False, repr=False)

    def end_process(self, code: int) -> NoReturn:
        """End this process at once, and let the supervisor know that this was intended."""
        log_tail.flush()
        totals.flush()
        self.note.write(code)
        if os.getppid() != self.parent:  # otherwise the supervisor does it, when this process has ended
            kill_descendants(self.name)
        os._exit(code)

    def __post_init__(self) -> None:
        self.options = self.record.deployments[self.deployment]

    @property
    def is_imported(self) -> bool:
        """Whether its code is imported, and was not sent by value."""
        return bool(self.target or self.record.target)

    def adopt(self, options: DeploymentRecord) -> None:
        """Go on with other options of the same version."""
        self.options = options

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.settings.namespace)

    @cached_property
    def stream(self) -> str:
        return self.record.stream(self.keys, self.deployment)


class Leaving(StrEnum):
    """Why a replica is replaced that works: the option that says so."""

    REQUESTS = "max_requests"
    MEMORY = "max_memory_mb"


class Note:
    """What a replica and its supervisor say to each other in memory that both share.

    User code may end the process with any exit code. Then nothing was noted.

    Parameters:
      shared, at: The memory, and where the note begins in it; None for memory of its own.
    """

    SIZE = 3

    def __init__(self, shared: mmap.mmap | None = None, at: int = 0) -> None:
        self._shared, self._at = shared or mmap.mmap(-1, self.SIZE), at
        self.clear()

    def clear(self) -> None:
        self._shared[self._at] = _NOTHING
        self._shared[self._at + 1] = self._shared[self._at + 2] = 0

    def write(self, code: int) -> None:
        """Note the exit code with which the replica ends itself."""
        self._shared[self._at] = code & 0xFF

    def agrees(self, code: int) -> bool:
        """Return whether this exit code was noted."""
        return self._shared[self._at] == code != _NOTHING

    def leave(self, why: Leaving) -> None:
        """Ask for a successor."""
        self._shared[self._at + 2] = [*Leaving].index(why) + 1

    @property
    def leaving(self) -> str:
        """Why the replica is to be replaced; "" while it is not."""
        number = self._shared[self._at + 2]
        return [*Leaving][number - 1].value if number else ""

    def admit(self) -> None:
        """Let a replica run that this process has not forked itself, since it knows of it now."""
        self._shared[self._at + 1] = 1

    def wait_until_admitted(self, is_child: Callable[[], bool]) -> bool:
        """Return True when the supervisor knows of this process, and is its parent; False if that takes too long."""
        until = time.monotonic() + _ADMITTED_WITHIN_S
        while not (self._shared[self._at + 1] and is_child()):
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True


_NOTHING = 255
_ADMITTED_WITHIN_S = 30.0


class Exit(IntEnum):
    """Why a replica ended itself."""

    STOPPED = 0
    FAILED = 1
    UNHEALTHY = 3
    TIME_LIMIT = 4
    STALLED = 5
    ORPHANED = 6
    OUT_OF_FILES = 7
    NO_BROKER = 8


MEANINGS: dict[int, str] = {
    Exit.STOPPED: "it was stopped by a signal or by remote control",
    Exit.FAILED: "an error of qserve itself, which is in its log",
    Exit.UNHEALTHY: "check_health failed",
    Exit.TIME_LIMIT: "a call over its max_execution_s could not be stopped otherwise",
    Exit.STALLED: "stalled: user code ran over QSERVE_STALL_LIMIT_S",
    Exit.ORPHANED: "its supervisor was gone",
    Exit.OUT_OF_FILES: "too many open files",
    Exit.NO_BROKER: "the broker did not reply",
}
