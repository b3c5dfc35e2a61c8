"""The public door to graphs: the input node, and drawing, which is imported on use: no replica draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qserve.graph.nodes import DAGNode, InputAttributeNode, InputNode

if TYPE_CHECKING:
    from qserve.graph.dot import dag_to_dot, plot

__all__ = ["DAGNode", "InputAttributeNode", "InputNode", "dag_to_dot", "plot"]

_DRAWING = {"dag_to_dot": "dag_to_dot", "_dag_to_dot": "dag_to_dot", "plot": "plot"}


def __getattr__(name: str) -> Any:
    if name in _DRAWING:
        from qserve.graph import dot

        return getattr(dot, _DRAWING[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
