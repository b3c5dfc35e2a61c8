"""The input of a graph, and its parts."""

from __future__ import annotations

from typing import Any, NoReturn

from qserve.graph.node import DAGNode
from qserve.graph.plan import InputKey

_ONE_LEVEL = (
    "A graph reads its input one level deep (inp[0], inp['key'], inp.name); pass that part to a "
    "function or method and go deeper there."
)


class InputNode(DAGNode):
    """The input of a graph, known when a request arrives: ``with InputNode() as inp: ...``.

    Parameters:
      input_type: Accepted and ignored.

    Raises:
      ValueError: Anything else was given.
    """

    def __init__(self, *args: Any, input_type: Any = None, **kwargs: Any) -> None:
        if args or kwargs:
            raise ValueError(
                "InputNode should not take any args or kwargs. Write `with InputNode() as inp:` "
                "and use inp, inp[0], inp['key'] or inp.name as arguments of bind."
            )
        super().__init__((), {})
        self._entered = False
        self._parts: dict[InputKey, InputAttributeNode] = {}

    def __enter__(self) -> InputNode:
        self._entered = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def __getattr__(self, name: str) -> InputAttributeNode:
        # copy, pickle and notebooks ask objects for such names; they are no part of an input.
        if name.startswith("__"):
            raise AttributeError(f"'InputNode' object has no attribute {name!r}")
        return self._part(InputKey("attribute", name))

    def __getitem__(self, key: int | str) -> InputAttributeNode:
        if not isinstance(key, int | str):
            raise AssertionError(
                "Please only use int index or str as first-level key to access fields of an "
                f"InputNode: inp[0] or inp['key'], not inp[{key!r}]."
            )
        return self._part(InputKey("item", key))

    def get_label(self) -> str:
        """Return ``INPUT_NODE``."""
        return "INPUT_NODE"

    def _part(self, key: InputKey) -> InputAttributeNode:
        parts: dict[InputKey, InputAttributeNode] = object.__getattribute__(self, "_parts")
        if key not in parts:
            parts[key] = InputAttributeNode(self, key)
        return parts[key]


class InputAttributeNode(DAGNode):
    """A part of the input: ``inp[0]``, ``inp["key"]`` or ``inp.name``."""

    def __init__(self, whole: InputNode, key: InputKey) -> None:
        super().__init__((whole,), {})
        self._key = key

    def get_input_key(self) -> InputKey:
        """Return which part of the input this is."""
        return self._key

    def get_label(self) -> str:
        """Return ``INPUT_ATTRIBUTE_NODE``."""
        return "INPUT_ATTRIBUTE_NODE"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"'InputAttributeNode' object has no attribute {name!r}. {_ONE_LEVEL}")

    def __getitem__(self, key: Any) -> NoReturn:
        raise TypeError(f"'InputAttributeNode' object is not subscriptable. {_ONE_LEVEL}")


def was_entered(node: InputNode) -> bool:
    """Return whether the input node was made by ``with InputNode() as inp``."""
    return node._entered
