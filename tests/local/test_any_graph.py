"""Random graphs, run for real, against plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from outcomes import Model, async_function, outcome, sync_function
from serving import ServeRun

import qserve as serve
from qserve.dag import InputNode
from qserve.deployment_graph import DAGNode
from qserve.drivers import DAGDriver


@dataclass(frozen=True)
class Spec:
    """A graph as data: each node has arguments made of constants, containers and ``Use``.

    Parameters:
      request: Positional and keyword input.
      nodes: (kind, args, kwargs) of each node; those nobody uses are collected by the last.
    """

    request: tuple[list[Any], dict[str, Any]]
    nodes: list[tuple[int, list[Any], dict[str, Any]]]


@dataclass(frozen=True)
class Use:
    """Stands for a node's result, or for a part of the input."""

    node: int | None = None
    part: str | int | None = None


REQUESTS: list[tuple[tuple[list[Any], dict[str, Any]], list[str | int | None]]] = [
    (([[11, "two"]], {}), [None, 0, 1, -1]),
    (([{"a": 1, "b": [2.5]}], {}), [None, "a", "b"]),
    (([3 + 4j], {}), [None, ".real", ".imag"]),
    (([5, (6, None)], {"k": {7}}), [0, 1, "k", ".k"]),
    (([], {"k": b"bytes"}), ["k", ".k"]),
]


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """A request, and a graph that reads its parts: deep or wide, with shared nodes."""
    request, parts = draw(st.sampled_from(REQUESTS))
    inputs = [Use(part=part) for part in parts]
    nodes: list[tuple[int, list[Any], dict[str, Any]]] = []
    unused: dict[Use, None] = {}
    for number in range(draw(st.integers(1, 8))):
        made = [Use(node=one) for one in range(number)]
        arguments = _arguments(inputs + (made[-2:] * 2 if draw(st.booleans()) else made))
        args = draw(st.lists(arguments, max_size=3))
        kwargs = draw(st.dictionaries(st.sampled_from("uvw"), arguments, max_size=2))
        for use in _uses([args, kwargs]):
            unused.pop(use, None)
        unused[Use(node=number)] = None
        nodes.append((draw(st.integers(0, 3)), args, kwargs))
    nodes.append((0, list(unused), {"nested": [*unused]}))
    return Spec(request, nodes)


def _arguments(uses: list[Use]) -> st.SearchStrategy[Any]:
    atoms = st.one_of(st.sampled_from(uses), st.integers(0, 9), st.sampled_from(["text", None, 0.5]))
    return st.one_of(
        st.sampled_from(uses),
        atoms,
        st.lists(atoms, min_size=1, max_size=3),
        st.tuples(atoms, st.lists(atoms, max_size=2)),
        st.dictionaries(st.sampled_from("pqr"), atoms | st.lists(atoms, max_size=2), max_size=2),
    )


def _uses(value: Any) -> list[Use]:
    if isinstance(value, Use):
        return [value]
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [use for member in members for use in _uses(member)]


def _replaced(value: Any, put: Callable[[Use], Any]) -> Any:
    if isinstance(value, Use):
        return put(value)
    if isinstance(value, list | tuple):
        return type(value)(_replaced(member, put) for member in value)
    if isinstance(value, dict):
        return {key: _replaced(member, put) for key, member in value.items()}
    return value


@dataclass
class Plain:
    """The graph as Python would run it: every node once, its result wherever it is used."""

    spec: Spec
    results: list[int] = field(default_factory=list)

    def run(self) -> int:
        for kind, args, kwargs in self.spec.nodes:
            args, kwargs = _replaced([args, kwargs], self._value)
            self.results.append(outcome(kind, args, kwargs))
        return self.results[-1]

    def _value(self, use: Use) -> Any:
        return self._part(use.part) if use.node is None else self.results[use.node]

    def _part(self, part: str | int | None) -> Any:
        args, kwargs = self.spec.request
        if len(args) == 1 and not kwargs:
            if part is None:
                return args[0]
            return getattr(args[0], part[1:]) if str(part).startswith(".") else args[0][part]
        return args[part] if isinstance(part, int) else kwargs[str(part).lstrip(".")]


def _bound(spec: Spec) -> Any:
    """The graph as a user binds it: sync and async functions, and methods of two instances."""
    kinds = [sync_function, async_function, Model.bind(2).sync, Model.bind(3).later]
    nodes: list[DAGNode] = []
    with InputNode() as inp:

        def node_of(use: Use) -> DAGNode:
            return _part_of(inp, use.part) if use.node is None else nodes[use.node]

        for kind, args, kwargs in spec.nodes:
            args, kwargs = _replaced([args, kwargs], node_of)
            nodes.append(kinds[kind].bind(*args, **kwargs))
    return DAGDriver.bind(nodes[-1])


def _part_of(inp: Any, part: str | int | None) -> DAGNode:
    if isinstance(part, str) and part.startswith("."):
        return getattr(inp, part[1:])
    return inp if part is None else inp[part]


def _check(run: ServeRun, spec: Spec) -> None:
    args, kwargs = spec.request
    assert serve.get(run(_bound(spec)).predict.remote(*args, **kwargs), timeout=30) == Plain(spec).run()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs())
def test_a_graph_gives_what_plain_python_gives(run_here: ServeRun, spec: Spec) -> None:
    _check(run_here, spec)


@pytest.mark.slow
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(specs())
def test_a_graph_gives_the_same_on_replicas(run_on_broker: ServeRun, spec: Spec) -> None:
    _check(run_on_broker, spec)
