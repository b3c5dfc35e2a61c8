"""Compile a bound root node into an application: named deployments, and a plan for each graph."""

from __future__ import annotations

import inspect
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qserve.calls.handles import DeploymentHandle, GraphHandle, RayServeDAGHandle, RayServeDeploymentHandle
from qserve.define.deployments import Deployment
from qserve.define.drivers import driver_arguments, gateway_adapter, graphs_of, is_driver
from qserve.graph.containers import replace
from qserve.graph.nodes import (
    ClassNode,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MethodNode,
    UnboundMethod,
    bottom_up,
    check_no_input,
    own_name,
    was_entered,
)
from qserve.graph.plan import InputKey, Plan, Slot, Source, Step
from qserve.http.adapter import AdapterLike
from qserve.wire.application import DriverRecord
from qserve.wire.moves import INPUTS_LIMIT, STEPS_LIMIT


@dataclass(frozen=True)
class CompiledApplication:
    """The result of ``compile_application``.

    Parameters:
      deployments: Children before parents, the root last. Nodes in their ``init_args`` and ``init_kwargs`` are replaced
        by handles, and only the root has a route prefix.
      graphs: Plans by name: a route of the driver, ``""`` for a single graph, ``"Driver:0"`` for the first graph in
        the constructor arguments of the deployment ``Driver``.
      driver: Set when the root is a DAGDriver.
      adapter: The driver's HTTP adapter as the user gave it; a string is not imported yet.
      handles: The deployments whose handles a deployment was bound to, by its name.
    """

    name: str
    deployments: tuple[Deployment, ...]
    graphs: Mapping[str, Plan]
    driver: DriverRecord | None = None
    adapter: AdapterLike = None
    handles: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def ingress(self) -> Deployment:
        """The root's deployment; its route prefix and its timeout are those of the application."""
        return self.deployments[-1]


def compile_application(root: Any, *, app_name: str = "default", only: str = "") -> CompiledApplication:
    """Compile a bound node and all that it needs; nothing is started.

    Parameters:
      root: A class node (a DAGDriver or the user's own) or a function node.
      app_name: The name of the application.
      only: The deployment that is wanted, beside the root; "" for all. A replica that compiled all others, which it
        never uses, would take the longer the more there are.

    Raises:
      TypeError: The root is not a node, or something was bound to arguments that it does not take.
      ValueError: The root needs a driver, names or route prefixes clash, or the graph has a cycle.
      AssertionError: A graph has two inputs, or one that was created outside ``with``.
    """
    _check_target(root)
    order = bottom_up(root)
    _check_below(root, order)
    names = assign_names(order)
    compiler = Compiler(names, app_name, root.get_options().use_new_handle_api)
    wanted = {root, *(node for node, name in names.items() if name == only)} if only in names.values() else names
    driver, adapter = None, None
    if is_driver(root.get_body()):
        dags, adapter = driver_arguments(root.get_args(), root.get_kwargs())
        driver = compiler.drive(dags, adapter)
    elif isinstance(root, FunctionNode) and _is_bound(root):
        compiler.add_graph("", root)
    deployments = []
    for node in names:
        if node in wanted:
            deployments.append(compiler.deployment(node, node is root))
        elif isinstance(node, ClassNode) and node.get_all_child_nodes():
            compiler.constructor(node)  # for the graphs in its arguments, which others may share
    handles = {user: tuple(dict.fromkeys(children)) for user, children in compiler.handles.items()}
    return CompiledApplication(app_name, tuple(deployments), compiler.graphs, driver, adapter, handles)


def _makes_generator(output: DAGNode) -> bool:
    """Return whether the last step of a graph is a generator."""
    if isinstance(output, MethodNode):
        body: Any = getattr(output.get_class_node().get_body(), output.get_method_name(), None)
    elif isinstance(output, ClassNode):
        body = getattr(output.get_body(), "__call__", None)  # noqa: B004
    else:
        body = output.get_body() if isinstance(output, FunctionNode) else None
    body = inspect.unwrap(body) if callable(body) else body
    return inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body)


class Compiler:
    """Compiles the nodes of one application, whose deployments have these names.

    Parameters:
      has_new_handles: Whether its handles take one await.
    """

    def __init__(self, names: Mapping[DAGNode, str], app_name: str, has_new_handles: bool = False) -> None:
        self.names = names
        self._has_new_handles = has_new_handles
        self.graphs: dict[str, Plan] = {}
        self.handles: defaultdict[str, list[str]] = defaultdict(list)
        self._app_name = app_name
        self._graph_of: dict[DAGNode, str] = {}

    def add_graph(self, name: str, output: DAGNode) -> None:
        self.graphs[name] = self.plan(output)
        self._graph_of.setdefault(output, name)

    def drive(self, dags: Any, adapter: AdapterLike) -> DriverRecord:
        routes = graphs_of(dags)
        for name, output in routes.items():
            self.add_graph(name, output)
        direct = {name: self.names[output] for name, output in routes.items() if isinstance(output, ClassNode)}
        streams = tuple(name for name, output in routes.items() if _makes_generator(output))
        names = tuple(routes) if isinstance(dags, dict) else None
        return DriverRecord(gateway_adapter(adapter), names, direct, streams)

    def deployment(self, node: ClassNode | FunctionNode, is_root: bool) -> Deployment:
        options = node.get_options()
        if isinstance(node, ClassNode) and not is_driver(node.get_body()):
            _check_arguments(node, node.get_body(), node.get_label())
        args, kwargs = self.constructor(node) if isinstance(node, ClassNode) else ((), {})
        prefix = (options.route_prefix or "/") if is_root else None
        config = options.merged(name=self.names[node], route_prefix=prefix, init_args=args, init_kwargs=kwargs)
        return Deployment(node.get_body(), config)

    def constructor(self, node: ClassNode) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a constructor, with handles in the place of nodes."""
        check_no_input(node)
        numbers = itertools.count()

        def stand_in(child: DAGNode) -> Any:
            if isinstance(child, ClassNode):
                return self._handle(child, node)
            if child not in self._graph_of:
                if isinstance(child, FunctionNode) and not _is_bound(child):
                    return self._handle(child, node)
                self.add_graph(f"{self.names[node]}:{next(numbers)}", child)
            kind = GraphHandle if self._has_new_handles else RayServeDAGHandle
            return kind(self._graph_of[child], self._app_name)

        args, kwargs = replace((node.get_args(), node.get_kwargs()), DAGNode, stand_in)
        return args, kwargs

    def _handle(self, node: DAGNode, user: DAGNode) -> RayServeDeploymentHandle | DeploymentHandle:
        if not (isinstance(user, ClassNode) and is_driver(user.get_body())):  # the gateway starts a driver's graphs
            owner = user.get_class_node() if isinstance(user, MethodNode) else user
            self.handles[self.names[owner]].append(self.names[node])
        kind = DeploymentHandle if self._has_new_handles else RayServeDeploymentHandle
        return kind(self.names[node], self._app_name)

    def plan(self, output: DAGNode) -> Plan:
        """Compile the graph that ends in a node. A class node is a call of its ``__call__`` with the input."""
        if isinstance(output, ClassNode):
            call = Step(self.names[output], "__call__", (Slot(0),), {}, 1)
            return Plan((call,), {InputKey(): ((0, 0),)}, 0)
        order = bottom_up(output, _called_before)
        _check_inputs(order)
        sources: dict[DAGNode, Source] = {}
        steps: list[Step] = []
        feeds: defaultdict[Source, list[tuple[int, int]]] = defaultdict(list)
        for node in order:
            if isinstance(node, InputNode):
                sources[node] = InputKey()
            elif isinstance(node, InputAttributeNode):
                sources[node] = node.get_input_key()
            else:
                slots: dict[Source, int] = {}
                steps.append(self._step(node, sources, slots))
                self._check_size(steps)
                number = sources[node] = len(steps) - 1
                for source, slot in slots.items():
                    feeds[source].append((number, slot))
        return Plan(tuple(steps), {source: tuple(targets) for source, targets in feeds.items()}, sources[output])

    def _step(self, node: DAGNode, sources: Mapping[DAGNode, Source], slots: dict[Source, int]) -> Step:
        """Return the call of a node, with slots and handles in place of its arguments; fills ``slots``."""
        _check_step(node)

        def stand_in(child: DAGNode, is_nested: bool = True) -> Any:
            if isinstance(child, ClassNode):
                return self._handle(child, node)
            source = sources[child]
            return Slot(slots.setdefault(source, len(slots)), is_nested and isinstance(source, int))

        def argument(value: Any) -> Any:
            return stand_in(value, False) if isinstance(value, DAGNode) else replace(value, DAGNode, stand_in)

        args = tuple(map(argument, node.get_args()))
        kwargs = {name: argument(value) for name, value in node.get_kwargs().items()}
        if isinstance(node, MethodNode):
            return Step(self.names[node.get_class_node()], node.get_method_name(), args, kwargs, len(slots))
        return Step(self.names[node], "__call__", args, kwargs, len(slots))

    def _check_size(self, steps: Sequence[Step]) -> None:
        step = steps[-1]
        if step.needs > INPUTS_LIMIT:
            raise ValueError(
                f"a call of {step.deployment!r} in the graph takes {step.needs} values of the request or of other"
                f" nodes; the limit is {INPUTS_LIMIT}. Let other nodes collect some of them in lists."
            )
        if len(steps) > STEPS_LIMIT:
            raise ValueError(
                f"the graph has more than {STEPS_LIMIT} calls, which is the limit; the next one is of"
                f" {step.deployment!r}. Let a deployment make some of them with a handle."
            )


def _is_bound(node: FunctionNode) -> bool:
    return bool(node.get_args() or node.get_kwargs())


def _called_before(node: DAGNode) -> list[DAGNode]:
    """Return the nodes that run before this one; the instances that it uses are running already."""
    return [child for child in node.get_all_child_nodes() if not isinstance(child, ClassNode)]


class Numbering:
    """Makes unique names: a word, then ``word_1``, ``word_2``, and never one that is ``taken``."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._used = Counter[str]()

    def skip(self, word: str) -> None:
        """Skip the next number of the word."""
        self._used[word] += 1

    def take(self, word: str) -> str:
        """Return the next free name made from the word."""
        while True:
            number = self._used[word]
            self._used[word] += 1
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
    owners: dict[str, ClassNode | FunctionNode] = {}
    for node in named:
        chosen = node.get_options().name
        if chosen is not None and owners.setdefault(chosen, node) is not node:
            first, second = own_name(owners[chosen].get_body()), own_name(node.get_body())
            raise ValueError(
                f"two deployments of one application are named {chosen!r}: a bound {first!r} and a bound {second!r}."
                f" Give one of them another name: {second}.options(name=...).bind(...), or bind it once and use that"
                " node twice."
            )
    numbering = Numbering(owners)
    names: dict[DAGNode, str] = {}
    for node in named:
        word, chosen = own_name(node.get_body()), node.get_options().name
        if chosen is None:
            names[node] = numbering.take(word)
        else:
            # a chosen name counts as well: the second Model is Model_1 even if the first has another name
            numbering.skip(word)
            names[node] = chosen
    return names


# -- what is refused -------------------------------------------------------------------------------


def _check_target(target: Any) -> None:
    if isinstance(target, ClassNode | FunctionNode):
        return
    if isinstance(target, DAGNode):
        raise ValueError(
            f"Invalid DAGNode type as entry to serve.run(), type: {type(target).__name__}, accepted: ClassNode,"
            " FunctionNode; please provide a driver class and bind it as entrypoint to your Serve DAG. For"
            f" {target.get_label()!r} write serve.run(DAGDriver.bind(node))."
        )
    raise TypeError(
        "Expected a ClassNode, FunctionNode, or Application as target. Got unexpected type "
        f"{type(target).__name__}.{_advice(target)}"
    )


def _advice(target: Any) -> str:
    if isinstance(target, Deployment):
        return f" Write {target.name}.bind(...)."
    if isinstance(target, UnboundMethod):
        return f" {target!r} is not bound yet: call its .bind(...), and give the result to a DAGDriver."
    if inspect.isclass(target) or inspect.isroutine(target):
        name, is_class = target.__name__, inspect.isclass(target)
        what = "class" if is_class else "coroutine function" if inspect.iscoroutinefunction(target) else "function"
        builds = "" if what != "function" else f" If it makes the node, call it: node = {name}(...)."
        return f" {name!r} is a {what}: decorate it with @qserve.deployment and write {name}.bind(...).{builds}"
    if inspect.iscoroutine(target):
        return f" {target.__name__!r} is a coroutine function that was called: write an ordinary function."
    if callable(getattr(target, "add_url_rule", None)) or callable(getattr(target, "add_route", None)):
        return (
            " Put @qserve.ingress(...) with this web application on a class that is a deployment, and bind the class."
        )
    if isinstance(target, list | tuple | dict):
        return " For several graphs write DAGDriver.bind({route: node, ...})."
    name = type(target).__name__
    if type(target).__module__ == "builtins":
        return ""
    return f" An instance is not a node: decorate the class with @qserve.deployment and write {name}.bind(...)."


def _check_below(root: DAGNode, order: Iterable[DAGNode]) -> None:
    """Refuse a function that needs other deployments, and DAGDrivers and route prefixes below the root."""
    label = root.get_label()
    for node in order:
        if node is root or not isinstance(node, ClassNode | FunctionNode | MethodNode):
            continue
        if isinstance(root, FunctionNode):
            raise ValueError(
                "The ingress deployment to your application cannot be a function if there are multiple "
                f"deployments: {label!r} needs {node.get_label()!r}. Please provide a driver class: write "
                f"DAGDriver.bind(node) with the node of {label!r}, so that it is bound to a DAGDriver."
            )
        if isinstance(node, MethodNode):
            continue
        prefix = node.get_options().route_prefix
        if prefix is not None:
            raise ValueError(
                "Route prefix is only configurable on the ingress deployment. "
                f"{node.get_label()!r} has route_prefix={prefix!r}; set it on {label!r} instead."
            )
        if is_driver(node.get_body()):
            raise ValueError(
                f"{node.get_label()!r} can only be the root of an application, and {label!r} is bound to it. Bind the"
                " graph itself instead: the argument of DAGDriver.bind(...)."
            )


def _check_step(node: DAGNode) -> None:
    """Raise TypeError if a function or method cannot be called with the arguments that it was bound to."""
    if isinstance(node, FunctionNode):
        _check_arguments(node, node.get_body(), node.get_label())
    elif isinstance(node, MethodNode):
        body, name = node.get_class_node().get_body(), node.get_method_name()
        method = inspect.getattr_static(body, name, None)
        call = getattr(method, "__func__", method)
        if inspect.isfunction(call):
            label = f"{node.get_class_node().get_label()}.{name}"
            _check_arguments(node, call, label, 0 if isinstance(method, staticmethod) else 1)


def _check_arguments(node: DAGNode, call: Any, label: str, leading: int = 0) -> None:
    """Raise TypeError if a call does not take the arguments that a node was bound to.

    Parameters:
      leading: How many parameters come before those for the arguments: 1 for ``self``.
    """
    args, kwargs = node.get_args(), node.get_kwargs()
    if not args and not kwargs and getattr(call, "__init__", None) is object.__init__:
        return  # reading the signature of `object` writes to every module, which costs a forked process 2.5 MB
    try:
        # of a decorated function the wrapper's, which may pass on other arguments than it gets
        signature = inspect.signature(call, follow_wrapped=False)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    own = list(signature.parameters.values())[leading:]
    if not own and len(args) == 1 and not kwargs and isinstance(args[0], InputNode):
        return  # the input may be a request, without which a method that has no parameters is called
    try:
        signature.bind(*[None] * leading, *args, **kwargs)
    except TypeError as error:
        takes = signature.replace(parameters=own, return_annotation=inspect.Signature.empty)
        raise TypeError(f"{label}.bind(...): {error}. {label} takes {takes}") from None


def _check_inputs(order: Iterable[DAGNode]) -> None:
    inputs = [node for node in order if isinstance(node, InputNode)]
    if len(inputs) > 1:
        raise AssertionError(
            "Each DAG should only have one unique InputNode. Share one between all nodes: with InputNode() as inp: ..."
        )
    for node in inputs:
        if not was_entered(node):
            raise AssertionError(
                "InputNode is a singleton instance that should be only used in context manager. "
                "Write `with InputNode() as inp:` instead of `inp = InputNode()`."
            )
