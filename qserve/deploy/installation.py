"""One installation of qserve on a broker: what its replicas report, and the status that follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qserve.base.clock import clock
from qserve.base.keys import POOL_TTL_MS, Keys
from qserve.base.settings import Settings
from qserve.broker.connection import Client, broker_errors, connect, without_strangers
from qserve.broker.registry import NEXT, Registry
from qserve.exceptions import WrongType
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.replies import each, warn_once
from qserve.wire.sealing import Seal
from qserve.wire.status import FAILED, RUNNING, STARTING, WAITING, ReplicaStatus

_WAITING_FOR_MS = 10_000
"""How long a report of WAITING counts; its supervisor repeats it every second."""


class ReplicaReports:
    """What the replicas of one application report, on all hosts."""

    def __init__(self, client: Client, keys: Keys, app: str) -> None:
        self._client = client
        self._keys = keys
        self._key = keys.pool(app)

    def report(self, status: ReplicaStatus) -> None:
        """Store a report; a key that was overwritten with something else is replaced."""

        def store() -> None:
            pipe = self._client.pipeline(transaction=True)
            pipe.hset(self._key, status.name, status.encode())
            pipe.pexpire(self._key, POOL_TTL_MS)
            pipe.execute()

        with broker_errors():
            without_strangers(self._client, store, self._key)

    @broker_errors()
    def remove(self, name: str) -> None:
        self._client.hdel(self._key, name)

    @broker_errors()
    def take_turn(self, stream: str, name: str, for_s: float) -> bool:
        """Return whether this replica may leave now: one of a deployment at a time, until it has been replaced."""
        return bool(self._client.set(self._keys.leaving_of(stream), name, nx=True, px=int(for_s * 1000)))

    @broker_errors()
    def end_turn(self, stream: str) -> None:
        """Let the next replica leave: the one before has been replaced."""
        self._client.delete(self._keys.leaving_of(stream))

    def replicas(self) -> list[ReplicaStatus]:
        """Return the reports that can be read; another one is named once in the log."""
        try:
            with broker_errors():
                found: Any = self._client.hvals(self._key)
        except WrongType as error:
            warn_once(f"no replica's report can be read: {error}")
            return []
        now_ms = clock.judge_ms()
        # what a supervisor that is gone has left behind does not count
        oldest_ms = {WAITING: now_ms - _WAITING_FOR_MS, STARTING: now_ms}
        reported = each(found, ReplicaStatus.decode)
        return [one for one in reported if one.at_ms >= oldest_ms.get(one.state, 0.0)]


@dataclass(frozen=True)
class DeploymentStatus:
    """The status of a deployment.

    Parameters:
      status: HEALTHY if all its replicas run, UPDATING while they start, UNHEALTHY if one has failed or no worker has
        any.
      replica_states: The number of replicas in each state.
      message: Why it is not healthy: the traceback of a constructor that failed, or which code the workers have that
        wait for another version.
    """

    name: str
    status: str
    replica_states: dict[str, int]
    message: str


@dataclass(frozen=True)
class ApplicationStatus:
    """The status of an application.

    Parameters:
      status: RUNNING, DEPLOYING or UNHEALTHY.
    """

    name: str
    status: str
    route_prefix: str | None
    version: str
    message: str
    deployments: dict[str, DeploymentStatus]


@dataclass(frozen=True)
class ServeStatus:
    """The status of all applications on a broker."""

    applications: dict[str, ApplicationStatus]


class Installation:
    """A client of the broker, the key names and signatures of the installation, and its registry.

    Parameters:
      settings: Name the broker, the namespace and the secret key.
      client: An open client of that broker; by default a new one, which connects when it is first used.

    Raises:
      QserveException: No broker is set, or its address is not valid.
    """

    def __init__(self, settings: Settings, client: Client | None = None) -> None:
        self.settings = settings
        self.client = connect(settings.named_broker) if client is None else client
        self.keys = Keys(settings.namespace)
        self.seal = Seal(settings.keyring)
        self.registry = Registry(self.client, self.keys, self.seal)

    def reports(self, app: str) -> ReplicaReports:
        """Return what the replicas of an application report."""
        return ReplicaReports(self.client, self.keys, app)

    def status(self) -> ServeStatus:
        """Read the status of every application.

        Raises:
          BrokerUnavailable: The broker does not reply.
        """
        found = {name: self.registry.readable(name, "active", "next") for name in sorted(self.registry.names())}
        return ServeStatus({name: self._status_of(versions[0]) for name, versions in found.items() if versions})

    def _status_of(self, record: ApplicationRecord) -> ApplicationStatus:
        current = [replica for replica in self.reports(record.name).replicas() if replica.version == record.version]
        deployments = {
            name: _deployment_status(wanted, current, is_active=record.place != NEXT)
            for name, wanted in record.deployments.items()
            if wanted.replicated
        }
        found = {deployment.status for deployment in deployments.values()}
        status = "UNHEALTHY" if "UNHEALTHY" in found else "DEPLOYING" if "UPDATING" in found else "RUNNING"
        message = next((deployment.message for deployment in deployments.values() if deployment.message), "")
        return ApplicationStatus(record.name, status, record.route_prefix, record.version, message, deployments)


def _deployment_status(
    wanted: DeploymentRecord, reported: Sequence[ReplicaStatus], is_active: bool
) -> DeploymentStatus:
    replicas = [replica for replica in reported if replica.deployment == wanted.name]
    states = Counter(replica.state for replica in replicas)
    waiting = waiting_workers(replicas)
    if states[RUNNING] >= wanted.num_replicas:
        return DeploymentStatus(wanted.name, "HEALTHY", dict(states), waiting)
    if not replicas:
        status = "UNHEALTHY" if is_active else "UPDATING"
        return DeploymentStatus(wanted.name, status, {}, "no worker runs a replica of it: start `qserve worker`")
    message = next((replica.message for replica in replicas if replica.state == FAILED), waiting)
    return DeploymentStatus(wanted.name, "UNHEALTHY" if states[FAILED] else "UPDATING", dict(states), message)


def waiting_workers(reported: Sequence[ReplicaStatus]) -> str:
    """Say which workers do not have a version's code, a line for each."""
    found = [
        f"the worker on {one.host} (process {one.pid}) waits: {one.message}" for one in reported if one.state == WAITING
    ]
    return "\n".join(dict.fromkeys(found))
