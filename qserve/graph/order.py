"""Walking a graph without recursion: graphs may be thousands of nodes deep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from qserve.graph.node import DAGNode

Children = Callable[[DAGNode], Iterable[DAGNode]]


def bottom_up(root: DAGNode, children: Children = DAGNode.get_all_child_nodes) -> list[DAGNode]:
    """Return every node that the root needs, children before parents, arguments left to right.

    Parameters:
      root: Where to start; it comes last.
      children: What a node needs.

    Raises:
      ValueError: A node needs itself, by way of a container that was changed after ``bind``.
    """
    done: dict[DAGNode, None] = {}
    opened: dict[DAGNode, None] = {root: None}
    path: list[tuple[DAGNode, Iterator[DAGNode]]] = [(root, iter(children(root)))]
    while path:
        node, rest = path[-1]
        child = next(rest, None)
        if child is None:
            path.pop()
            del opened[node]
            done[node] = None
        elif child in opened:
            raise ValueError(
                f"the graph has a cycle: {child!r} needs its own result. Was a list or dict given "
                "to bind and changed afterwards?"
            )
        elif child not in done:
            opened[child] = None
            path.append((child, iter(children(child))))
    return list(done)
