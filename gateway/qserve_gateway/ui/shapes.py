"""Where the boxes and lines of a graph are, from left to right for wide windows and downwards for narrow ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from qserve.drawing.layout import Box, Point, lay_out
from qserve.overview.picture import Graph

_STEP, _END = (248.0, 104.0), (104.0, 40.0)
_MARGIN = 18.0


def shape_of(graph: Graph, is_tall: bool) -> dict[str, Any]:
    """Return the shape of a graph: its size, its boxes by node, and a path for each edge. It takes a second for 500."""
    sizes = {node.id: _END if node.kind in ("input", "output") else _STEP for node in graph.nodes}
    if is_tall:
        sizes = {name: (height, width) for name, (width, height) in sizes.items()}
    layout = lay_out(sizes, graph.edges, {"in"} & sizes.keys())
    width, height = (layout.height, layout.width) if is_tall else (layout.width, layout.height)
    return {
        "width": width + 2 * _MARGIN,
        "height": height + 2 * _MARGIN,
        "boxes": {name: _box(box, is_tall) for name, box in layout.boxes.items()},
        "paths": [_path(layout.routes[edge], is_tall) for edge in graph.edges],
    }


def _box(box: Box, is_tall: bool) -> list[float]:
    x, y, width, height = (box.y, box.x, box.height, box.width) if is_tall else (box.x, box.y, box.width, box.height)
    return [round(x + _MARGIN, 1), round(y + _MARGIN, 1), width, height]


def _path(points: list[Point], is_tall: bool) -> str:
    def at(x: float, y: float) -> str:
        return f"{(y if is_tall else x) + _MARGIN:.1f} {(x if is_tall else y) + _MARGIN:.1f}"

    parts = [f"M{at(*points[0])}"]
    for number, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        half = (x0 + x1) / 2
        is_straight = number % 2 == 0 or abs(y1 - y0) < 0.05
        parts.append(f"L{at(x1, y1)}" if is_straight else f"C{at(half, y0)} {at(half, y1)} {at(x1, y1)}")
    return "".join(parts)
