"""Layered drawing, the first half: in which column each node stands, and in which order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

Edge = tuple[str, str]
Columns = list[list[str]]
_SWEEPS = 16
_BENDS_AT_MOST = 20_000
"""Above that many bends of long edges, these are drawn straight: nobody could follow them anyway."""


class Graph:
    """Nodes in columns, where every edge leads from one column to the next.

    Long edges are cut: a bend, a node without a box, stands in each column on the way.

    Parameters:
      nodes: All nodes.
      edges: Pairs of nodes, no cycles.
      fixed: Nodes that stay as far left as they can; those that need none of them move next to their users.
    """

    def __init__(self, nodes: Sequence[str], edges: Sequence[Edge], fixed: Collection[str]) -> None:
        self.column_of = columns_of(nodes, edges, fixed)
        self.columns: Columns = [[] for _ in range(max(self.column_of.values()) + 1)]
        for node in nodes:
            self.columns[self.column_of[node]].append(node)
        self.paths: dict[Edge, list[str]] = {}
        self.before: dict[str, list[str]] = {node: [] for node in nodes}
        self.after: dict[str, list[str]] = {node: [] for node in nodes}
        bends = sum(self.column_of[user] - self.column_of[child] - 1 for child, user in edges)
        for number, edge in enumerate(edges):
            self._add(edge, number, cut=bends <= _BENDS_AT_MOST)

    def is_bend(self, node: str) -> bool:
        """Whether a node only leads an edge on."""
        return node not in self.column_of

    def _add(self, edge: Edge, number: int, cut: bool) -> None:
        child, user = edge
        between = range(self.column_of[child] + 1, self.column_of[user]) if cut else ()
        # with a NUL in front it is nobody's label
        path = [child, *(f"\0{number}/{column}" for column in between), user]
        for column, bend in zip(between, path[1:-1], strict=True):
            self.columns[column].append(bend)
        if cut or self.column_of[user] == self.column_of[child] + 1:
            for one, other in pairwise(path):
                self.after.setdefault(one, []).append(other)
                self.before.setdefault(other, []).append(one)
        self.paths[edge] = path

    def arrange(self) -> None:
        """Order the nodes of each column so that few edges cross."""
        best, fewest = self.columns, self._crossings(self.columns)
        columns = self.columns
        for sweep in range(_SWEEPS):
            if not fewest:
                break
            columns = self._swept(columns, self.before if sweep % 2 == 0 else self.after, sweep % 2 == 1)
            crossings = self._crossings(columns)
            if crossings < fewest:
                best, fewest = columns, crossings
        self.columns = best

    def _swept(self, columns: Columns, near: Mapping[str, list[str]], backwards: bool) -> Columns:
        place: dict[str, float] = {}
        swept: Columns = []
        for column in reversed(columns) if backwards else columns:
            wanted = {
                node: sum(place[one] for one in near[node]) / len(near[node])
                if near.get(node)
                else index / max(len(column) - 1, 1)
                for index, node in enumerate(column)
            }
            ordered = sorted(column, key=wanted.__getitem__)
            place |= {node: index / max(len(ordered) - 1, 1) for index, node in enumerate(ordered)}
            swept.append(ordered)
        return swept[::-1] if backwards else swept

    def _crossings(self, columns: Columns) -> int:
        total = 0
        for column, following in pairwise(columns):
            place = {node: index for index, node in enumerate(following)}
            ends: list[int] = []
            for node in column:
                targets = sorted(place[one] for one in self.after.get(node, ()) if one in place)
                total += sum(len(ends) - bisect_left(ends, target + 1) for target in targets)
                for target in targets:
                    insort(ends, target)
        return total


def columns_of(nodes: Sequence[str], edges: Sequence[Edge], fixed: Collection[str]) -> dict[str, int]:
    """Return each node's column: right of all that it needs.

    Parameters:
      nodes: All nodes.
      edges: Pairs of nodes, no cycles.
      fixed: See ``Graph``.
    """
    users: dict[str, list[str]] = {node: [] for node in nodes}
    needs: dict[str, list[str]] = {node: [] for node in nodes}
    for child, user in edges:
        users[child].append(user)
        needs[user].append(child)
    order = _topological(nodes, users, needs)
    column: dict[str, int] = {}
    held: set[str] = set(fixed)
    for node in order:
        column[node] = max((column[one] + 1 for one in needs[node]), default=0)
        if held.intersection(needs[node]):
            held.add(node)
    for node in reversed(order):
        if node not in held and users[node]:
            column[node] = min(column[one] for one in users[node]) - 1
    return column


def _topological(nodes: Iterable[str], users: Mapping[str, list[str]], needs: Mapping[str, list[str]]) -> list[str]:
    missing = {node: len(needs[node]) for node in nodes}
    ready = [node for node, count in missing.items() if not count]
    for node in ready:
        for user in users[node]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    return ready
