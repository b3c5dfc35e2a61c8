"""Make an OpenAPI document a part of a larger one: its names are made unique, and what has no place there is left out.

A document may come from user code, so nothing is taken for granted: whatever has another shape than OpenAPI gives it is
dropped, and a reference to what is not in the document becomes a schema that allows everything.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

METHODS = ("get", "put", "post", "delete", "options", "head", "patch")
_OPERATION = {"summary": str, "description": str, "externalDocs": dict, "requestBody": dict, "deprecated": bool}
"""What is taken of an operation as it is, beside extensions."""
_IN = ("query", "header", "path", "cookie")
_STATUS = re.compile(r"[1-5](\d\d|XX)|default")
_COMPONENTS = ("schemas", "responses", "parameters", "examples", "requestBodies", "headers", "securitySchemes")
_NAMED = frozenset((
    "$defs", "content", "definitions", "dependentSchemas", "encoding", "patternProperties", "properties",
    "scopes", *_COMPONENTS,
))  # fmt: skip
"""Keywords whose value is an object in which the keys are names that somebody chose."""
_VALUES = frozenset(("const", "default", "enum", "example", "value"))
"""Keywords whose value is data, in which nothing is a reference."""
_DROPPED = frozenset(("callbacks", "itemSchema", "links", "servers"))
"""What would lead a client to other hosts, needs operations by names that are others here, or is no part of 3.1."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::[a-z]+)?\}")
_DEPTH = 100


def part_of(document: Any, app: str) -> dict[str, Any]:
    """Return the operations of a document by path and method, with the components that they name.

    Parameters:
      document: An OpenAPI document of version 3.
      app: The application that it describes, whose name comes before each name in it.

    Raises:
      ValueError: It is nested too deeply.
    """
    return _Part(_object(document), _safe(app)).whole(app)


def path_with(path: str) -> tuple[str, list[str]]:
    """Return a path as OpenAPI writes it, and the names of its parameters: ``/files/{rest:path}`` is ``/files/{rest}``.

    What is not a parameter is escaped as in a URL, braces included.
    """
    written, names, end = "", list[str](), 0
    for found in _PARAMETER.finditer(path):
        if found[1] in names:
            continue
        written += quote_path(path[end : found.start()]) + f"{{{found[1]}}}"
        names.append(found[1])
        end = found.end()
    return written + quote_path(path[end:]), names


def quote_path(path: str) -> str:
    """Return a path as it is written in a URL; what is escaped already stays so."""
    return quote(path, safe="/:@!$&'()*+,;=~%", errors="replace")


@dataclass
class _Part:
    """One document on its way into a larger one.

    Parameters:
      prefix: Comes before each name.
    """

    document: dict[str, Any]
    prefix: str
    names: dict[str, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)

    def whole(self, app: str) -> dict[str, Any]:
        components = _object(self.document.get("components"))
        kinds = {kind: _object(components.get(kind)) for kind in _COMPONENTS}
        self.names = {
            f"#/components/{kind}/{_escaped(name)}": f"{self.prefix}.{_safe(name)}"
            for kind, found in kinds.items()
            for name in found
        }
        info = _object(self.document.get("info"))
        text = "\n\n".join(part for part in (info.get("summary"), info.get("description")) if isinstance(part, str))
        paths: dict[str, Any] = {}
        for path, item in _object(self.document.get("paths")).items():
            if isinstance(path, str) and (operations := dict(self._operations(path, _object(item), app))):
                paths.setdefault(path_with(path)[0], {}).update(operations)
        return {
            "description": text,
            "paths": paths,
            "components": {
                kind: {self._named(kind, name): self._copy(value, "") for name, value in found.items()}
                for kind, found in kinds.items()
                if found
            },
        }

    def _operations(self, path: str, item: dict[str, Any], app: str) -> Iterator[tuple[str, dict[str, Any]]]:
        shared = _list(item.get("parameters"))
        for method in METHODS:
            found = item.get(method)
            if not isinstance(found, dict):
                continue
            operation = {
                key: self._copy(value, "")
                for key, value in found.items()
                if isinstance(value, _OPERATION.get(key, object if str(key).startswith("x-") else ()))
            }
            tags = [tag for tag in _list(found.get("tags")) if isinstance(tag, str)]
            operation["tags"] = [f"{app}: {tag}" for tag in tags] or [app]
            operation["operationId"] = self._unique(found.get("operationId") or f"{method}_{path}")
            given = [self._copy(one, "") for one in [*shared, *_list(found.get("parameters"))] if isinstance(one, dict)]
            operation["parameters"] = self._parameters(path, given)
            responses = {
                str(status): {"description": "", **_object(self._copy(response, ""))}
                for status, response in _object(found.get("responses")).items()
                if _STATUS.fullmatch(str(status))
            }
            operation["responses"] = responses or {"200": {"description": "The result."}}
            security = found.get("security", self.document.get("security"))
            if isinstance(security, list):
                operation["security"] = [
                    {self._named("securitySchemes", name): scopes for name, scopes in _object(one).items()}
                    for one in security
                ]
            yield method, operation

    def _parameters(self, path: str, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return an operation's parameters, with those of the path that it does not name; ``self`` is not one."""
        found: dict[Any, dict[str, Any]] = {}
        in_path = path_with(path)[1]
        for one in given:
            key = one.get("$ref") or (one.get("name"), one.get("in"))
            if "$ref" not in one and not (isinstance(one.get("name"), str) and one.get("in") in _IN):
                continue
            if key == ("self", "query") or (one.get("in") == "path" and one["name"] not in in_path):
                continue
            found[key] = one
        # one that is only referred to may be a path's
        named = {_object(self._resolved(one)).get("name") for one in found.values()}
        for name in in_path:
            if name not in named:
                found[name] = {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        return list(found.values())

    def _resolved(self, parameter: dict[str, Any]) -> Any:
        written = {new: old for old, new in self.names.items()}
        old = written.get(str(parameter.get("$ref", "")).removeprefix("#/components/parameters/"), "")
        name = old.rpartition("/")[2]
        return _object(_object(self.document.get("components")).get("parameters")).get(name, parameter)

    def _named(self, kind: str, name: Any) -> str:
        return self.names.get(f"#/components/{kind}/{_escaped(name)}", f"{self.prefix}.{_safe(str(name))}")

    def _unique(self, given: Any) -> str:
        word = _NOT_IN_NAMES.sub("_", str(given))[:200]
        number, name = 1, f"{self.prefix}.{word}"
        while name in self.ids:
            number += 1
            name = f"{self.prefix}.{word}_{number}"
        self.ids.add(name)
        return name

    def _copy(self, value: Any, key: Any, depth: int = 0) -> Any:
        """Copy a part of the document with the new names; ``key`` is the keyword that it is the value of, or ""."""
        if depth > _DEPTH:
            raise ValueError("it is nested too deeply")
        if isinstance(value, list):
            inner = "default" if key in _VALUES or key == "examples" else ""
            return [self._copy(one, inner, depth + 1) for one in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if not isinstance(value, dict):
            return value
        if key in _VALUES:  # many tools follow what looks like a reference in data as well
            return {str(name): self._copy(one, "default", depth + 1) for name, one in value.items() if name != "$ref"}
        if key == "mapping":
            return {str(name): self._reference(one) for name, one in value.items()}
        if key in _NAMED:
            return {str(name): self._copy(one, "", depth + 1) for name, one in value.items()}
        return self._copy_object(value, depth)

    def _copy_object(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        """Copy an object whose keys are keywords."""
        copied = {str(name): self._copy(one, name, depth + 1) for name, one in value.items() if name not in _DROPPED}
        if "$ref" in value:
            copied["$ref"] = self._reference(value["$ref"])
            if not copied["$ref"]:
                return {}
        if "itemSchema" in value:  # of a later OpenAPI: the schema of each item of a stream
            copied.setdefault("schema", {})
        return copied

    def _reference(self, reference: Any) -> str:
        new = self.names.get(str(reference))
        return f"{str(reference).rpartition('/')[0]}/{new}" if new else ""


def _safe(name: str) -> str:
    """Return a name with the characters only that OpenAPI allows; two names never become one."""
    safe = _NOT_IN_NAMES.sub("_", name)
    return safe if safe == name else f"{safe[:100]}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:6]}"


def _escaped(name: Any) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
