"""The routes of web applications that have no OpenAPI document of their own: those of Flask and of Starlette."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from qserve.web.frameworks import is_a

_METHODS = ("get", "post", "put", "patch", "delete")
_IN_FLASK = re.compile(r"<(?:([A-Za-z_]\w*)(?:\([^<>]*\))?:)?([A-Za-z_]\w*)>")
_IN_STARLETTE = re.compile(r"\{([A-Za-z_]\w*)(?::([a-z]+))?\}")
_SCHEMAS: dict[str, dict[str, str]] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "uuid": {"type": "string", "format": "uuid"},
}
"""What a part of a path holds, by the name of its converter; all others hold text."""


class Entry(NamedTuple):
    """One operation: a path as OpenAPI writes it, the schemas of its parameters, and what is called.

    ``owner`` is the class of a view; None for a function.
    """

    path: str
    method: str
    parameters: dict[str, dict[str, str]]
    function: Callable[..., Any]
    owner: Any


def entries_of(app: Any) -> list[Entry]:
    """Return the operations of a Flask or Starlette application, those of its mounts included; none of any other."""
    if is_a(app, "flask", "Flask"):
        return list(_of_flask(app))
    return list(_of_starlette(app, "", {})) if is_a(app, "starlette.applications", "Starlette") else []


def _of_flask(app: Any) -> Iterator[Entry]:
    for rule in app.url_map.iter_rules():
        view = app.view_functions.get(rule.endpoint)
        if view is not None and not rule.endpoint.endswith("static"):
            parameters = {name: _SCHEMAS.get(kind, {"type": "string"}) for kind, name in _IN_FLASK.findall(rule.rule)}
            methods = [one.lower() for one in rule.methods or ()]
            yield from _entries(_IN_FLASK.sub(r"{\2}", rule.rule), methods, parameters, view, _class_of(view))


def _class_of(view: Any) -> Any:
    return getattr(view, "view_class", None)


def _of_starlette(app: Any, prefix: str, before: dict[str, dict[str, str]]) -> Iterator[Entry]:
    if is_a(app, "fastapi", "FastAPI") and not app.openapi_url:  # it hides them
        return
    for route in getattr(app, "routes", None) or ():
        path = prefix + _IN_STARLETTE.sub(r"{\1}", getattr(route, "path", ""))
        found = {name: _SCHEMAS.get(kind, {"type": "string"}) for name, kind in _IN_STARLETTE.findall(route.path)}
        if is_a(route, "starlette.routing", "Mount"):
            yield from _of_starlette(route.app, path, before | found)
        elif is_a(route, "starlette.routing", "Route") and route.include_in_schema:
            owner = route.endpoint if isinstance(route.endpoint, type) else None
            methods = _METHODS if route.methods is None else [one.lower() for one in route.methods]
            yield from _entries(path, methods, before | found, route.endpoint, owner)


def _entries(
    path: str, methods: Any, parameters: dict[str, dict[str, str]], function: Any, owner: Any
) -> Iterator[Entry]:
    for method in _METHODS:
        called = function if owner is None else getattr(owner, method, None)
        if method in methods and called is not None:
            yield Entry(path, method, parameters, called, owner)
