"""A picture as SVG, drawn without any other program or font."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

from qserve.drawing.layout import Box, Point, lay_out
from qserve.drawing.picture import Picture, PictureEdge, PictureNode

_MARGIN = 24.0
_HEIGHT = 46.0
_SIDE = 18.0
_TITLE_PX, _NOTE_PX = 13.5, 11.0
_LONGEST = 30
_ARROW = 8.0
_NOT_IN_XML = re.compile("[^\\t\\n\\r -\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""Control characters and lone surrogates, which XML cannot hold even when escaped."""

_NARROW = frozenset("iljtfrI.,:;|!'`()[]{}/\\ -")
_WIDE = frozenset("mwMW@%&")

_STYLE = """
.qserve-graph{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.qserve-graph .paper{fill:#ffffff}
.qserve-graph .box{stroke-width:1.4}
.qserve-graph .title{font-size:13.5px;font-weight:600;text-anchor:middle}
.qserve-graph .note{font-size:11px;text-anchor:middle;opacity:.72}
.qserve-graph .edge{fill:none;stroke:#8a97a8;stroke-width:1.5}
.qserve-graph .handle{stroke-dasharray:5 4}
.qserve-graph .head{fill:#8a97a8;stroke:none}
"""
COLOURS = {
    # kind: light (fill, stroke, text), dark (fill, stroke, text)
    "input": (("#f1f5f9", "#64748b", "#1e293b"), ("#232b36", "#8b9bb0", "#e2e8f0")),
    "function": (("#e6f6ee", "#2f9266", "#124a32"), ("#14322a", "#4cb48a", "#d3f3e4")),
    "method": (("#e8f0fe", "#3f74d6", "#17356e"), ("#182a4a", "#6f9df0", "#dbe7fd")),
    "class": (("#f3edfd", "#8257d3", "#432379"), ("#2b2145", "#a98bea", "#eae0fc")),
    "driver": (("#fef2de", "#c98410", "#613d05"), ("#3a2c12", "#e0ab48", "#fdecc8")),
}


def to_svg(picture: Picture) -> str:
    """Return a picture as SVG, drawn from left to right; it follows the reader's light or dark mode.

    Solid arrows are values that pass with each request, dashed ones instances and handles; a box with a
    shadow has several replicas.
    """
    texts = {node.id: (_shortened(node.label), _shortened(_note(node))) for node in picture.nodes}
    sizes = {name: (_box_width(*lines), _HEIGHT) for name, lines in texts.items()}
    fixed = {node.id for node in picture.nodes if node.kind == "input"}
    layout = lay_out(sizes, [(edge.child, edge.user) for edge in picture.edges], fixed)
    width, height = layout.width + 2 * _MARGIN, layout.height + 2 * _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="qserve-graph" role="img" width="{width:.0f}"'
        f' height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">',
        f"<title>{_escaped(f'Graph of {picture.root}')}</title>",
        f"<style>{_STYLE}{_colour_rules()}</style>",
        f'<rect class="paper" width="{width:.0f}" height="{height:.0f}" rx="10"/>',
        f'<g transform="translate({_MARGIN:.0f} {_MARGIN:.0f})">',
    ]
    lines += [_edge(edge, layout.routes[edge.child, edge.user]) for edge in picture.edges]
    lines += [_node(node, layout.boxes[node.id], *texts[node.id]) for node in picture.nodes]
    return "\n".join([*lines, "</g>", "</svg>"]) + "\n"


def _colour_rules() -> str:
    light: list[str] = []
    dark = [".qserve-graph .paper{fill:#11161d}", ".qserve-graph .edge{stroke:#728197}"]
    dark.append(".qserve-graph .head{fill:#728197}")
    for kind, colours in COLOURS.items():
        for rules, (fill, stroke, text) in zip((light, dark), colours, strict=True):
            rules.append(f".qserve-graph .{kind} .box{{fill:{fill};stroke:{stroke}}}")
            rules.append(f".qserve-graph .{kind} text{{fill:{text}}}")
    return "\n".join([*light, "@media (prefers-color-scheme:dark){", *dark, "}", ""])


def _note(node: PictureNode) -> str:
    if node.kind == "input":
        return ""
    if node.kind == "method":
        return str(node.deployment)
    return " · ".join(filter(None, [node.kind, _replicas(node), node.options.get("route_prefix")]))


def _replicas(node: PictureNode) -> str:
    """Return how many replicas there are, or "" for one."""
    scaling = node.options.get("autoscaling_config")
    if scaling is not None:
        return f"{scaling.get('min_replicas', 1)}–{scaling.get('max_replicas', 1)} replicas"
    count = node.options.get("num_replicas", 1)
    return "" if count == 1 else f"{count} replicas"


def _node(node: PictureNode, box: Box, title: str, note: str) -> str:
    radius = box.height / 2 if node.kind == "input" else 9
    middle = box.x + box.width / 2
    shape = f'width="{box.width:.1f}" height="{box.height:.1f}" rx="{radius:.1f}"'
    parts = [f'<g class="node {node.kind}" data-id={quoteattr(_clean(node.id))}>', f"<title>{_tooltip(node)}</title>"]
    if _replicas(node):
        parts.append(f'<rect class="box shadow" x="{box.x + 4:.1f}" y="{box.y + 4:.1f}" {shape}/>')
    parts.append(f'<rect class="box" x="{box.x:.1f}" y="{box.y:.1f}" {shape}/>')
    title_y = box.y + box.height / 2 + (-2.5 if note else 4.7)
    parts.append(f'<text class="title" x="{middle:.1f}" y="{title_y:.1f}">{_escaped(title)}</text>')
    if note:
        parts.append(f'<text class="note" x="{middle:.1f}" y="{title_y + 16:.1f}">{_escaped(note)}</text>')
    return "".join([*parts, "</g>"])


def _tooltip(node: PictureNode) -> str:
    words = [f"{node.kind} {node.label}"]
    if node.deployment is not None and node.deployment != node.label:
        words.append(f"deployment: {node.deployment}")
    words += [f"{name}: {value}" for name, value in node.options.items()]
    return _escaped("\n".join(words))


def _edge(edge: PictureEdge, points: Sequence[Point]) -> str:
    tip_x, tip_y = points[-1]
    # the line ends inside its arrow head, whose tip touches the border of the box
    ends = [*points[:-2], points[-2] if points[-2][0] < tip_x - _ARROW else (tip_x - _ARROW + 1, tip_y)]
    path = [f"M{ends[0][0]:.1f} {ends[0][1]:.1f}"]
    for number, ((x0, y0), (x1, y1)) in enumerate(pairwise(ends)):
        if number % 2 == 0 or abs(y1 - y0) < 0.05:
            path.append(f"L{x1:.1f} {y1:.1f}")
        else:
            half = (x0 + x1) / 2
            path.append(f"C{half:.1f} {y0:.1f} {half:.1f} {y1:.1f} {x1:.1f} {y1:.1f}")
    path.append(f"L{tip_x - _ARROW + 1:.1f} {tip_y:.1f}")
    head = f"M{tip_x:.1f} {tip_y:.1f}l{-_ARROW:.1f} {-_ARROW / 2:.1f}v{_ARROW:.1f}z"
    kind = "edge" if edge.is_data else "edge handle"
    return f'<path class="{kind}" d="{"".join(path)}"/><path class="head" d="{head}"/>'


def _box_width(title: str, note: str) -> float:
    return max(_width(title) * _TITLE_PX * 1.06, _width(note) * _NOTE_PX, 40.0) + 2 * _SIDE


def _width(text: str) -> float:
    """Return the width of a text in em: an estimate, because the reader's font is unknown."""
    return sum(map(_character_width, text))


def _character_width(character: str) -> float:
    if character in _NARROW:
        return 0.36
    if character in _WIDE or ord(character) >= 0x2E80:
        return 0.98
    return 0.7 if character.isupper() else 0.6


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def _escaped(text: str) -> str:
    return escape(_clean(text))


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("\ufffd", text)
