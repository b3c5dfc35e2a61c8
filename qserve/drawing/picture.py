"""The nodes and edges that every drawing of a graph shows, in drawing order; also as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qserve.define.compile import Numbering, assign_names
from qserve.define.drivers import is_driver
from qserve.define.options import DeploymentOptions
from qserve.graph.nodes import ClassNode, DAGNode, FunctionNode, InputAttributeNode, MethodNode, bottom_up

Kind = Literal["input", "function", "method", "class", "driver"]
_SHOWN_OPTIONS = (
    "num_replicas",
    "autoscaling_config",
    "max_concurrent_queries",
    "max_queued_requests",
    "ray_actor_options",
    "request_timeout_s",
    "cancel_on_disconnect",
    "route_prefix",
    "version",
)


@dataclass(frozen=True)
class PictureNode:
    """One box.

    Parameters:
      id: The node's label, with a number where it repeats; unique in the picture.
      label: The name to show: ``forward``, ``Model``, ``input[0]``.
      deployment: The deployment that does the work; None for inputs.
      options: The options of interest that the user has set.
    """

    id: str
    label: str
    kind: Kind
    deployment: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PictureEdge:
    """One arrow, from a node to one that uses it.

    Parameters:
      is_data: True when a value passes here with each request; otherwise the user has an instance or a handle.
    """

    child: str
    user: str
    is_data: bool = True


@dataclass(frozen=True)
class Picture:
    """A graph to draw.

    Parameters:
      root: The id of the drawn node.
      nodes: In the order of their first visit, the drawn node first.
      edges: From the drawn node downwards, depth first, each once.
    """

    root: str
    nodes: tuple[PictureNode, ...]
    edges: tuple[PictureEdge, ...]


def picture_of(node: DAGNode) -> Picture:
    """Collect a node and all that it needs, with repeated labels numbered in the order of their first appearance.

    Raises:
      TypeError: It is not a node.
    """
    if not isinstance(node, DAGNode):
        raise TypeError(f"only a node can be drawn, got {type(node).__name__}. Write .bind(...) first.")
    numbering = Numbering()
    ids: dict[DAGNode, str] = {}
    edges: list[PictureEdge] = []
    pending: list[tuple[DAGNode, DAGNode | None]] = [(node, None)]
    while pending:
        child, user = pending.pop()
        if child not in ids:
            ids[child] = numbering.take(child.get_label())
            pending.extend((grandchild, child) for grandchild in reversed(child.get_all_child_nodes()))
        if user is not None:
            is_data = _is_driver(user) or not (isinstance(child, ClassNode) or isinstance(user, ClassNode))
            edges.append(PictureEdge(ids[child], ids[user], is_data))
    try:
        names = assign_names(bottom_up(node))
    except ValueError:  # two deployments with the same name cannot run, but they can be drawn
        names = {}
    return Picture(ids[node], tuple(_picture_node(drawn, name, names) for drawn, name in ids.items()), tuple(edges))


def _is_driver(node: DAGNode) -> bool:
    return isinstance(node, ClassNode) and is_driver(node.get_body())


def _picture_node(node: DAGNode, name: str, names: Mapping[DAGNode, str]) -> PictureNode:
    if isinstance(node, MethodNode):
        owner = node.get_class_node()
        return PictureNode(name, node.get_label(), "method", names.get(owner, owner.get_label()))
    if isinstance(node, ClassNode | FunctionNode):
        kind: Kind = "driver" if _is_driver(node) else "class" if isinstance(node, ClassNode) else "function"
        deployment = names.get(node, node.get_label())
        return PictureNode(name, deployment, kind, deployment, _options(node.get_options()))
    if not isinstance(node, InputAttributeNode):
        return PictureNode(name, "input", "input")
    key = node.get_input_key()
    return PictureNode(name, f"input.{key.key}" if key.kind == "attribute" else f"input[{key.key!r}]", "input")


def _options(options: DeploymentOptions) -> dict[str, Any]:
    dumped = options.model_dump(include=set(_SHOWN_OPTIONS), exclude_unset=True)
    return {name: dumped[name] for name in _SHOWN_OPTIONS if dumped.get(name) is not None}


def to_json(picture: Picture) -> str:
    """Return a picture as JSON text, for programs that draw it themselves.

    Returns:
      ``root`` (the id of the drawn node), ``nodes`` (``id``, ``label``, ``kind``, ``deployment``, ``options``)
      and ``edges`` (``from``, ``to``, and ``data``: whether a value passes with each request).
    """
    view = {
        "root": picture.root,
        "nodes": [vars(node) for node in picture.nodes],
        "edges": [{"from": edge.child, "to": edge.user, "data": edge.is_data} for edge in picture.edges],
    }
    return json.dumps(view, indent=2, ensure_ascii=False, default=str) + "\n"
