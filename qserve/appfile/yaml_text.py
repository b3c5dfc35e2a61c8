"""Reads YAML into a tree of plain values with their places. Cycles, duplicate keys and too many aliases are refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from qserve.base.log import printable
from qserve.exceptions import UsageProblem

DEPTH_LIMIT = 50
"""How deep lists and mappings may be nested."""
EXPANDED_LIMIT = 10_000
"""How many values the aliases of a file may expand to."""
_TAG = "tag:yaml.org,2002:"
_PLAIN = {f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str")}
_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Path = tuple[str | int, ...]


class FileError(UsageProblem):
    """Raised for a file that cannot be used; the message has a line for each mistake, which begins with its place."""


@dataclass(frozen=True, eq=False)
class Node:
    """A value of a file.

    Parameters:
      value: Plain: what JSON has.
      line, column: Where it is, from 1; of a value in a mapping, the place of its key. 0 if there is no text.
      children: The values of a mapping by key, those of a list by index.
      size: How many values it consists of.
    """

    value: Any
    line: int = 0
    column: int = 0
    children: Mapping[str | int, Node] = field(default_factory=dict)
    size: int = 1

    def at(self, path: Path) -> tuple[Node, Path]:
        """Return the value at a path, and the path. If there is none, return the nearest one above it."""
        node, found = self, list[str | int]()
        for step in path:
            if step not in node.children:
                break
            node = node.children[step]
            found.append(step)
        return node, tuple(found)


def place(name: str, node: Node, path: Path = ()) -> str:
    """Say where a value is: ``app.yaml:7:5 applications[0].name``."""
    where = f"{name}:{node.line}:{node.column}" if node.line else name
    words = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
    return printable(f"{where} {words}" if words else where)


def tree_of(value: Any) -> Node:
    """Return a plain value as a tree without places."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return Node(value, children={key: tree_of(child) for key, child in items})


def parse(text: bytes, name: str) -> Node:
    """Read a file's text.

    Parameters:
      name: The file's, for messages.

    Raises:
      FileError: It is not YAML, or not a plain value as JSON has it; the message has the line and the column.
    """
    try:
        return _Reader(name).read(yaml.parse(text, Loader=_READER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Node(None, mark.line + 1, mark.column + 1) if mark else Node(None)
        why = " ".join(filter(None, (error.problem, error.context)))
        raise FileError(f"{place(name, where)}: this is not YAML: {why}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise FileError(f"{name}: this is not YAML: {' '.join(str(error).split())}") from None


def yaml_of(value: Any) -> str:
    """Return plain data as YAML, with its keys in their order."""
    text: str = yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True)
    return text


class _Writer(yaml.SafeDumper):  # type: ignore[misc]
    """Indents lists below their key, as Ray Serve's files are, has no anchors, and writes enums as text."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Writer.add_multi_representer(str, lambda writer, value: writer.represent_str(str(value)))


class _Reader:
    """Builds the tree from the parser's events, because the parser itself has no limits."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._values = yaml.SafeLoader("")
        self._anchors: dict[str, Node | None] = {}
        self._expanded = 0

    def read(self, events: Iterator[yaml.Event]) -> Node:
        self._events = (event for event in events if not isinstance(event, yaml.StreamStartEvent))
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise FileError(f"{self._name}: it is empty")
        node = self._node(next(self._events), 0)
        next(self._events)
        second = next(self._events)
        if not isinstance(second, yaml.StreamEndEvent):
            raise self._error(second, "a second document begins; put everything into one")
        return node

    def _node(self, event: Any, depth: int) -> Node:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.AliasEvent):
            return replace(self._alias(event), line=line, column=column)
        if depth > DEPTH_LIMIT:
            raise self._error(event, f"it is nested more than {DEPTH_LIMIT} levels deep")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._scalar(event), line, column)
        else:
            self._check_tag(event, {None, "!", f"{_TAG}map", f"{_TAG}seq"})
            is_list = isinstance(event, yaml.SequenceStartEvent)
            children = self._list(depth) if is_list else self._mapping(depth)
            plain = {key: child.value for key, child in children.items()}
            size = 1 + sum(child.size for child in children.values())
            node = Node(list(plain.values()) if is_list else plain, line, column, children, size)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any) -> Node:
        if event.anchor not in self._anchors:
            raise self._error(event, f"no anchor &{event.anchor} comes before this alias")
        node = self._anchors[event.anchor]
        if node is None:
            raise self._error(event, f"the anchor &{event.anchor} contains itself")
        self._expanded += node.size
        if self._expanded > EXPANDED_LIMIT:
            raise self._error(event, f"the aliases stand for more than {EXPANDED_LIMIT} values")
        return node

    def _list(self, depth: int) -> dict[str | int, Node]:
        found: dict[str | int, Node] = {}
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found[len(found)] = self._node(event, depth + 1)
        return found

    def _mapping(self, depth: int) -> dict[str | int, Node]:
        found: dict[str | int, Node] = {}
        merged: dict[str | int, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = event.value if isinstance(event, yaml.ScalarEvent) else None
            tag = self._tag(event) if key is not None else ""
            if tag == f"{_TAG}merge":
                merged = {**self._merged(event, depth), **merged}
                continue
            if key is None or tag != f"{_TAG}str":
                shown = "" if key is None else f" {key!r}"
                raise self._error(event, f"the key{shown} is not text; put it into quotes")
            if key in found:
                raise self._error(event, f"the key {key!r} is here twice; the first is in line {found[key].line}")
            mark = event.start_mark
            found[key] = replace(self._node(next(self._events), depth + 1), line=mark.line + 1, column=mark.column + 1)
        return {**merged, **found}

    def _merged(self, key: Any, depth: int) -> dict[str | int, Node]:
        """Return what ``<<`` brings in: the entries of a mapping, or of several, of which the first wins."""
        given = self._node(next(self._events), depth + 1)
        mappings = [*given.children.values()] if isinstance(given.value, list) else [given]
        if not all(isinstance(node.value, dict) for node in mappings):
            raise self._error(key, "'<<' takes a mapping, or a list of them")
        return {name: child for node in reversed(mappings) for name, child in node.children.items()}

    def _scalar(self, event: Any) -> Any:
        tag = self._tag(event)
        self._check_tag(event, _PLAIN, tag)
        try:
            value = self._values.construct_object(yaml.ScalarNode(tag, event.value))
        except (ValueError, KeyError):
            raise self._error(event, f"{event.value[:40]!r} is not a value of {tag.removeprefix(_TAG)}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(event, f"{event.value!r} is not a number that JSON has")
        return value

    def _tag(self, event: Any) -> str:
        if event.tag not in (None, "!"):
            return str(event.tag)
        tag: str = self._values.resolve(yaml.ScalarNode, event.value, event.implicit)
        return tag

    def _check_tag(self, event: Any, known: set[Any], tag: str | None = "") -> None:
        tag = event.tag if tag == "" else tag
        if tag not in known:
            kind = str(tag).removeprefix(_TAG)
            advice = "; put it into quotes" if isinstance(event, yaml.ScalarEvent) else ""
            raise self._error(event, f"a value of the kind {kind!r} is not JSON{advice}")

    def _error(self, event: Any, message: str) -> FileError:
        mark = event.start_mark
        return FileError(f"{place(self._name, Node(None, mark.line + 1, mark.column + 1))}: {printable(message)}")
