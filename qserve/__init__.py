"""qserve: graphs of Python deployments, served over a task queue.

The way of one request, file by file:
``qserve_gateway/invoke`` → ``plane/outgoing`` → ``plane/client`` → ``plane/lua/submit.lua`` →
``qserve_workers/consumer`` → ``plane/transport`` → ``qserve_workers/replica`` → ``engine/step`` →
``graph/advance`` → ``plane/functions`` (commit), and back by the mailbox in ``plane/client`` to ``ref``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qserve.version import __version__

if TYPE_CHECKING:
    from qserve.api import (
        delete,
        get_app_handle,
        get_deployment_handle,
        run,
        shutdown,
        start,
        status,
    )
    from qserve.batching import batch
    from qserve.container import Application, build
    from qserve.context import get_replica_context, get_request_context
    from qserve.dag import InputNode
    from qserve.deployments import Deployment, deployment
    from qserve.drivers import DAGDriver
    from qserve.multiplexing import get_multiplexed_model_id, multiplexed
    from qserve.ref import get
    from qserve.web import ingress

__all__ = [
    # defining
    "Application",
    "DAGDriver",
    "Deployment",
    "InputNode",
    "batch",
    "build",
    "deployment",
    "ingress",
    "multiplexed",
    # running
    "delete",
    "run",
    "shutdown",
    "start",
    "status",
    # calling
    "get",
    "get_app_handle",
    "get_deployment_handle",
    "get_multiplexed_model_id",
    "get_replica_context",
    "get_request_context",
    # about
    "__version__",
]

_HOMES = {
    "Application": "qserve.container",
    "DAGDriver": "qserve.drivers",
    "Deployment": "qserve.deployments",
    "InputNode": "qserve.dag",
    "batch": "qserve.batching",
    "build": "qserve.container",
    "delete": "qserve.api",
    "deployment": "qserve.deployments",
    "get": "qserve.ref",
    "get_app_handle": "qserve.api",
    "get_deployment_handle": "qserve.api",
    "get_replica_context": "qserve.context",
    "get_request_context": "qserve.context",
    "get_multiplexed_model_id": "qserve.multiplexing",
    "ingress": "qserve.web",
    "multiplexed": "qserve.multiplexing",
    "run": "qserve.api",
    "shutdown": "qserve.api",
    "start": "qserve.api",
    "status": "qserve.api",
}


def __getattr__(name: str) -> Any:
    # importing on first use keeps the gateway and the command line free of what they do not need
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'qserve' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value
