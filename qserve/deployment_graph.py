"""The public door to the nodes of a deployment graph, and to the handle of one."""

from __future__ import annotations

from qserve.calls.handles import RayServeDAGHandle
from qserve.graph.nodes import (
    ClassMethodNode,
    ClassNode,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MethodNode,
)

__all__ = [
    "ClassMethodNode",
    "ClassNode",
    "DAGNode",
    "FunctionNode",
    "InputAttributeNode",
    "InputNode",
    "MethodNode",
    "RayServeDAGHandle",
]
