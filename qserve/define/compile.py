"""Compile a bound root node into an application: named deployments, and a plan for each graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qserve.calls.handles import RayServeDAGHandle, RayServeDeploymentHandle
from qserve.define.check import check_drivers, check_function_root, check_inputs, check_prefixes, check_target
from qserve.define.deployments import Deployment
from qserve.define.drivers import driver_arguments, is_driver
from qserve.graph.containers import replace
from qserve.graph.nodes import (
    ClassNode,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MethodNode,
    bottom_up,
    check_no_input,
    own_name,
)
from qserve.graph.plan import InputKey, Plan, Slot, Source, Step
from qserve.http.adapter import AdapterLike

Names = Mapping[DAGNode, str]

ROOT_GRAPH = ""
"""The name of the graph in an application with a single graph."""


@dataclass(frozen=True)
class CompiledDriver:
    """The HTTP side of an application whose root is a DAGDriver.

    Parameters:
      adapter: As the user gave it; a string is not imported yet.
      routes: The routes in the user's order, or ``None`` for a single graph on every path.
      direct: The deployment's name for each graph that is a class node: a call by handle passes all its arguments to
        the ``__call__`` of that deployment.
    """

    adapter: AdapterLike = None
    routes: tuple[str, ...] | None = None
    direct: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CompiledApplication:
    """The result of ``compile_application``.

    Parameters:
      deployments: Children before parents, the root last. Nodes in their ``init_args`` and ``init_kwargs`` are replaced
        by handles, and only the root has a route prefix.
      graphs: Plans by name: a route of the driver, ``""`` for a single graph, ``"Driver:0"`` for the first graph in
        the constructor arguments of the deployment ``Driver``.
      ingress: The name of the root's deployment.
      driver: Set when the root is a DAGDriver.
    """

    name: str
    deployments: tuple[Deployment, ...]
    graphs: Mapping[str, Plan]
    ingress: str
    driver: CompiledDriver | None = None

    @property
    def route_prefix(self) -> str | None:
        """The path under which the application answers HTTP requests."""
        return self.deployments[-1].route_prefix


def compile_application(root: Any, *, app_name: str = "default") -> CompiledApplication:
    """Compile a bound node and all that it needs; nothing is started.

    Parameters:
      root: A class node (a DAGDriver or the user's own) or a function node.
      app_name: The name of the application.

    Raises:
      TypeError: The root is not a node, or a driver's arguments are wrong.
      ValueError: The root needs a driver, names or route prefixes clash, or the graph has a cycle.
      AssertionError: A graph has two inputs, or one that was created outside ``with``.
    """
    check_target(root)
    order = bottom_up(root)
    check_function_root(root, order)
    check_prefixes(root, order)
    check_drivers(root, order)
    build = _Build(assign_names(order), app_name)
    driver = build.drive(root)
    if isinstance(root, FunctionNode) and _is_bound(root):
        build.add_graph(ROOT_GRAPH, root)
    deployments = tuple(
        build.deployment(node, node is root) for node in order if isinstance(node, ClassNode | FunctionNode)
    )
    return CompiledApplication(app_name, deployments, build.graphs, build.names[root], driver)


class _Build:
    def __init__(self, names: Mapping[DAGNode, str], app_name: str) -> None:
        self.names = names
        self.graphs: dict[str, Plan] = {}
        self._app_name = app_name
        self._graph_of: dict[DAGNode, str] = {}

    def add_graph(self, name: str, output: DAGNode) -> None:
        self.graphs[name] = compile_plan(output, self.names, self._app_name)
        self._graph_of.setdefault(output, name)

    def drive(self, root: DAGNode) -> CompiledDriver | None:
        if not isinstance(root, ClassNode) or not is_driver(root.get_body()):
            return None
        outputs, adapter = driver_arguments(root.get_args(), root.get_kwargs())
        routes = _routes(outputs)
        for name, output in routes.items():
            self.add_graph(name, output)
        direct = {name: self.names[output] for name, output in routes.items() if isinstance(output, ClassNode)}
        return CompiledDriver(adapter, tuple(routes) if isinstance(outputs, dict) else None, direct)

    def deployment(self, node: ClassNode | FunctionNode, is_root: bool) -> Deployment:
        options = node.get_options()
        args, kwargs = self._constructor(node) if isinstance(node, ClassNode) else ((), {})
        return Deployment(
            node.get_body(),
            options.merged(
                name=self.names[node],
                route_prefix=(options.route_prefix or "/") if is_root else None,
                init_args=args,
                init_kwargs=kwargs,
            ),
        )

    def _constructor(self, node: ClassNode) -> tuple[tuple[Any, ...], dict[str, Any]]:
        check_no_input(node)
        graphs: list[DAGNode] = []

        def stand_in(child: DAGNode) -> Any:
            return self._handle(node, child, graphs)

        args = tuple(replace(value, DAGNode, stand_in) for value in node.get_args())
        kwargs = {name: replace(value, DAGNode, stand_in) for name, value in node.get_kwargs().items()}
        return args, kwargs

    def _handle(self, owner: ClassNode, child: DAGNode, graphs: list[DAGNode]) -> Any:
        if isinstance(child, ClassNode):
            return RayServeDeploymentHandle(self.names[child], self._app_name)
        if child not in self._graph_of:
            if isinstance(child, FunctionNode) and not _is_bound(child):
                return RayServeDeploymentHandle(self.names[child], self._app_name)
            self.add_graph(f"{self.names[owner]}:{len(graphs)}", child)
            graphs.append(child)
        return RayServeDAGHandle(self._graph_of[child], self._app_name)


def _is_bound(node: FunctionNode) -> bool:
    return bool(node.get_args() or node.get_kwargs())


def _routes(outputs: Any) -> dict[str, DAGNode]:
    """Return a driver's graphs by name, after checking that they are graphs."""
    if not isinstance(outputs, dict):
        return {ROOT_GRAPH: _output(outputs, "DAGDriver.bind(graph)")}
    if not outputs:
        raise ValueError("DAGDriver.bind({}) serves nothing. Write DAGDriver.bind({'/a': node}).")
    for route in outputs:
        if not isinstance(route, str) or not route.startswith("/"):
            raise ValueError(
                f"a route of DAGDriver.bind({{route: node}}) must be a string that starts with '/', got {route!r}"
            )
    return {route: _output(node, f"the route {route!r}") for route, node in outputs.items()}


def _output(node: Any, place: str) -> DAGNode:
    if isinstance(node, ClassNode | FunctionNode | MethodNode):
        return node
    raise TypeError(
        f"{place} of a DAGDriver needs a node, got {type(node).__name__} {node!r}. Give it the result of "
        "Class.bind(...), node.method.bind(...) or function.bind(...)."
    )


def compile_plan(output: DAGNode, names: Names, app_name: str) -> Plan:
    """Compile the graph that ends in a node.

    Parameters:
      output: The node whose value is the answer. A class node stands for a call of its ``__call__`` with the input.
      names: The name of each deployment.
      app_name: The application of the handles in the arguments.

    Raises:
      AssertionError: The graph has two inputs, or one that was created outside ``with``.
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
    """Return the nodes that run before this one; the instances that it uses are running already."""
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


class Numbering:
    """Makes unique names: a word, then ``word_1``, ``word_2``, and never one that is ``taken``."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._used: dict[str, int] = {}

    def skip(self, word: str) -> None:
        """Skip the next number of the word."""
        self._used[word] = self._used.get(word, 0) + 1

    def take(self, word: str) -> str:
        """Return the next free name made from the word."""
        while True:
            number = self._used.get(word, 0)
            self._used[word] = number + 1
            name = f"{word}_{number}" if number else word
            if name not in self._taken:
                self._taken.add(name)
                return name


def assign_names(nodes: Iterable[DAGNode]) -> dict[DAGNode, str]:
    """Name each class and function node: by its option, or else by its class or function and a number.

    Parameters:
      nodes: The graph's nodes, bottom-up; numbers follow this order.

    Raises:
      ValueError: Two nodes have the same name option.
    """
    named = [node for node in nodes if isinstance(node, ClassNode | FunctionNode)]
    chosen = _chosen_names(named)
    numbering = Numbering(chosen.values())
    names: dict[DAGNode, str] = {}
    for node in named:
        word = own_name(node.get_body())
        if node in chosen:
            # a chosen name counts as well: the second Model is Model_1, whatever the first is called
            numbering.skip(word)
            names[node] = chosen[node]
        else:
            names[node] = numbering.take(word)
    return names


def _chosen_names(nodes: list[ClassNode | FunctionNode]) -> Mapping[DAGNode, str]:
    chosen: dict[DAGNode, str] = {}
    owners: dict[str, ClassNode | FunctionNode] = {}
    for node in nodes:
        name = node.get_options().name
        if name is None:
            continue
        if name in owners:
            first, second = (own_name(owner.get_body()) for owner in (owners[name], node))
            raise ValueError(
                f"two deployments of one application are named {name!r}: a bound {first!r} and a "
                f"bound {second!r}. Give one of them another name: "
                f"{second}.options(name=...).bind(...), or bind it once and use that node twice."
            )
        owners[name] = node
        chosen[node] = name
    return chosen
