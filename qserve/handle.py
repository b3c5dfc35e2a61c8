"""Public import path of handles and their results."""

from __future__ import annotations

from qserve.calls.handles import (
    DeploymentHandle,
    HandleOptions,
    RayServeDAGHandle,
    RayServeDeploymentHandle,
    RayServeHandle,
    RayServeSyncHandle,
)
from qserve.calls.ref import Ref
from qserve.calls.responses import DeploymentResponse, DeploymentResponseGenerator, RefTask

__all__ = [
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
    "HandleOptions",
    "RayServeDAGHandle",
    "RayServeDeploymentHandle",
    "RayServeHandle",
    "RayServeSyncHandle",
    "Ref",
    "RefTask",
]
