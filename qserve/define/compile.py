"""From a bound root node to an application: named deployments, and plans for their graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qserve.calls.handles import RayServeDAGHandle, RayServeDeploymentHandle
from qserve.define.check import check_drivers, check_function_root, check_prefixes, check_target
from qserve.define.deployments import Deployment
from qserve.define.drivers import driver_arguments, is_driver
from qserve.define.names import assign_names
from qserve.define.plans import compile_plan
from qserve.graph.containers import replace
from qserve.graph.nodes import ClassNode, DAGNode, FunctionNode, MethodNode, bottom_up, check_no_input
from qserve.graph.plan import Plan
from qserve.http.adapter import Adapter

ROOT_GRAPH = ""
"""The name of the graph that answers an application which has only one."""


@dataclass(frozen=True)
class Driver:
    """The HTTP side of an application whose root is a DAGDriver.

    Parameters:
      adapter: As the user gave it; a string is still to be imported.
      routes: The routes in the user's order, or ``None`` for a single graph on every path.
      direct: Graphs that are a class node, by graph name, with the deployment's name: a call by
        handle passes all its arguments to that deployment's ``__call__``, be they none or many.
    """

    adapter: Adapter = None
    routes: tuple[str, ...] | None = None
    direct: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BuiltApplication:
    """What ``compile_application`` makes of a graph.

    Parameters:
      name: The application's name.
      deployments: Children before parents, the root last; nodes in their ``init_args`` and
        ``init_kwargs`` are replaced by handles, and only the root has a route prefix.
      graphs: Plans by name: a route of the driver, ``""`` for an only graph, ``"Driver:0"`` for
        the first graph in the constructor arguments of the deployment ``Driver``.
      ingress: The name of the root's deployment.
      driver: Set when the root is a DAGDriver.
    """

    name: str
    deployments: tuple[Deployment, ...]
    graphs: Mapping[str, Plan]
    ingress: str
    driver: Driver | None = None

    @property
    def route_prefix(self) -> str | None:
        """Where the application answers HTTP requests."""
        return self.deployments[-1].route_prefix


Application = BuiltApplication


def compile_application(root: Any, *, app_name: str = "default") -> BuiltApplication:
    """Compile a bound node and all that it needs; nothing is started.

    Parameters:
      root: A class node (a DAGDriver or the user's own) or a function node.
      app_name: The name that the application will run under.

    Raises:
      TypeError: The root is no node, or a driver's arguments are wrong.
      ValueError: The root needs a driver, names or route prefixes clash, or the graph has a cycle.
      AssertionError: A graph has two inputs, or one made outside ``with``.
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
    return BuiltApplication(app_name, deployments, build.graphs, build.names[root], driver)


class _Build:
    def __init__(self, names: Mapping[DAGNode, str], app_name: str) -> None:
        self.names = names
        self.graphs: dict[str, Plan] = {}
        self._app_name = app_name
        self._graph_of: dict[DAGNode, str] = {}

    def add_graph(self, name: str, output: DAGNode) -> None:
        self.graphs[name] = compile_plan(output, self.names, self._app_name)
        self._graph_of.setdefault(output, name)

    def drive(self, root: DAGNode) -> Driver | None:
        if not isinstance(root, ClassNode) or not is_driver(root.get_body()):
            return None
        outputs, adapter = driver_arguments(root.get_args(), root.get_kwargs())
        routes = _routes(outputs)
        for name, output in routes.items():
            self.add_graph(name, output)
        direct = {name: self.names[output] for name, output in routes.items() if isinstance(output, ClassNode)}
        return Driver(adapter, tuple(routes) if isinstance(outputs, dict) else None, direct)

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
    """Return a driver's graphs by name, refusing what is no graph."""
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
        f"{place} of a DAGDriver needs a node, got {type(node).__name__} {node!r}. Give it what "
        "Class.bind(...), node.method.bind(...) or function.bind(...) returned."
    )
