"""From one output node to the plan that computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qserve.calls.handles import RayServeDeploymentHandle
from qserve.define.check import check_inputs
from qserve.graph.containers import replace
from qserve.graph.nodes import (
    ClassNode,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MethodNode,
    bottom_up,
)
from qserve.graph.plan import InputKey, Plan, Slot, Source, Step

Names = Mapping[DAGNode, str]


def compile_plan(output: DAGNode, names: Names, app_name: str) -> Plan:
    """Compile the graph that ends in a node.

    Parameters:
      output: The node whose value answers a request. A class node stands for a call of its
        ``__call__`` with the input.
      names: The name of each deployment.
      app_name: The application that handles in the arguments belong to.

    Raises:
      AssertionError: The graph has two inputs, or one made outside ``with``.
      ValueError: The graph has a cycle.
    """
    if isinstance(output, ClassNode):
        call = Step(names[output], "__call__", (Slot(0),), {}, 1)
        return Plan((call,), {InputKey(): ((0, 0),)}, 0)
    order = bottom_up(output, _called_before)
    check_inputs(order)
    sources: dict[DAGNode, Source] = {}
    steps: list[Step] = []
    feeds: dict[Source, list[tuple[int, int]]] = {}
    for node in order:
        if isinstance(node, InputNode):
            sources[node] = InputKey()
        elif isinstance(node, InputAttributeNode):
            sources[node] = node.get_input_key()
        else:
            arguments = _Arguments(sources, names, app_name)
            number = sources[node] = len(steps)
            steps.append(arguments.step(node))
            for source, slot in arguments.slots.items():
                feeds.setdefault(source, []).append((number, slot))
    frozen = {source: tuple(targets) for source, targets in feeds.items()}
    return Plan(tuple(steps), frozen, sources[output])


def _called_before(node: DAGNode) -> list[DAGNode]:
    """Return what must be known before a node is called; the instances it uses are up already."""
    return [child for child in node.get_all_child_nodes() if not isinstance(child, ClassNode)]


class _Arguments:
    """The arguments of one step, with slots and handles in place of nodes."""

    def __init__(self, sources: Mapping[DAGNode, Source], names: Names, app_name: str) -> None:
        self.slots: dict[Source, int] = {}
        self._sources = sources
        self._names = names
        self._app_name = app_name

    def step(self, node: DAGNode) -> Step:
        args = tuple(self._argument(value) for value in node.get_args())
        kwargs = {name: self._argument(value) for name, value in node.get_kwargs().items()}
        deployment, method = self._called(node)
        return Step(deployment, method, args, kwargs, len(self.slots))

    def _called(self, node: DAGNode) -> tuple[str, str]:
        if isinstance(node, MethodNode):
            return self._names[node.get_class_node()], node.get_method_name()
        assert isinstance(node, FunctionNode), f"{node!r} cannot be called"
        return self._names[node], "__call__"

    def _argument(self, value: Any) -> Any:
        if isinstance(value, DAGNode):
            return self._stand_in(value, nested=False)
        return replace(value, DAGNode, lambda node: self._stand_in(node, nested=True))

    def _stand_in(self, node: DAGNode, nested: bool) -> Any:
        if isinstance(node, ClassNode):
            return RayServeDeploymentHandle(self._names[node], self._app_name)
        source = self._sources[node]
        index = self.slots.setdefault(source, len(self.slots))
        return Slot(index, nested and isinstance(source, int))
