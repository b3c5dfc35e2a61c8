"""Names for the deployments of one application."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qserve.graph.nodes import ClassNode, DAGNode, FunctionNode, own_name


class Numbering:
    """Gives out a word, then ``word_1``, ``word_2``, never one that is taken.

    Parameters:
      taken: Words that belong to somebody already.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._used: dict[str, int] = {}

    def skip(self, word: str) -> None:
        """Use up a number of the word without giving it out."""
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
    """Name each deployment: its name option, else its class or function name and a number.

    Parameters:
      nodes: The graph's nodes, bottom-up; numbers follow this order.

    Returns:
      The name of each class and function node.

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
            # A chosen name still counts: the second Model is Model_1 whatever the first is.
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
