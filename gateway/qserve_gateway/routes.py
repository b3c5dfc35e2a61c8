"""Which application answers which path, and how; a table is never changed, only replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qserve.registry import ApplicationRecord
from qserve.wire.envelope import Answer

ADAPTED_HERE = ("json_request", "starlette_request")
"""Adapters that need no user code: the gateway does their work."""

_DRIVER_METHODS = ("GET", "POST")
# what remains of HTTP's methods, TRACE and CONNECT, is for proxies
PLAIN_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


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
    """

    prefix: str
    record: ApplicationRecord
    root_path: str
    methods: tuple[str, ...]
    answer: Answer
    graphs: Mapping[str, str] | None = None

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
        return cls(prefix, record, root_path, _DRIVER_METHODS, Answer.JSON, graphs)


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
