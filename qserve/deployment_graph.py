"""Public import path of the nodes of a graph, and of a handle to one."""

from __future__ import annotations

from qserve.calls.handles import RayServeDAGHandle as RayServeDAGHandle
from qserve.graph.nodes import ClassMethodNode as ClassMethodNode
from qserve.graph.nodes import ClassNode as ClassNode
from qserve.graph.nodes import DAGNode as DAGNode
from qserve.graph.nodes import FunctionNode as FunctionNode
from qserve.graph.nodes import InputAttributeNode as InputAttributeNode
from qserve.graph.nodes import InputNode as InputNode
from qserve.graph.nodes import MethodNode as MethodNode
