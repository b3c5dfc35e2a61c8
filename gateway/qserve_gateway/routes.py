"""Which application answers which path, and how; a table is never changed, only replaced."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qserve.wire.application import ApplicationRecord
from qserve.wire.envelope import Answer

_DRIVER_METHODS = ("GET", "POST")
# what remains of HTTP's methods, TRACE and CONNECT, is for proxies
PLAIN_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([a-z]+))?\}")
_KINDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "str": ("[^/]+", str),
    "path": ("(?s:.*)", str),
    "int": ("[0-9]{1,18}", int),
    "float": (r"[0-9]+(?:\.[0-9]+)?", float),
    "uuid": ("[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}", str),
}
"""Kinds of parameters, by starlette's names for them."""


@dataclass(frozen=True)
class Template:
    """A path with parameters, as FastAPI writes it: ``/users/{name}``, ``/files/{rest:path}``, ``/n/{n:int}``.

    Parameters:
      pattern: Matches whole paths; one group for each parameter.
      convert: Gives a parameter's value from its text, by name; those not here stay text.
    """

    pattern: re.Pattern[str]
    convert: Mapping[str, Callable[[str], Any]]

    @classmethod
    def of(cls, path: str) -> Template:
        """Read a path; braces that are no parameter stand for themselves."""
        pattern, end = "", 0
        convert: dict[str, Callable[[str], Any]] = {}
        for found in _PARAMETER.finditer(path):
            name, kind = found[1], found[2] or "str"
            if name in convert or kind not in _KINDS:
                continue
            regex, convert[name] = _KINDS[kind]
            pattern += f"{re.escape(path[end : found.start()])}(?P<{name}>{regex})"
            end = found.end()
        return cls(re.compile(pattern + re.escape(path[end:])), convert)

    def match(self, path: str) -> dict[str, Any] | None:
        """The parameters in a path, or None when it is another one."""
        found = self.pattern.fullmatch(path)
        return None if found is None else {name: self.convert[name](text) for name, text in found.groupdict().items()}


@dataclass(frozen=True)
class Route:
    """One application as the gateway serves it.

    Parameters:
      prefix: Its route prefix.
      record: The application.
      root_path: The prefix as ASGI wants it: "" for the root.
      methods: The HTTP methods that it answers.
      answer: The form in which its last step writes results.
      graphs: Graph names by path, or None when every path below the prefix is answered.
      templates: Instead of ``graphs`` where a driver's route has a ``{parameter}``: patterns of whole paths
        and graph names, in the driver's order.
    """

    prefix: str
    record: ApplicationRecord
    root_path: str
    methods: tuple[str, ...]
    answer: Answer
    graphs: Mapping[str, str] | None = None
    templates: tuple[tuple[Template, str], ...] = ()

    @classmethod
    def of(cls, record: ApplicationRecord, prefix: str) -> Route:
        """How an application under ``prefix`` is served."""
        root_path = "" if prefix == "/" else prefix
        driver = record.driver
        if driver is None:
            return cls(prefix, record, root_path, PLAIN_METHODS, Answer.PLAIN)
        graphs: dict[str, str] | None = None
        if driver.routes is not None:
            graphs = {root_path + route: route for route in driver.routes}
            if "/" in driver.routes:
                graphs[prefix] = "/"
        templates: tuple[tuple[Template, str], ...] = ()
        if graphs and any("{" in route for route in graphs.values()):
            # of routes that fit the same path the first one wins, so the plain ones have to stand in line too
            templates = tuple((Template.of(path), route) for path, route in graphs.items())
        return cls(prefix, record, root_path, _DRIVER_METHODS, Answer.JSON, graphs, templates)

    def find(self, path: str) -> tuple[str, dict[str, Any]] | None:
        """The graph that answers ``path`` and the parameters in the path; None when there is no such graph."""
        if self.graphs is None:
            return "", {}
        if not self.templates:
            graph = self.graphs.get(path)
            return None if graph is None else (graph, {})
        for template, graph in self.templates:
            found = template.match(path)
            if found is not None:
                return graph, found
        return None


@dataclass(frozen=True)
class RouteTable:
    """The routes of all applications, the longest prefix first."""

    routes: tuple[Route, ...] = ()
    _below: tuple[tuple[str, str, Route], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, records: Iterable[ApplicationRecord]) -> RouteTable:
        """The table of these applications; those without a route prefix have no HTTP."""
        routes = [Route.of(record, record.route_prefix) for record in records if record.route_prefix is not None]
        routes.sort(key=lambda route: len(route.prefix), reverse=True)
        below = tuple((route.root_path, f"{route.root_path}/", route) for route in routes)
        return cls(tuple(routes), below)

    def match(self, path: str) -> Route | None:
        """The application that answers ``path``: its prefix ends where a segment of the path does."""
        for root_path, below, route in self._below:
            if path.startswith(below) or path == root_path:
                return route
        return None

    def listing(self) -> dict[str, str]:
        """Route prefix to the name of the deployment that answers there."""
        return {route.prefix: route.record.ingress for route in self.routes}
