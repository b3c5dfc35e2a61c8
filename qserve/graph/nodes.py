"""The nodes that ``bind`` makes: descriptions of calls; nothing runs here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from qserve.graph.containers import find
from qserve.graph.inputs import InputAttributeNode, InputNode
from qserve.graph.node import DAGNode

__all__ = [
    "Body",
    "ClassMethodNode",
    "ClassNode",
    "DAGNode",
    "FunctionNode",
    "InputAttributeNode",
    "InputNode",
    "MethodNode",
    "UnboundMethod",
]

Body = Callable[..., Any]
"""The user's class or function."""


class _DeploymentNode(DAGNode):
    def __init__(
        self,
        body: Body,
        options: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__(args, kwargs)
        self._body = body
        self._options = options
        check_bindable(self)

    def get_body(self) -> Body:
        """Return the user's class or function."""
        return self._body

    def get_options(self) -> Any:
        """Return the deployment's options; ``name`` is ``None`` unless the user chose one."""
        return self._options

    def get_label(self) -> str:
        """Return the chosen name, or the class's or function's own."""
        return self._options.name or own_name(self._body)


class ClassNode(_DeploymentNode):
    """A class bound to its constructor's arguments: one deployment.

    Any other attribute is a method of the class, to be bound: ``node.method.bind(...)``.
    """

    def __init__(
        self,
        body: Body,
        options: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__(body, options, args, kwargs)
        check_no_input(self)

    def __getattr__(self, name: str) -> UnboundMethod:
        body = object.__getattribute__(self, "_body")
        # vars() along the bases, because getattr() also finds what the metaclass has: every
        # class seems to have __call__ and mro.
        if any(name in vars(base) for base in inspect.getmro(body)):
            return UnboundMethod(self, name)
        raise AttributeError(_no_such_method(body, name), name=name, obj=self)


class FunctionNode(_DeploymentNode):
    """A function bound to its arguments: one deployment, and one step of a graph."""

    def remote(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to be called.

        Raises:
          AttributeError: Always.
        """
        raise AttributeError(_not_callable_yet(self))


class UnboundMethod:
    """A method of a class node that waits for its ``bind``."""

    def __init__(self, class_node: ClassNode, method: str, label: str | None = None) -> None:
        self._class_node = class_node
        self._method = method
        self._label = label

    def bind(self, *args: Any, **kwargs: Any) -> MethodNode:
        """Return a node that calls the method with these arguments."""
        return MethodNode(self._class_node, self._method, args, kwargs, self._label)

    def options(self, *, name: str | None = None) -> UnboundMethod:
        """Return this method with a label for drawings."""
        return UnboundMethod(self._class_node, self._method, name)

    def remote(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to be called.

        Raises:
          AttributeError: Always.
        """
        raise AttributeError(
            f".remote() cannot be used on ClassMethodNodes. Use .bind() instead to express an "
            f"symbolic actor call: {self._words()}.bind(...)"
        )

    def _words(self) -> str:
        return f"{self._class_node.get_label()}.{self._method}"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ValueError(
            f"DAGNode cannot be serialized, and {self._words()!r} is an unbound method of one. "
            f"Write {self._words()}.bind(...)."
        )

    def __repr__(self) -> str:
        return f"UnboundMethod({self._words()!r})"


class MethodNode(DAGNode):
    """A method of a class node bound to its arguments: one step of a graph."""

    def __init__(
        self,
        class_node: ClassNode,
        method: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        label: str | None = None,
    ) -> None:
        super().__init__(args, kwargs)
        self._class_node = class_node
        self._method = method
        self._label = label
        check_bindable(self)

    def get_class_node(self) -> ClassNode:
        """Return the node of the instance whose method this is."""
        return self._class_node

    def get_method_name(self) -> str:
        """Return the method's name."""
        return self._method

    def get_label(self) -> str:
        """Return the label given by ``options(name=...)``, or the method's name."""
        return self._label or self._method

    def remote(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to be called.

        Raises:
          AttributeError: Always.
        """
        raise AttributeError(_not_callable_yet(self))

    def _all_arguments(self) -> list[Any]:
        return [*super()._all_arguments(), self._class_node]


ClassMethodNode = MethodNode


def own_name(body: Body) -> str:
    """Return the name that a class or function was defined with."""
    return str(getattr(body, "__name__", type(body).__name__))


def check_bindable(node: DAGNode) -> None:
    """Refuse arguments that were forgotten to bind.

    Raises:
      TypeError: A method without its ``bind`` is among them.
    """
    unbound = find(node._all_arguments(), UnboundMethod)
    if unbound:
        words = unbound[0]._words()
        raise TypeError(
            f"{node.get_label()!r} was bound to the method {words!r}, which is not bound itself. "
            f"Write {words}.bind(...)."
        )


def check_no_input(node: ClassNode) -> None:
    """Refuse a constructor argument that only a request can bring.

    Raises:
      ValueError: An input node, or a part of one, is among the arguments.
    """
    for child in node.get_all_child_nodes():
        if isinstance(child, InputNode | InputAttributeNode):
            raise ValueError(
                "InputNode handles user dynamic input the the DAG, and cannot be used as args, "
                "kwargs, or other_args_to_resolve in ClassNode constructor because it is not "
                "available at class construction or binding time. Pass it to a method of "
                f"{node.get_label()!r} instead: {node.get_label()}.bind(...).method.bind(inp)."
            )


def _no_such_method(body: Body, name: str) -> str:
    text = f"type object {own_name(body)!r} has no attribute {name!r}"
    if name == "remote":
        return f"{text}: a node does not run yet. Start it by serve.run(node) and call its handle."
    close = difflib.get_close_matches(name, dir(body), n=1)
    return f"{text}. Did you mean {close[0]!r}?" if close else text


def _not_callable_yet(node: DAGNode) -> str:
    return (
        f".remote() cannot be used on {type(node).__name__} {node.get_label()!r}: a node is not "
        "running yet. Bind it to a driver, start that by serve.run(driver) and call the handle."
    )
