"""The table of routes, which says which application serves which path, and the thread that keeps it up to date."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from qserve.base.log import get_logger
from qserve.base.once import may_say
from qserve.base.turns import Turns
from qserve.broker.connection import process_name
from qserve.broker.registry import NO_CHANGE, pick
from qserve.calls.client import ClientPlane
from qserve.exceptions import BrokerStateLost, BrokerUnavailable, BrokerUnsafe, PayloadError
from qserve.wire.application import ApplicationRecord
from qserve.wire.envelope import Answer
from qserve_gateway.request.environ import Refused

log = get_logger(__name__)

BLOCK_S = 2.0
"""How often a gateway reads which deployments cannot be started, and whether the broker has lost its data."""
CHECK_INTERVAL_S = 60.0
"""How often the broker's settings are checked; every two seconds while they are wrong."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.03, 2.0
_EAGER_FOR_S = 3.0
"""A gateway and its broker are often started together, so failures in the first seconds are normal."""
_SAID_FOR_S = 5.0

PLAIN_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""All methods but TRACE and CONNECT, which are for proxies."""
_DRIVER_METHODS = ("GET", "POST")

_NONE_STAGED: Mapping[str, ApplicationRecord | None] = MappingProxyType({})
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([a-z]+))?\}")
_KINDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "str": ("[^/]+", str),
    "path": ("(?s:.*)", str),
    "int": ("[0-9]{1,18}", int),
    "float": (r"[0-9]+(?:\.[0-9]+)?", float),
    "uuid": ("[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}", str),
}
"""Pattern and conversion of each kind of parameter, by starlette's names."""


@dataclass(frozen=True)
class PathTemplate:
    """A path with parameters, as FastAPI writes it: ``/users/{name}``, ``/files/{rest:path}``, ``/n/{n:int}``.

    Parameters:
      pattern: Matches whole paths, with one group for each parameter.
      convert: Converts the text of a parameter to its value, by the parameter's name.
    """

    pattern: re.Pattern[str]
    convert: Mapping[str, Callable[[str], Any]]

    @classmethod
    def of(cls, path: str) -> PathTemplate:
        """Parse a path; braces that are not a parameter are ordinary characters."""
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
        """Return the parameters in a path; None when it does not match."""
        found = self.pattern.fullmatch(path)
        return None if found is None else {name: self.convert[name](text) for name, text in found.groupdict().items()}


@dataclass(frozen=True)
class Route:
    """How the gateway serves one application.

    Parameters:
      root_path: The prefix as ASGI expects it: "" for the root.
      answer: The form in which its last step writes results.
      streams: Graphs whose results come as items.
      graphs: Graph names by path; None when every path below the prefix is served.
      templates: Used instead of ``graphs`` where a driver's route has a ``{parameter}``: patterns of whole paths and
        graph names, in the driver's order.
      staged: The route of the version that is being deployed and gets a part of the requests; None for none.
    """

    prefix: str
    record: ApplicationRecord
    root_path: str
    methods: tuple[str, ...]
    answer: Answer
    graphs: Mapping[str, str] | None = None
    templates: tuple[tuple[PathTemplate, str], ...] = ()
    staged: Route | None = None
    streams: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: ApplicationRecord, prefix: str, staged: ApplicationRecord | None = None) -> Route:
        """Return the route of an application under ``prefix``; a ``staged`` version is served there as well."""
        if staged is not None and staged.route_prefix is not None:
            return replace(cls.of(record, prefix), staged=cls.of(staged, prefix))
        root_path = "" if prefix == "/" else prefix
        driver = record.driver
        if driver is None:
            return cls(prefix, record, root_path, PLAIN_METHODS, Answer.PLAIN)
        graphs: dict[str, str] | None = None
        if driver.routes is not None:
            graphs = {root_path + route: route for route in driver.routes}
            if "/" in driver.routes:
                graphs[prefix] = "/"
        templates: tuple[tuple[PathTemplate, str], ...] = ()
        if graphs and any("{" in route for route in graphs.values()):
            # the first of several matching routes wins, so those without parameters must be in the list too
            templates = tuple((PathTemplate.of(path), route) for path, route in graphs.items())
        return cls(prefix, record, root_path, _DRIVER_METHODS, Answer.JSON, graphs, templates, streams=driver.streams)

    def picked(self) -> Route:
        """Return the route of the version that gets the next request."""
        staged = self.staged
        return self if staged is None or pick(self.record, staged.record) is self.record else staged

    def find(self, path: str) -> tuple[str, dict[str, Any]] | None:
        """Return the graph that serves ``path`` and the parameters in the path; None when there is no such graph."""
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
    """The routes of all applications, the longest prefix first; replaced as a whole, never changed."""

    routes: tuple[Route, ...]

    @classmethod
    def of(
        cls, records: Iterable[ApplicationRecord], staged: Mapping[str, ApplicationRecord | None] = _NONE_STAGED
    ) -> RouteTable:
        """Return the table of these applications; those without a route prefix are not served over HTTP.

        Parameters:
          staged: The versions that are being deployed and get a part of the requests, by application.
        """
        routes = [
            Route.of(record, record.route_prefix, staged.get(record.name))
            for record in records
            if record.route_prefix is not None
        ]
        return cls(tuple(sorted(routes, key=lambda route: len(route.prefix), reverse=True)))

    def match(self, path: str) -> Route | None:
        """Return the route that serves ``path``; its prefix matches whole segments only."""
        for route in self.routes:
            if path.startswith(route.root_path) and path[len(route.root_path) :][:1] in ("", "/"):
                return route
        return None

    def listing(self) -> dict[str, str]:
        """Return the names of the deployments that receive the requests, by route prefix."""
        return {route.prefix: route.record.ingress for route in self.routes}


class RouteWatcher:
    """Keeps the route table up to date; while the broker cannot be reached, the last table remains in use.

    Parameters:
      plane: Its registry is read; it is given every application, so that no request has to fetch it.
      check: Called before the broker is used; raises BrokerError when it must not be.
      check_again: Called every ``CHECK_INTERVAL_S``; raises BrokerUnsafe when the broker must no longer be used.
      upkeep: Called in each turn, at least every ``BLOCK_S``; None for nothing.
    """

    def __init__(
        self,
        plane: ClientPlane,
        check: Callable[[], None] = lambda: None,
        check_again: Callable[[], None] = lambda: None,
        upkeep: Callable[[], None] | None = None,
    ) -> None:
        self.table: RouteTable | None = None
        self._plane = plane
        self._check = check
        self._check_again = check_again
        self._upkeep = upkeep
        self._checked_at = time.monotonic()
        self._unsafe: BrokerUnsafe | None = None
        self._turns = Turns(
            "updating the routes",
            log,
            first_s=_SHORTEST_PAUSE_S,
            longest_s=_LONGEST_PAUSE_S,
            eager_for_s=_EAGER_FOR_S,
        )
        self._seen = ""
        self._records: dict[str, ApplicationRecord] = {}
        self._staged: dict[str, ApplicationRecord | None] = {}
        self._lost = self._is_incomplete = False
        self._beat = plane.keys.gateway(process_name())

    def current(self) -> RouteTable:
        """Return the current routes.

        Raises:
          BrokerStateLost: The broker has lost the applications.
          BrokerUnsafe: The broker might discard requests that it accepts.
          Refused: The routes are not known yet.
        """
        if self._unsafe is not None:
            raise BrokerUnsafe(str(self._unsafe))
        if self._lost:
            raise BrokerStateLost("the broker has lost all applications")
        if self.table is None:
            message = "the gateway has not read the applications yet"
            raise Refused(message, BrokerUnavailable.code, 503, retry_after_s=1)
        return self.table

    def start(self) -> None:
        """Read the routes, then keep them up to date in a thread (a greenlet in the gateway).

        They are read before this returns, because a process that joins others on their port must know the routes
        before its first request.
        """
        with self._turns:
            self.tick()
        threading.Thread(target=self.run, name="qserve-routes", daemon=True).start()

    def run(self) -> None:
        """Keep the table up to date for as long as the process lives."""
        while True:
            time.sleep(self._turns.pause_s)
            with self._turns:
                self.tick()
                self._turns.eager_for_s = 0.0

    def tick(self) -> None:
        """Wait for a change for at most ``BLOCK_S``, and apply it.

        Raises:
          BrokerUnavailable: The broker does not answer; the table stays as it was.
        """
        if self.table is None:
            self._check()
            self.refresh()
            return
        self._turns.attempt("the broker's settings", self._check_settings)
        if self._upkeep is not None:
            self._turns.attempt("webhooks", self._upkeep)
        registry = self._plane.registry
        if registry.wait_for_change(self._seen, BLOCK_S) != self._seen or self._is_incomplete:
            self.refresh()
        elif self._seen != NO_CHANGE == registry.last_change():
            if not self._lost:
                log.error("the broker has lost all applications; refusing requests until they are deployed again")
            self._lost = True
        else:
            self._publish()

    def refresh(self) -> None:
        """Read all applications, and publish which change of the registry is served now.

        One that cannot be read is served as it was, and is read again in the next turn.

        Raises:
          BrokerUnavailable: The broker does not answer; the table stays as it was.
        """
        registry = self._plane.registry
        # the ID is read first, so that a change in between is noticed by the next read
        newest, names = registry.last_change(), registry.names()
        for name in self._records.keys() - {*names}:
            del self._records[name]
            self._say(f"application {name!r} is not served any more")
        read = [self._turns.attempt(f"application {name}", self._read, name) for name in names]
        self.table = RouteTable.of(self._records.values(), self._staged)
        self._seen, self._lost, self._is_incomplete = newest, False, not all(read)
        self._publish()

    def _read(self, name: str) -> None:
        try:
            found = self._plane.registry.serving(name)
        except PayloadError as error:  # only a deploy can change that
            what = "is served as it was" if name in self._records else "is not served"
            log.error("application %r %s: %s", name, what, error)
            return
        if found is None:
            if self._records.pop(name, None) is not None:
                self._say(f"application {name!r} is not served any more")
            return
        record, staged = found
        RouteTable.of([record], {name: staged})  # raises before anything is changed
        self._plane.cache_application(record, staged, for_s=math.inf)
        before = self._records.get(name)
        if before is None or before.version != record.version:
            where = record.route_prefix or "no route"
            self._say(f"application {name!r} is served at {where}, version {record.version}")
        self._records[name], self._staged[name] = record, staged

    def _say(self, text: str) -> None:
        if may_say(text, _SAID_FOR_S):  # by one of the processes that serve
            log.info("%s", text)

    def _publish(self) -> None:
        """Say which change of the registry is served, and read on the way which deployments cannot be started."""
        known, before = self._plane.faults, {*self._plane.faults}
        self._plane.registry.publish(self._beat, self._seen)
        for name in known.keys() - before:
            what = "refusing requests for application %r: no replica of %r can be started: %s"
            log.error(what, name, known[name].deployment, known[name].message)

    def _check_settings(self) -> None:
        now = time.monotonic()
        if self._unsafe is None and now - self._checked_at < CHECK_INTERVAL_S:
            return
        self._checked_at = now
        try:
            self._check_again()
        except BrokerUnsafe as error:
            if self._unsafe is None:
                log.error("refusing requests until the broker's settings are fixed: %s", error)
            self._unsafe = error
        else:
            if self._unsafe is not None:
                log.warning("the broker's settings are fixed; accepting requests again")
            self._unsafe = None
