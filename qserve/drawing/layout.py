"""Layered drawing: which column each node stands in, in which order, and the coordinates of boxes and edges.

``Graph`` assigns columns and orders them so that few edges cross; ``lay_out`` finds coordinates.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Edge = tuple[str, str]
Columns = list[list[str]]
Point = tuple[float, float]
Size = tuple[float, float]

_SWEEPS = 16
_BENDS_AT_MOST = 20_000
"""With more bends than this, long edges are drawn straight: the drawing is unreadable anyway."""

_BETWEEN_COLUMNS = 64.0
_BETWEEN_BOXES = 22.0
_BETWEEN_BENDS = 14.0
_ROUNDS = 49
_CENTRING = 17
_PORT_STEP = 11.0
_INSIDE = 18.0
_STRAIGHT = 8.0
"""A bend pulls this much harder than a box, so that long edges become straight first."""


class Graph:
    """Nodes in columns, where every edge leads from one column to the next.

    A long edge is cut into pieces: each column on its way gets a bend, which is a node without a box.

    Parameters:
      edges: Pairs of nodes, no cycles.
      fixed: Nodes that stay as far left as possible; nodes that need none of them move next to their users.
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
        """Return whether a node is only a bend of an edge."""
        return node not in self.column_of

    def _add(self, edge: Edge, number: int, cut: bool) -> None:
        child, user = edge
        between = range(self.column_of[child] + 1, self.column_of[user]) if cut else ()
        # no label begins with NUL
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
                node: sum(place[neighbour] for neighbour in near[node]) / len(near[node])
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
                targets = sorted(place[user] for user in self.after.get(node, ()) if user in place)
                total += sum(len(ends) - bisect_left(ends, target + 1) for target in targets)
                for target in targets:
                    insort(ends, target)
        return total


def columns_of(nodes: Sequence[str], edges: Sequence[Edge], fixed: Collection[str]) -> dict[str, int]:
    """Return each node's column, which is right of all that it needs; parameters are those of ``Graph``."""
    users: dict[str, list[str]] = {node: [] for node in nodes}
    needs: dict[str, list[str]] = {node: [] for node in nodes}
    for child, user in edges:
        users[child].append(user)
        needs[user].append(child)
    order = _topological(nodes, users, needs)
    column: dict[str, int] = {}
    held: set[str] = set(fixed)
    for node in order:
        column[node] = max((column[child] + 1 for child in needs[node]), default=0)
        if held.intersection(needs[node]):
            held.add(node)
    for node in reversed(order):
        if node not in held and users[node]:
            column[node] = min(column[user] for user in users[node]) - 1
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
    heights = {node: sizes[node][1] if node in sizes else 0.0 for column in graph.columns for node in column}
    middles = _middles(graph, heights)
    lefts, widths = _columns(graph, sizes)
    boxes = {}
    for node, (width, height) in sizes.items():
        column = graph.column_of[node]
        boxes[node] = Box(lefts[column] + (widths[column] - width) / 2, middles[node] - height / 2, width, height)
    routes = _routes(graph, boxes, middles, lefts, widths)
    bottoms = [box.y + box.height for box in boxes.values()]
    bottoms += [y for points in routes.values() for _, y in points]
    return Layout(boxes, routes, lefts[-1] + widths[-1], max(bottoms))


def _columns(graph: Graph, sizes: Mapping[str, Size]) -> tuple[list[float], list[float]]:
    lefts: list[float] = []
    widths: list[float] = []
    left = 0.0
    for column in graph.columns:
        widths.append(max((sizes[node][0] for node in column if node in sizes), default=0.0))
        lefts.append(left)
        # many edges between two columns need room to bend
        arrows = sum(len(graph.after.get(node, ())) for node in column)
        left += widths[-1] + _BETWEEN_COLUMNS + min(2.0 * arrows, 60.0)
    return lefts, widths


def _middles(graph: Graph, heights: Mapping[str, float]) -> dict[str, float]:
    """Return the vertical position of each node: close to its neighbours, in order, without overlaps."""
    middles: dict[str, float] = {}
    for column in graph.columns:
        y = 0.0
        for node, gap in zip(column, _gaps(graph, column, heights), strict=True):
            y += gap
            middles[node] = y
    for turn in range(_ROUNDS):
        near = (graph.before, graph.after) if turn % 2 == 0 else (graph.after, graph.before)
        for column in graph.columns if turn % 2 == 0 else reversed(graph.columns):
            # the last rounds use both sides, so that a box stands in the middle of all its edges
            _settle(graph, column, near if turn < _ROUNDS - _CENTRING else (_both(graph, column), {}), middles, heights)
    _settle(graph, graph.columns[0], (graph.after, {}), middles, heights)
    top = min(middles[node] - heights[node] / 2 for node in middles)
    return {node: y - top for node, y in middles.items()}


def _both(graph: Graph, column: Sequence[str]) -> dict[str, list[str]]:
    return {node: [*graph.before.get(node, ()), *graph.after.get(node, ())] for node in column}


def _settle(
    graph: Graph,
    column: Sequence[str],
    near: tuple[Mapping[str, list[str]], Mapping[str, list[str]]],
    middles: dict[str, float],
    heights: Mapping[str, float],
) -> None:
    wanted: list[float] = []
    weights: list[float] = []
    for node in column:
        others = near[0].get(node) or near[1].get(node)
        pulls = [_STRAIGHT if graph.is_bend(node) and graph.is_bend(one) else 1.0 for one in others or ()]
        towards = sum(pull * middles[one] for pull, one in zip(pulls, others or (), strict=True))
        wanted.append(towards / sum(pulls) if others else middles[node])
        weights.append(_STRAIGHT if graph.is_bend(node) else 1.0)
    for node, y in zip(column, spread(wanted, _gaps(graph, column, heights), weights), strict=True):
        middles[node] = y


def _gaps(graph: Graph, column: Sequence[str], heights: Mapping[str, float]) -> list[float]:
    """Return the least distance between the middles of each node and the one above it; 0 for the first."""
    gaps = [0.0]
    for above, below in pairwise(column):
        is_loose = graph.is_bend(above) or graph.is_bend(below)
        gaps.append((heights[above] + heights[below]) / 2 + (_BETWEEN_BENDS if is_loose else _BETWEEN_BOXES))
    return gaps[: len(column)]


def spread(wanted: Sequence[float], gaps: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the positions nearest to the wanted ones, by least squares, that keep order and distances.

    Parameters:
      wanted: The preferred position of each.
      gaps: The least distance of each from the one before it; the first is not used.
      weights: The weight of each preference.
    """
    offsets: list[float] = []
    total = 0.0
    for index, gap in enumerate(gaps):
        total += gap if index else 0.0
        offsets.append(total)
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


def _routes(
    graph: Graph,
    boxes: Mapping[str, Box],
    middles: Mapping[str, float],
    lefts: Sequence[float],
    widths: Sequence[float],
) -> dict[Edge, list[Point]]:
    outs, ins = _ports(graph, boxes, middles)
    routes: dict[Edge, list[Point]] = {}
    for edge, path in graph.paths.items():
        child, user = edge
        column = graph.column_of[child]
        # begins a little inside the box, which covers it, so that a round box has no gap
        start = boxes[child].x + boxes[child].width - min(_INSIDE, boxes[child].width / 2)
        points = [(start, outs[edge]), (lefts[column] + widths[column], outs[edge])]
        for number, bend in enumerate(path[1:-1], column + 1):
            points += [(lefts[number], middles[bend]), (lefts[number] + widths[number], middles[bend])]
        points += [(lefts[graph.column_of[user]], ins[edge]), (boxes[user].x, ins[edge])]
        routes[edge] = points
    return routes


def _ports(
    graph: Graph, boxes: Mapping[str, Box], middles: Mapping[str, float]
) -> tuple[dict[Edge, float], dict[Edge, float]]:
    """Return the heights at which each edge leaves one box and reaches the other, ordered to avoid crossings."""
    outs: dict[Edge, float] = {}
    ins: dict[Edge, float] = {}
    for ports, end, next_to_it in ((outs, 0, 1), (ins, 1, -2)):
        by_box: dict[str, list[Edge]] = {}
        for edge in graph.paths:
            by_box.setdefault(edge[end], []).append(edge)
        for node, edges in by_box.items():
            edges.sort(key=lambda edge: middles[graph.paths[edge][next_to_it]])
            box = boxes[node]
            step = min(_PORT_STEP, (box.height - 14.0) / len(edges))
            first = box.y + box.height / 2 - step * (len(edges) - 1) / 2
            ports.update((edge, first + step * index) for index, edge in enumerate(edges))
    return outs, ins
