"""A picture as plain data, for programs that draw it themselves."""

from __future__ import annotations

import json
from typing import Any

from qserve.drawing.picture import Picture


def json_view(picture: Picture) -> dict[str, Any]:
    """Return a picture as dicts, lists and strings.

    Returns:
      ``root`` (the id of the drawn node), ``nodes`` (``id``, ``label``, ``kind``, ``deployment``, ``options``)
      and ``edges`` (``from``, ``to``, and ``data``: whether a value passes with each request).
    """
    return {
        "root": picture.root,
        "nodes": [
            {
                "id": node.id,
                "label": node.label,
                "kind": node.kind,
                "deployment": node.deployment,
                "options": json.loads(json.dumps(dict(node.options), default=str)),
            }
            for node in picture.nodes
        ],
        "edges": [{"from": edge.child, "to": edge.user, "data": edge.is_data} for edge in picture.edges],
    }


def to_json(picture: Picture) -> str:
    """Return a picture as JSON text for people and programs."""
    return json.dumps(json_view(picture), indent=2, ensure_ascii=False) + "\n"
