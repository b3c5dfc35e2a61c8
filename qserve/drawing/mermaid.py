"""A picture as a Mermaid flowchart, which Markdown pages show as a drawing."""

from __future__ import annotations

from qserve.drawing.picture import Picture, PictureNode

_SHAPES = {
    "input": ('(["', '"])'),
    "function": ('["', '"]'),
    "method": ('("', '")'),
    "class": ('[["', '"]]'),
    "driver": ('{{"', '"}}'),
}
_COLOURS = {
    "input": "fill:#eef2f6,stroke:#64748b,color:#1e293b",
    "function": "fill:#e4f5ec,stroke:#2f855a,color:#123f2a",
    "method": "fill:#e7effc,stroke:#3b6fd4,color:#16305f",
    "class": "fill:#f1eafc,stroke:#7c4fd0,color:#3a1f6e",
    "driver": "fill:#fdf0dc,stroke:#c27803,color:#5c3904",
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
    lines += [f"  classDef {kind}_kind {style}" for kind, style in _COLOURS.items() if kind in used]
    return "\n".join(lines) + "\n"


def _box(node: PictureNode) -> str:
    before, after = _SHAPES[node.kind]
    label = f"{node.deployment}.{node.label}" if node.kind == "method" else node.label
    return before + " ".join(label.split()).translate(_ESCAPES) + after
