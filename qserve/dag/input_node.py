"""Import path of the input node in programs written for Ray."""

from __future__ import annotations

from qserve.graph.nodes import InputAttributeNode, InputNode

__all__ = ["InputAttributeNode", "InputNode"]
