"""Layered drawing: the column of each node, its place there, and the coordinates of boxes and edges.

``Graph`` assigns columns and orders them so that few edges cross; ``lay_out`` finds coordinates.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import accumulate, pairwise
from typing import Final

Edge = tuple[str, str]
Columns = list[list[str]]
Neighbours = Mapping[str, list[str]]
Point = tuple[float, float]
Size = tuple[float, float]

_SWEEPS = 16
_BENDS_AT_MOST = 20_000
"""With more bends than this, long edges are drawn straight: the drawing is unreadable anyway."""

_BETWEEN_COLUMNS = 64.0
_BETWEEN_BOXES = 22.0
_BETWEEN_BENDS = 14.0
_ROUNDS = 32
_CENTRING_ROUNDS = 17
_PORT_STEP = 11.0
_INSIDE = 18.0
_STRAIGHT = 8.0
"""A bend pulls this much harder than a box, so that long edges become straight first."""


class Graph:
    """Nodes in columns, where every edge leads from one column to the next.

    A long edge is cut into pieces: each column on its way gets a bend, which is a node without a box.

    Nodes that are ``fixed`` stay as far left as possible; nodes that need none of them move next to their users.
    """

    def __init__(self, nodes: Sequence[str], edges: Sequence[Edge], fixed: Collection[str]) -> None:
        self.column_of: Final = columns_of(nodes, edges, fixed)
        self.columns: Columns = [[] for _ in range(max(self.column_of.values()) + 1)]
        for node in nodes:
            self.columns[self.column_of[node]].append(node)
        self.paths: dict[Edge, list[str]] = {}
        self.before: Neighbours = defaultdict(list)
        self.after: Neighbours = defaultdict(list)
        bends = sum(self.column_of[user] - self.column_of[child] - 1 for child, user in edges)
        for number, edge in enumerate(edges):
            self._add(edge, number, cut=bends <= _BENDS_AT_MOST)

    def is_bend(self, node: str) -> bool:
        return node not in self.column_of

    def _add(self, edge: Edge, number: int, cut: bool) -> None:
        child, user = edge
        between = range(self.column_of[child] + 1, self.column_of[user])
        # no label begins with NUL
        bends = [f"\0{number}/{column}" for column in between] if cut else []
        self.paths[edge] = path = [child, *bends, user]
        for column, bend in zip(between, bends, strict=False):
            self.columns[column].append(bend)
        if len(bends) == len(between):
            for node, following in pairwise(path):
                self.after[node].append(following)
                self.before[following].append(node)

    def arrange(self) -> None:
        """Order the nodes of each column so that few edges cross."""
        columns = self.columns
        fewest = self._crossings(columns)
        for sweep in range(_SWEEPS):
            if not fewest:
                break
            if sweep % 2 == 0:
                columns = _swept(columns, self.before)
            else:
                columns = _swept(columns[::-1], self.after)[::-1]
            crossings = self._crossings(columns)
            if crossings < fewest:
                self.columns, fewest = columns, crossings

    def _crossings(self, columns: Columns) -> int:
        total = 0
        for column, following in pairwise(columns):
            place = {node: index for index, node in enumerate(following)}
            ends: list[int] = []
            for node in column:
                targets = sorted(place[user] for user in self.after[node])
                total += sum(len(ends) - bisect_right(ends, target) for target in targets)
                for target in targets:
                    insort(ends, target)
        return total


def _swept(columns: Columns, near: Neighbours) -> Columns:
    """Return the columns, each ordered by where the neighbours of its nodes stand in the columns before it."""
    place: dict[str, float] = {}
    swept: Columns = []
    for column in columns:
        wanted = _places(column)
        for node in column:
            if near[node]:
                wanted[node] = sum(place[neighbour] for neighbour in near[node]) / len(near[node])
        swept.append(sorted(column, key=wanted.__getitem__))
        place |= _places(swept[-1])
    return swept


def _places(column: Sequence[str]) -> dict[str, float]:
    return {node: index / max(len(column) - 1, 1) for index, node in enumerate(column)}


def columns_of(nodes: Sequence[str], edges: Sequence[Edge], fixed: Collection[str]) -> dict[str, int]:
    """Return each node's column, which is right of all that it needs."""
    users: dict[str, list[str]] = {node: [] for node in nodes}
    needs: dict[str, list[str]] = {node: [] for node in nodes}
    for child, user in edges:
        users[child].append(user)
        needs[user].append(child)
    order = list(TopologicalSorter(needs).static_order())
    column: dict[str, int] = {}
    held = set(fixed)
    for node in order:
        column[node] = max((column[child] + 1 for child in needs[node]), default=0)
        if held.intersection(needs[node]):
            held.add(node)
    for node in reversed(order):
        if node not in held and users[node]:
            column[node] = min(column[user] for user in users[node]) - 1
    return column


@dataclass(frozen=True)
class Box:
    """A rectangle and its upper left corner."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """A drawing's geometry.

    Parameters:
      boxes: By node.
      routes: By edge: pairs of points, where it enters and leaves each column; it is straight within a pair and curved
        between two pairs.
      width, height: Of the whole drawing, which begins at 0, 0.
    """

    boxes: Mapping[str, Box]
    routes: Mapping[Edge, list[Point]]
    width: float
    height: float


def lay_out(sizes: Mapping[str, Size], edges: Sequence[Edge], fixed: Collection[str]) -> Layout:
    """Place boxes from left to right, each right of all that it needs.

    Parameters:
      sizes: Width and height of each node's box; their order breaks ties.
      edges: Pairs of nodes, no cycles.
      fixed: Nodes that stay as far left as possible: the input.
    """
    graph = Graph(list(sizes), edges, fixed)
    graph.arrange()
    placed = _Placement(graph, sizes)
    bottoms = [box.y + box.height for box in placed.boxes.values()]
    bottoms += [y for points in placed.routes.values() for _, y in points]
    return Layout(placed.boxes, placed.routes, placed.rights[-1], max(bottoms))


class _Placement:
    """The coordinates of an arranged graph: of its columns, then the middles of its nodes, its boxes and its edges."""

    def __init__(self, graph: Graph, sizes: Mapping[str, Size]) -> None:
        self._graph = graph
        self._heights = defaultdict(float, {node: height for node, (_, height) in sizes.items()})  # of bends: 0
        self._lefts: list[float] = []
        self.rights: list[float] = []
        left = 0.0
        for column in graph.columns:
            self._lefts.append(left)
            self.rights.append(left + max((sizes[node][0] for node in column if node in sizes), default=0.0))
            # many edges between two columns need room to bend
            arrows = sum(len(graph.after[node]) for node in column)
            left = self.rights[-1] + _BETWEEN_COLUMNS + min(2.0 * arrows, 60.0)
        self._middles: dict[str, float] = {}
        self._settle_all()
        top = min(y - self._heights[node] / 2 for node, y in self._middles.items())
        self._middles = {node: y - top for node, y in self._middles.items()}
        self.boxes: dict[str, Box] = {}
        for node, (width, height) in sizes.items():
            number = graph.column_of[node]
            x = (self._lefts[number] + self.rights[number] - width) / 2
            self.boxes[node] = Box(x, self._middles[node] - height / 2, width, height)
        outs, ins = self._ports(0, 1), self._ports(1, -2)
        self.routes = {edge: self._route(edge, outs[edge], ins[edge]) for edge in graph.paths}

    def _settle_all(self) -> None:
        """Move every node close to its neighbours, in order, without overlaps."""
        before, after, columns = self._graph.before, self._graph.after, self._graph.columns
        for column in columns:
            self._middles.update(zip(column, accumulate(self._gaps(column)), strict=True))
        for turn in range(_ROUNDS + _CENTRING_ROUNDS):
            near, far = (before, after) if turn % 2 == 0 else (after, before)
            for column in columns if turn % 2 == 0 else reversed(columns):
                if turn < _ROUNDS:
                    self._settle(column, {node: near[node] or far[node] for node in column})
                else:  # a box is in the middle of all its edges
                    self._settle(column, {node: [*before[node], *after[node]] for node in column})
        self._settle(columns[0], after)

    def _settle(self, column: Sequence[str], neighbours: Neighbours) -> None:
        is_bend, middles = self._graph.is_bend, self._middles
        wanted: list[float] = []
        for node in column:
            pulls = {near: _STRAIGHT if is_bend(node) and is_bend(near) else 1.0 for near in neighbours[node]}
            towards = sum(pull * middles[near] for near, pull in pulls.items())
            wanted.append(towards / sum(pulls.values()) if pulls else middles[node])
        weights = [_STRAIGHT if is_bend(node) else 1.0 for node in column]
        middles.update(zip(column, spread(wanted, self._gaps(column), weights), strict=True))

    def _gaps(self, column: Sequence[str]) -> list[float]:
        """Return the least distance between the middles of each node and the one above it; 0 for the first."""
        gaps = [0.0]
        for above, below in pairwise(column):
            is_loose = self._graph.is_bend(above) or self._graph.is_bend(below)
            between = _BETWEEN_BENDS if is_loose else _BETWEEN_BOXES
            gaps.append((self._heights[above] + self._heights[below]) / 2 + between)
        return gaps

    def _ports(self, end: int, next_to_it: int) -> dict[Edge, float]:
        """Return the heights at which each edge leaves (or reaches) its box, ordered to avoid crossings."""
        by_box: dict[str, list[Edge]] = defaultdict(list)
        for edge in self._graph.paths:
            by_box[edge[end]].append(edge)
        ports: dict[Edge, float] = {}
        for node, edges in by_box.items():
            edges.sort(key=lambda edge: self._middles[self._graph.paths[edge][next_to_it]])
            step = min(_PORT_STEP, (self._heights[node] - 14.0) / len(edges))
            first = self._middles[node] - step * (len(edges) - 1) / 2
            ports.update((edge, first + step * index) for index, edge in enumerate(edges))
        return ports

    def _route(self, edge: Edge, out: float, into: float) -> list[Point]:
        child, user = (self.boxes[node] for node in edge)
        column = self._graph.column_of[edge[0]]
        # begins a little inside the box, which covers it, so that a round box has no gap
        points = [(child.x + child.width - min(_INSIDE, child.width / 2), out), (self.rights[column], out)]
        for number, bend in enumerate(self._graph.paths[edge][1:-1], column + 1):
            points += [(self._lefts[number], self._middles[bend]), (self.rights[number], self._middles[bend])]
        return [*points, (self._lefts[self._graph.column_of[edge[1]]], into), (user.x, into)]


def spread(wanted: Sequence[float], gaps: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the positions nearest to the wanted ones, by least squares, that keep order and distances.

    Parameters:
      wanted: The preferred position of each.
      gaps: The least distance of each from the one before it; 0 for the first.
      weights: The weight of each preference.
    """
    offsets = list(accumulate(gaps))
    # without the offsets, positions only have to be in order: neighbours that are not are pooled
    pools: list[tuple[float, float, int]] = []
    for preferred, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, mass, count = preferred - offset, weight, 1
        while pools and pools[-1][0] > mean:
            other, more, members = pools.pop()
            mean = (mean * mass + other * more) / (mass + more)
            mass, count = mass + more, count + members
        pools.append((mean, mass, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
