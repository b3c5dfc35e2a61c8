"""Which replica a process is to be."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from qserve.base.settings import Settings
from qserve.wire.application import ApplicationRecord


@dataclass(frozen=True)
class ReplicaSpec:
    """Which replica a process is to be.

    Parameters:
      target: ``module:node`` to import; "" takes what the record names.
      parent: The supervisor's process id.
    """

    name: str
    record: ApplicationRecord
    deployment: str
    settings: Settings
    target: str = ""
    parent: int = field(default_factory=os.getpid)
