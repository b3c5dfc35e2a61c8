"""The nodes and edges that every drawing of a graph shows, in drawing order; also as plain data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qserve.define.compile import Numbering, assign_names
from qserve.define.drivers import is_driver
from qserve.define.options import DeploymentOptions
from qserve.graph.nodes import ClassNode, DAGNode, FunctionNode, InputAttributeNode, InputNode, MethodNode, bottom_up

Kind = Literal["input", "function", "method", "class", "driver"]
_SHOWN_OPTIONS = (
    "num_replicas",
    "autoscaling_config",
    "max_concurrent_queries",
    "max_queued_requests",
    "ray_actor_options",
    "request_timeout_s",
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
    """Collect a node and all that it needs; nothing is built or run.

    Repeated labels are numbered in the order of their first appearance.

    Raises:
      TypeError: It is not a node.
    """
    if not isinstance(node, DAGNode):
        raise TypeError(f"only a node can be drawn, got {type(node).__name__}. Write .bind(...) first.")
    numbering = Numbering()
    ids: dict[DAGNode, str] = {node: numbering.take(node.get_label())}
    edges: dict[PictureEdge, None] = {}
    path: list[tuple[DAGNode, Iterator[DAGNode]]] = [(node, iter(node.get_all_child_nodes()))]
    while path:
        user, rest = path[-1]
        child = next(rest, None)
        if child is None:
            path.pop()
            continue
        if child not in ids:
            ids[child] = numbering.take(child.get_label())
            path.append((child, iter(child.get_all_child_nodes())))
        edges[PictureEdge(ids[child], ids[user], _is_data(child, user))] = None
    names = _names(node)
    nodes = tuple(_picture_node(drawn, name, names) for drawn, name in ids.items())
    return Picture(ids[node], nodes, tuple(edges))


def _names(root: DAGNode) -> Mapping[DAGNode, str]:
    try:
        return assign_names(bottom_up(root))
    except ValueError:  # two deployments with the same name cannot run, but they can be drawn
        return {}


def _picture_node(node: DAGNode, name: str, names: Mapping[DAGNode, str]) -> PictureNode:
    owner = node.get_class_node() if isinstance(node, MethodNode) else node
    if not isinstance(owner, ClassNode | FunctionNode):
        return PictureNode(name, _input_label(node), "input")
    deployment = names.get(owner, owner.get_label())
    label = node.get_label() if isinstance(node, MethodNode) else deployment
    options = {} if isinstance(node, MethodNode) else _options(owner.get_options())
    return PictureNode(name, label, _kind(node), deployment, options)


def _kind(node: DAGNode) -> Kind:
    if isinstance(node, ClassNode):
        return "driver" if is_driver(node.get_body()) else "class"
    return "method" if isinstance(node, MethodNode) else "function"


def _input_label(node: DAGNode) -> str:
    if not isinstance(node, InputAttributeNode):
        return "input" if isinstance(node, InputNode) else node.get_label()
    key = node.get_input_key()
    return f"input.{key.key}" if key.kind == "attribute" else f"input[{key.key!r}]"


def _options(options: DeploymentOptions) -> dict[str, Any]:
    chosen = [name for name in _SHOWN_OPTIONS if name in options.model_fields_set]
    dumped = options.model_dump(include=set(chosen), exclude_unset=True)
    return {name: dumped[name] for name in chosen if dumped[name] is not None}


def _is_data(child: DAGNode, user: DAGNode) -> bool:
    if not isinstance(child, ClassNode):
        return True
    return isinstance(user, ClassNode) and is_driver(user.get_body())


def json_view(picture: Picture) -> dict[str, Any]:
    """Return a picture as dicts, lists and strings, for programs that draw it themselves.

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
    """Return a picture as JSON text."""
    return json.dumps(json_view(picture), indent=2, ensure_ascii=False) + "\n"
