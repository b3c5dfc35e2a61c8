"""The public door to the nodes of a deployment graph, and to the handle of one."""

from __future__ import annotations

from qserve.graph.nodes import (
    ClassMethodNode,
    ClassNode,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MethodNode,
)
from qserve.handle import RayServeDAGHandle

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
