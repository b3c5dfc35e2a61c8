"""Which replica a process is to be."""

from __future__ import annotations

from dataclasses import dataclass

from qserve.registry import ApplicationRecord
from qserve.settings import Settings


@dataclass(frozen=True)
class ReplicaSpec:
    """Which replica a process is to be.

    Parameters:
      target: ``module:node`` to import; "" takes what the record names.
    """

    name: str
    record: ApplicationRecord
    deployment: str
    settings: Settings
    target: str = ""
