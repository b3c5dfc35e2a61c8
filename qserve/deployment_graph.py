"""Public import path of the nodes of a graph, and of a handle to one."""

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
