"""Another door to the input node, where programs written for Ray look for it."""

from __future__ import annotations

from qserve.graph.nodes import InputAttributeNode, InputNode

__all__ = ["InputAttributeNode", "InputNode"]
