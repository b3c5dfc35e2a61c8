"""The public door to graphs: the input node, and drawing."""

from __future__ import annotations

from qserve.graph.dot import dag_to_dot, plot
from qserve.graph.nodes import DAGNode, InputAttributeNode, InputNode

__all__ = ["DAGNode", "InputAttributeNode", "InputNode", "dag_to_dot", "plot"]

_dag_to_dot = dag_to_dot
