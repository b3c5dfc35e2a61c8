"""What replicas report, and the status of applications and deployments that follows from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qserve.base.keys import POOL_TTL_MS, Keys
from qserve.broker.connection import Client, broker_errors
from qserve.broker.registry import Registry
from qserve.wire.application import ApplicationRecord

RUNNING, FAILED = "RUNNING", "FAILED"


@dataclass(frozen=True)
class ReplicaStatus:
    """The state that a replica reports.

    Parameters:
      state: RUNNING, or FAILED for the reason in ``message`` (the traceback of user code).
      config: The user_config that it has adopted.
    """

    name: str
    deployment: str
    version: str
    state: str
    pid: int = 0
    host: str = ""
    message: str = ""
    config: str = ""


class ReplicaReports:
    """What the replicas of one application report, on all hosts."""

    def __init__(self, client: Client, keys: Keys, app: str) -> None:
        self._client = client
        self._keys = keys
        self._key = keys.pool(app)

    def report(self, status: ReplicaStatus) -> None:
        """Write the state of one replica."""
        with broker_errors():
            pipe = self._client.pipeline(transaction=True)
            pipe.hset(self._key, status.name, json.dumps(asdict(status)))
            pipe.pexpire(self._key, POOL_TTL_MS)
            pipe.execute()

    def remove(self, name: str) -> None:
        """Remove a replica that is gone."""
        with broker_errors():
            self._client.hdel(self._key, name)

    def take_turn(self, stream: str, name: str, for_s: float) -> bool:
        """Return whether this replica may leave now: one of a deployment at a time, until it has been replaced."""
        with broker_errors():
            return bool(self._client.set(self._keys.leaving_of(stream), name, nx=True, px=int(for_s * 1000)))

    def end_turn(self, stream: str) -> None:
        """Let the next replica leave: the one before has been replaced."""
        with broker_errors():
            self._client.delete(self._keys.leaving_of(stream))

    def replicas(self) -> list[ReplicaStatus]:
        """Return the states of all replicas."""
        with broker_errors():
            found: Any = self._client.hvals(self._key)
        return [ReplicaStatus(**json.loads(one)) for one in found]


@dataclass(frozen=True)
class DeploymentStatus:
    """The status of a deployment.

    Parameters:
      status: HEALTHY if all its replicas run, UPDATING while they start, UNHEALTHY if one has failed.
      replica_states: The number of replicas in each state.
      message: Why it is not healthy: the traceback of a constructor that failed.
    """

    name: str
    status: str
    replica_states: dict[str, int] = field(default_factory=dict)
    message: str = ""


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
    message: str = ""
    deployments: dict[str, DeploymentStatus] = field(default_factory=dict)


@dataclass(frozen=True)
class ServeStatus:
    """The status of all applications on a broker."""

    applications: dict[str, ApplicationStatus] = field(default_factory=dict)


def read_status(client: Client, keys: Keys, registry: Registry) -> ServeStatus:
    """Read the status of every application.

    Raises:
      BrokerUnavailable: The broker does not reply.
    """
    found: dict[str, ApplicationStatus] = {}
    for name in sorted(registry.names()):
        versions = registry.versions(name)
        if versions:
            found[name] = _application(versions[0], ReplicaReports(client, keys, name).replicas())
    return ServeStatus(found)


def _application(record: ApplicationRecord, replicas: Sequence[ReplicaStatus]) -> ApplicationStatus:
    current = [replica for replica in replicas if replica.version == record.version]
    deployments = {
        name: _deployment(name, one.num_replicas, [replica for replica in current if replica.deployment == name])
        for name, one in record.deployments.items()
        if one.replicated
    }
    states = {one.status for one in deployments.values()}
    status = "UNHEALTHY" if "UNHEALTHY" in states else "DEPLOYING" if "UPDATING" in states else "RUNNING"
    message = next((one.message for one in deployments.values() if one.message), "")
    return ApplicationStatus(record.name, status, record.route_prefix, record.version, message, deployments)


def _deployment(name: str, expected: int, replicas: Sequence[ReplicaStatus]) -> DeploymentStatus:
    states = Counter(replica.state for replica in replicas)
    if states[RUNNING] >= expected:
        return DeploymentStatus(name, "HEALTHY", dict(states))
    message = next((replica.message for replica in replicas if replica.state == FAILED), "")
    return DeploymentStatus(name, "UNHEALTHY" if states[FAILED] else "UPDATING", dict(states), message)
