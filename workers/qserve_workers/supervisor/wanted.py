"""Which replicas a supervisor is to run, and when it may try again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qserve.wire.application import ApplicationRecord


@dataclass(frozen=True)
class Scope:
    """What one supervisor runs.

    Parameters:
      app: The application; None for all that are registered.
      deployment: One deployment; None for all of them.
      replicas: Replicas on this host instead of the number in the deployment's options.
      target: ``module:node`` to import instead of what was deployed.
    """

    app: str | None = None
    deployment: str | None = None
    replicas: int | None = None
    target: str = ""

    def wanted(self, record: ApplicationRecord) -> Iterator[tuple[str, int]]:
        """The deployments of a version to run here, each with its number of replicas."""
        if self.app not in (None, record.name):
            return
        for name, one in record.deployments.items():
            if one.replicated and self.deployment in (None, name):
                yield name, one.num_replicas if self.replicas is None else self.replicas


@dataclass
class Backoff:
    """When a deployment whose replicas die early may be tried again: 0.1, 0.2, 0.4 ... 30 s."""

    failures: int = 0
    next_try: float = 0.0

    def note(self, failed: bool, now: float) -> None:
        """Take one end of a replica into account."""
        self.failures = self.failures + 1 if failed else 0
        self.next_try = now + min(30.0, 0.1 * 2 ** min(self.failures - 1, 9)) if failed else now
