"""Applications of different kinds, as their stacks see them."""

from __future__ import annotations

from typing import Any

from qserve.stacks.plan import Plan, services_of
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Resources, Scaling


def record(name: str, *deployments: DeploymentRecord, route_prefix: str | None = "/") -> ApplicationRecord:
    """Return an application with these deployments; the last one is its ingress."""
    by_name = {one.name: one for one in deployments}
    return ApplicationRecord(name, "v1", deployments[-1].name, route_prefix, deployments=by_name)


_GPU = Resources(cpus=4, gpus=0.5, memory=1 << 30, labels={"zone": "a"}, other={"licence": 1.0})
_NODES = Resources(
    labels={"zone": "in(a, b)", "kind": "!spot"}, other={"example.com/licence": 1.0, "slot": 2.0}, per_host=1
)
_SCALED = Scaling(min_replicas=0, max_replicas=8, target_ongoing_requests=3.0, downscale_delay_s=60.0)
APPLICATIONS: dict[str, tuple[list[ApplicationRecord], dict[str, Any]]] = {
    "graph": (
        [
            record(
                "default", DeploymentRecord("SpanishResponder", num_replicas=2), DeploymentRecord("LanguageClassifier")
            )
        ],
        {},
    ),
    "gpu": ([record("default", DeploymentRecord("Model", num_replicas=4, grace_s=45.0, resources=_GPU))], {}),
    "nodes": ([record("default", DeploymentRecord("Model", num_replicas=3, resources=_NODES))], {}),
    "autoscaled": (
        [record("default", DeploymentRecord("Model", scaling=_SCALED), DeploymentRecord("Front"))],
        {"target": ("app.yaml",)},
    ),
    "two": (
        [
            record("shop", DeploymentRecord("Model")),
            record("back office", DeploymentRecord("Model"), DeploymentRecord("Front"), route_prefix="/office"),
        ],
        {"app_dir": "src/office"},
    ),
    "no HTTP": ([record("default", DeploymentRecord("Nightly"), route_prefix=None)], {}),
    "environment": (
        [record("default", DeploymentRecord("Model"))],
        {
            "own_environment": {"PRICE": "5$ 'each': \"\u00e4\" $(HOME)", "TOKEN": None},
            "environment": {"QSERVE_LOG_FORMAT": "json"},
            "port": "127.0.0.1:9000",
        },
    ),
}


def plan_for(name: str, *, spreads_gpus: bool = False, **changes: Any) -> Plan:
    """Return the plan of the stack of one of them."""
    records, options = APPLICATIONS[name]
    services = services_of(records, spreads_gpus=spreads_gpus)
    return Plan("shop", services=services, **{"target": ("shop:app",), **options, **changes})
