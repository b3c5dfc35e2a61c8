"""What ``GET /api/serve/applications/`` says, with the keys of Ray Serve."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from qserve.appfile.options import options_to_write
from qserve.base.settings import DEFAULT_HOST, DEFAULT_PORT
from qserve.broker.registry import ACTIVE, NEXT
from qserve.deploy.installation import Installation
from qserve.deploy.status import ApplicationStatusOverview, DeploymentStatusOverview, status_of
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Resources
from qserve.wire.status import RUNNING, STARTING, ReplicaStatus
from qserve_gateway.admin.deploys import Expected


def details_of(installation: Installation, expected: Expected) -> dict[str, Any]:
    """Return the details of everything that is deployed.

    Parameters:
      expected: The last deploy: its applications are shown before they are registered, and with why they failed.

    Raises:
      BrokerUnavailable: The broker does not reply.
    """
    found = status_of(installation)
    applications = {}
    for name, overview in found.applications.items():
        versions = installation.registry.readable(name, ACTIVE, NEXT)
        if versions:
            record, failure = versions[0], expected.failures.get(name, "")
            reports = [
                one
                for one in installation.reports(name).replicas()
                if one.version == record.version and one.state in (STARTING, RUNNING)
            ]
            applications[name] = _application(overview, record, reports, failure)
            if expected.is_running and name in expected.names:
                applications[name]["status"] = "DEPLOYING"  # also in the moment between its promotion and the end
    for name in expected.names:
        if name not in applications and (expected.is_running or name in expected.failures):
            applications[name] = _unregistered(name, expected)
    http = {
        "host": os.environ.get("QSERVE_HOST") or DEFAULT_HOST,
        "port": os.environ.get("QSERVE_PORT") or DEFAULT_PORT,
    }
    return {
        "controller_info": {},
        "proxy_location": "EveryNode",
        "http_options": http,
        "grpc_options": None,
        "proxies": {name: {"node_id": name, "status": status} for name, status in found.proxies.items()},
        "deploy_mode": "MULTI_APP",
        "applications": applications,
        "target_capacity": found.target_capacity,
    }


def _application(
    overview: ApplicationStatusOverview, record: ApplicationRecord, reports: list[ReplicaStatus], failure: str
) -> dict[str, Any]:
    part = record.part
    deployments = {
        name: _deployment(
            name, deployment, record.deployments[name], [one for one in reports if one.deployment == name]
        )
        for name, deployment in overview.deployments.items()
        if name in record.deployments
    }
    return {
        "name": record.name,
        "route_prefix": overview.route_prefix,
        "docs_path": None,
        "status": overview.status,
        "message": failure or overview.message,
        "last_deployed_time_s": overview.last_deployed_time_s,
        "deployed_app_config": part or None,
        "external_scaler_enabled": record.external_scaler,
        "source": "declarative" if part else "imperative",
        "deployments": deployments,
    }


def _unregistered(name: str, expected: Expected) -> dict[str, Any]:
    """Return an application that no version of has been registered."""
    failure = expected.failures.get(name, "")
    return {
        "name": name,
        "route_prefix": None,
        "docs_path": None,
        "status": "DEPLOY_FAILED" if failure else "DEPLOYING",
        "message": failure,
        "last_deployed_time_s": 0.0,
        "deployed_app_config": None,
        "external_scaler_enabled": False,
        "source": "declarative",
        "deployments": {},
    }


def _deployment(
    name: str, found: DeploymentStatusOverview, record: DeploymentRecord, reports: list[ReplicaStatus]
) -> dict[str, Any]:
    return {
        **asdict(found),
        "name": name,
        "deployment_config": {"name": name, **options_to_write(record)},
        "required_resources": _resources(record.resources),
        "replicas": [_replica(one) for one in reports],
    }


def _replica(found: ReplicaStatus) -> dict[str, Any]:
    return {
        "replica_id": found.name,
        "actor_name": found.name,
        "actor_id": None,
        "state": found.state,
        "pid": found.pid,
        "node_id": found.host,
        "node_ip": None,
        "start_time_s": None,
        "worker_id": found.worker or None,
        "log_file_path": None,
    }


def _resources(found: Resources) -> dict[str, float]:
    amounts = {"CPU": 1.0 if found.cpus is None else found.cpus, "GPU": found.gpus, "memory": found.memory}
    return {name: amount for name, amount in (*amounts.items(), *found.other.items()) if amount}
