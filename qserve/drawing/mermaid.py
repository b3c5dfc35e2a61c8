"""A picture as a Mermaid flowchart, which Markdown pages show as a drawing."""

from __future__ import annotations

from qserve.drawing.picture import Picture, PictureNode
from qserve.drawing.svg import COLOURS

_SHAPES = {
    "input": ('(["', '"])'),
    "function": ('["', '"]'),
    "method": ('("', '")'),
    "class": ('[["', '"]]'),
    "driver": ('{{"', '"}}'),
}
# inside quotes these keep a meaning: HTML, entities, the end of the quotes, Markdown
_ESCAPES = {ord(character): f"#{ord(character)};" for character in '#"<>&`'}


def to_mermaid(picture: Picture) -> str:
    """Return a picture as a Mermaid flowchart: solid arrows are values, dotted ones instances and handles."""
    names = {node.id: f"n{number}" for number, node in enumerate(picture.nodes)}
    lines = ["flowchart LR"]
    lines += [f"  {names[node.id]}{_box(node)}:::{node.kind}_kind" for node in picture.nodes]
    for edge in picture.edges:
        arrow = "-->" if edge.is_data else "-.->"
        lines.append(f"  {names[edge.child]} {arrow} {names[edge.user]}")
    used = {node.kind for node in picture.nodes}
    for kind, ((fill, stroke, text), _) in COLOURS.items():
        if kind in used:
            lines.append(f"  classDef {kind}_kind fill:{fill},stroke:{stroke},color:{text}")
    return "\n".join(lines) + "\n"


def _box(node: PictureNode) -> str:
    before, after = _SHAPES[node.kind]
    label = f"{node.deployment}.{node.label}" if node.kind == "method" else node.label
    return before + " ".join(label.split()).translate(_ESCAPES) + after
