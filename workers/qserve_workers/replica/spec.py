"""What a supervisor and its replicas agree on: which replica a process is, and what its exit code means."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.deploy.sources import Sources
from qserve.wire.application import ApplicationRecord, DeploymentRecord


@dataclass(frozen=True)
class ReplicaSpec:
    """Which replica a process is.

    Parameters:
      name: The consumer's name in the group; unique for ever.
      record: The application's version that it runs.
      target: ``module:node`` to import; "" takes what the record names.
      sources: The user's modules, which it imports from here instead of from their files.
      parent: The supervisor's process id.
    """

    name: str
    record: ApplicationRecord
    deployment: str
    settings: Settings
    target: str = ""
    sources: Sources = field(default_factory=lambda: Sources({}))
    parent: int = field(default_factory=os.getpid)

    @cached_property
    def options(self) -> DeploymentRecord:
        return self.record.deployments[self.deployment]

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.settings.namespace)

    @cached_property
    def stream(self) -> str:
        return self.record.stream(self.keys, self.deployment)


class Exit(IntEnum):
    """Why a replica ended itself; 0 and all other codes mean what they mean for any process."""

    UNHEALTHY = 3
    TIME_LIMIT = 4
    STALLED = 5
    ORPHANED = 6
    OUT_OF_FILES = 7


MEANINGS: dict[int, str] = {
    Exit.UNHEALTHY: "check_health failed",
    Exit.TIME_LIMIT: "a call over its max_execution_s could not be stopped otherwise",
    Exit.STALLED: "stalled: user code ran over QSERVE_STALL_LIMIT_S",
    Exit.ORPHANED: "its supervisor was gone",
    Exit.OUT_OF_FILES: "too many open files",
}
