"""Public import path of the input node and of drawing, which is imported on first use because no replica draws."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qserve.graph.nodes import DAGNode, InputAttributeNode, InputNode

if TYPE_CHECKING:
    from qserve.drawing.dot import dag_to_dot, plot

__all__ = ["DAGNode", "InputAttributeNode", "InputNode", "dag_to_dot", "plot"]

_DRAWING = ("dag_to_dot", "_dag_to_dot", "plot")


def __getattr__(name: str) -> Any:
    if name not in _DRAWING:
        raise AttributeError(f"module 'qserve.dag' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module("qserve.drawing.dot"), name.lstrip("_"))
    return value
