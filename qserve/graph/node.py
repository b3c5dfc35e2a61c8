"""What every node of a graph has: arguments, children, and a refusal to be bound again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from qserve.graph.containers import find


class DAGNode:
    """A node of a graph: something bound, with the arguments it was bound to.

    A class node answers other attributes with the user's methods, an input node with parts of the
    input; so what a node offers itself is called ``get_...``, out of the way of user names.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._args = args
        self._kwargs = dict(kwargs)

    def get_args(self) -> tuple[Any, ...]:
        """Return the positional arguments as bound."""
        return self._args

    def get_kwargs(self) -> dict[str, Any]:
        """Return a copy of the keyword arguments as bound."""
        return dict(self._kwargs)

    def get_label(self) -> str:
        """Return the word that stands for this node in a drawing."""
        raise NotImplementedError

    def get_toplevel_child_nodes(self) -> list[DAGNode]:
        """Return the nodes that are arguments themselves, each once."""
        children = [value for value in self._all_arguments() if isinstance(value, DAGNode)]
        return list(dict.fromkeys(children))

    def get_all_child_nodes(self) -> list[DAGNode]:
        """Return the nodes in the arguments, nested ones too, in order of first appearance."""
        return find(self._all_arguments(), DAGNode)

    _get_toplevel_child_nodes = get_toplevel_child_nodes
    _get_all_child_nodes = get_all_child_nodes

    def bind(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse a second bind.

        Raises:
          AttributeError: Always.
        """
        raise AttributeError(
            f".bind() cannot be used again on {type(self).__name__} {self.get_label()!r}: it is "
            "bound already; pass the node itself as an argument of another bind"
        )

    def _all_arguments(self) -> list[Any]:
        return [*self._args, *self._kwargs.values()]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ValueError(
            f"DAGNode cannot be serialized, and {self!r} is one. Did a closure capture it? Pass it "
            "as an argument of .bind() instead, and the deployment receives a handle or a value."
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.get_label()!r})"
