"""Random graphs as data, bound as users bind them, and what plain Python makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from outcomes import Model, async_function, sync_function

from qserve.dag import InputNode
from qserve.deployment_graph import DAGNode
from qserve.drivers import DAGDriver


@dataclass(frozen=True)
class Use:
    """Stands for a node's result, or for a part of the input."""

    node: int | None = None
    part: str | int | None = None


@dataclass(frozen=True)
class Graph:
    """A graph as data: each node has arguments made of constants, containers and ``Use``.

    Parameters:
      args, kwargs: The input.
      nodes: (kind, args, kwargs) of each node; those nobody uses are collected by the last.
    """

    args: list[Any]
    kwargs: dict[str, Any]
    nodes: list[tuple[int, list[Any], dict[str, Any]]]

    def bind(self) -> Any:
        """The graph as a user binds it: sync and async functions, and methods of two instances."""
        kinds = [sync_function, async_function, Model.bind(2).sync, Model.bind(3).later]
        nodes: list[DAGNode] = []
        with InputNode() as inp:

            def node_of(use: Use) -> DAGNode:
                return _read(inp, use.part) if use.node is None else nodes[use.node]

            for kind, args, kwargs in self.nodes:
                args, kwargs = _replaced([args, kwargs], node_of)
                nodes.append(kinds[kind].bind(*args, **kwargs))
        return DAGDriver.bind(nodes[-1])

    def run(
        self, outcome: Callable[[int, Any, dict[str, Any]], int], nested: Callable[[int], Any] = lambda result: result
    ) -> int:
        """Run the graph as Python would: every node once, its result wherever it is used.

        Parameters:
          outcome: What a node of a kind makes of its arguments.
          nested: What the result of another node is in a container.
        """
        results: list[int] = []

        def argument(value: Any) -> Any:
            if isinstance(value, Use) and value.node is not None:
                return results[value.node]
            return _replaced(value, lambda use: self._part(use.part) if use.node is None else nested(results[use.node]))

        for kind, args, kwargs in self.nodes:
            named = {name: argument(value) for name, value in kwargs.items()}
            results.append(outcome(kind, [argument(value) for value in args], named))
        return results[-1]

    def _part(self, part: str | int | None) -> Any:
        if len(self.args) == 1 and not self.kwargs:
            return _read(self.args[0], part)
        return self.args[part] if isinstance(part, int) else self.kwargs[str(part).lstrip(".")]


def _read(value: Any, part: str | int | None) -> Any:
    """Read a part of the input, or of the node that stands for it; ``.x`` is an attribute, None the whole."""
    if isinstance(part, str) and part.startswith("."):
        return getattr(value, part[1:])
    return value if part is None else value[part]


def _replaced(value: Any, put: Callable[[Use], Any]) -> Any:
    if isinstance(value, Use):
        return put(value)
    if isinstance(value, list | tuple):
        return type(value)(_replaced(member, put) for member in value)
    if isinstance(value, dict):
        return {key: _replaced(member, put) for key, member in value.items()}
    return value


def _uses(value: Any) -> list[Use]:
    found: list[Use] = []
    _replaced(value, found.append)
    return found


INPUTS: list[tuple[list[Any], dict[str, Any], list[str | int | None]]] = [
    ([[11, "two"]], {}, [None, 0, 1, -1]),
    ([{"a": 1, "b": [2.5]}], {}, [None, "a", "b"]),
    ([3 + 4j], {}, [None, ".real", ".imag"]),
    ([5, (6, None)], {"k": {7}, "z": None}, [0, 1, "k", ".k", ".z"]),
    ([5], {"k": 7}, [0, ".k"]),
    ([], {"k": b"bytes"}, ["k", ".k"]),
]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """An input, and a graph that reads its parts: deep or wide, with shared nodes."""
    request_args, request_kwargs, parts = draw(st.sampled_from(INPUTS))
    inputs = [Use(part=part) for part in parts]
    nodes: list[tuple[int, list[Any], dict[str, Any]]] = []
    unused: dict[Use, None] = {}
    for number in range(draw(st.integers(1, 10))):
        made = [Use(node=one) for one in range(number)]
        arguments = _arguments(inputs + (made[-2:] * 2 if draw(st.booleans()) else made))
        args = draw(st.lists(arguments, max_size=3))
        kwargs = draw(st.dictionaries(st.sampled_from("uvw"), arguments, max_size=2))
        for use in _uses([args, kwargs]):
            unused.pop(use, None)
        unused[Use(node=number)] = None
        nodes.append((draw(st.integers(0, 3)), args, kwargs))
    nodes.append((0, list(unused), {"nested": [*unused]}))
    return Graph(request_args, request_kwargs, nodes)


def _arguments(uses: list[Use]) -> st.SearchStrategy[Any]:
    atoms = st.one_of(st.sampled_from(uses), st.integers(0, 9), st.sampled_from(["text", None, 0.5]))
    return st.one_of(
        st.sampled_from(uses),
        atoms,
        st.lists(atoms, min_size=1, max_size=3),
        st.tuples(atoms, st.lists(atoms, max_size=2)),
        st.dictionaries(st.sampled_from("pqr"), atoms | st.lists(atoms, max_size=2), max_size=2),
    )
