"""qserve: graphs of Python deployments, served over a task queue. The root holds the public imports and nothing else.

It may import every room of qserve.
Open first: api.py, then docs/architecture.md, which has the map of the rooms and follows one request through them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qserve.calls.ref import current

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
    from qserve.base.context import get_replica_context, get_request_context
    from qserve.calls.responses import get
    from qserve.dag import InputNode
    from qserve.define.application import Application, build
    from qserve.define.batching import batch
    from qserve.define.deployments import Deployment, deployment
    from qserve.define.multiplexing import get_multiplexed_model_id, multiplexed
    from qserve.drivers import DAGDriver
    from qserve.web.ingress import ingress

__version__ = "0.1.0"

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
    "Application": "qserve.define.application",
    "DAGDriver": "qserve.drivers",
    "Deployment": "qserve.define.deployments",
    "InputNode": "qserve.dag",
    "batch": "qserve.define.batching",
    "build": "qserve.define.application",
    "delete": "qserve.api",
    "deployment": "qserve.define.deployments",
    "get": "qserve.calls.responses",
    "get_app_handle": "qserve.api",
    "get_deployment_handle": "qserve.api",
    "get_replica_context": "qserve.base.context",
    "get_request_context": "qserve.base.context",
    "get_multiplexed_model_id": "qserve.define.multiplexing",
    "ingress": "qserve.web.ingress",
    "multiplexed": "qserve.define.multiplexing",
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


# a handle may come by pickle to a program that has not run anything yet
current.connect_with(lambda: import_module("qserve.api").connect())
