"""``status()``: what is deployed, and how it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from qserve.base.keys import Keys
from qserve.broker.connection import Client
from qserve.broker.registry import Registry
from qserve.deploy.replicas import FAILED, RUNNING, Pool, ReplicaStatus
from qserve.wire.application import ApplicationRecord
from qserve.wire.sealing import Seal


@dataclass(frozen=True)
class DeploymentStatus:
    """One deployment.

    Parameters:
      status: HEALTHY when all its replicas run, UPDATING while they start, UNHEALTHY when they fail.
      replica_states: How many replicas are in which state.
      message: Why it is not healthy; the traceback of a constructor that fails.
    """

    name: str
    status: str
    replica_states: dict[str, int] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class ApplicationStatus:
    """One application.

    Parameters:
      status: RUNNING, DEPLOYING, or UNHEALTHY.
    """

    name: str
    status: str
    route_prefix: str | None
    version: str
    message: str = ""
    deployments: dict[str, DeploymentStatus] = field(default_factory=dict)


@dataclass(frozen=True)
class ServeStatus:
    """Everything on one broker."""

    applications: dict[str, ApplicationStatus] = field(default_factory=dict)


def read_status(client: Client, keys: Keys, seal: Seal) -> ServeStatus:
    """Read the state of every application.

    Raises:
      BrokerUnavailable: The broker does not answer.
    """
    registry = Registry(client, keys, seal)
    found: dict[str, ApplicationStatus] = {}
    for name in sorted(registry.names()):
        versions = registry.versions(name)
        if versions:
            found[name] = _application(versions[0], Pool(client, keys, name).replicas())
    return ServeStatus(found)


def _application(record: ApplicationRecord, replicas: list[ReplicaStatus]) -> ApplicationStatus:
    deployments = {
        name: _deployment(
            name, one.num_replicas, [r for r in replicas if (r.deployment, r.version) == (name, record.version)]
        )
        for name, one in record.deployments.items()
        if one.replicated
    }
    states = {one.status for one in deployments.values()}
    status = "UNHEALTHY" if "UNHEALTHY" in states else "DEPLOYING" if "UPDATING" in states else "RUNNING"
    message = next((one.message for one in deployments.values() if one.message), "")
    return ApplicationStatus(record.name, status, record.route_prefix, record.version, message, deployments)


def _deployment(name: str, wanted: int, replicas: list[ReplicaStatus]) -> DeploymentStatus:
    states: Any = Counter(one.state for one in replicas)
    if states[RUNNING] >= wanted:
        status = "HEALTHY"
    else:
        status = "UNHEALTHY" if states[FAILED] else "UPDATING"
    message = next((one.message for one in replicas if one.state == FAILED), "") if status == "UNHEALTHY" else ""
    return DeploymentStatus(name, status, {state: count for state, count in states.items() if count}, message)
