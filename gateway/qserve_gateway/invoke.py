"""The way of a request through the gateway: route, adapt, submit, wait, relay. No user code runs here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from qserve.exceptions import BackPressureError, DeadlineExceeded, RequestCancelled
from qserve.http.bad_request import BadRequest
from qserve.http.render import parse
from qserve.http.strict_json import loads
from qserve.items import ItemRef
from qserve.plane.base import CallOptions
from qserve.plane.client import ClientPlane
from qserve.promise import Promise
from qserve.ref import Ref
from qserve.settings import Settings
from qserve.wire.envelope import Answer
from qserve_gateway.bodies import read_body
from qserve_gateway.clients import is_gone
from qserve_gateway.hosts import AllowedHosts, check_host
from qserve_gateway.incoming import (
    Environ,
    base_url,
    message_of,
    model_id_of,
    path_of,
    request_id_of,
    timeout_of,
    url_of,
)
from qserve_gateway.problems import Elsewhere, NoRoute, of_error, of_outcome, unavailable
from qserve_gateway.reply import Reply
from qserve_gateway.routes import PLAIN_METHODS, Route, RouteTable
from qserve_gateway.streaming import StreamReply

WAITING_LIMIT = 512
"""Requests that wait in one process; the rest of its connections stay free for refusals and health."""
Answered = Reply | StreamReply
_RESULT_TTL_S = 60.0
_LOOK_EVERY_S = 0.25


class Front:
    """Answers HTTP requests with the results of applications.

    Parameters:
      settings: The default deadline, and whether tracebacks are shown.
      plane: Carries the calls.
      table: Gives the current routes; None until they are known.
      allowed: The host names that are answered.
    """

    def __init__(
        self,
        settings: Settings,
        plane: ClientPlane,
        table: Callable[[], RouteTable | None],
        allowed: AllowedHosts = None,
    ) -> None:
        self._settings = settings
        self.allowed = allowed
        self._plane = plane
        self._table = table
        self._waiting = 0

    def answer(self, environ: Environ) -> Answered:
        """Answer one request; errors become answers as well."""
        request_id = request_id_of(environ)
        try:
            return self._serve(environ, request_id)
        except Exception as error:
            return of_error(error, request_id)

    def _serve(self, environ: Environ, request_id: str) -> Answered:
        table = self._table()
        if table is None:
            return unavailable("the applications are not known yet", request_id)
        check_host(environ, self.allowed)
        found = _find(table, path_of(environ), environ)
        route = found.route
        body = read_body(environ)
        timeout_s = timeout_of(environ, route.record.timeout_s or self._settings.request_timeout_s)
        options = CallOptions(
            timeout_s=timeout_s,
            result_ttl_s=_RESULT_TTL_S,
            trace_id=request_id,
            route=route.prefix,
            model_id=model_id_of(environ),
            answer=route.answer,
            owned=True,
            stream=route.answer is Answer.PLAIN,
        )
        if self._waiting >= WAITING_LIMIT:
            raise BackPressureError("this gateway has as many requests waiting as it may")
        self._waiting += 1
        try:
            ref = self._submit(environ, found, body, options)
            self._wait(ref, timeout_s, environ)
        finally:
            self._waiting -= 1
        return self._relay(ref, request_id, timeout_s)

    def _submit(self, environ: Environ, found: _Found, body: bytes, options: CallOptions) -> Ref:
        route, graph, path, path_params = found
        record, driver = route.record, route.record.driver
        if driver is not None and driver.adapter == "json_request":
            return self._plane.run(record.name, graph, (_json_body(environ, body),), {}, options)
        request = message_of(environ, path, route.root_path, body, path_params)
        if driver is None:
            return self._plane.call(record.name, record.ingress, "__call__", (request,), {}, options)
        if driver.adapter == "starlette_request":
            return self._plane.run(record.name, graph, (request,), {}, options)
        return self._plane.call(record.name, record.ingress, "adapt", (request, graph), {}, options)

    def _wait(self, ref: Ref, timeout_s: float, environ: Environ) -> None:
        if _answered(ref).wait(min(_LOOK_EVERY_S, timeout_s)):
            return
        # a request that takes long: from now on, see whether its client still wants it
        sock = environ.get("gunicorn.socket")
        end = time.monotonic() + timeout_s - _LOOK_EVERY_S
        while (left_s := end - time.monotonic()) > 0:
            if is_gone(sock):
                self._plane.cancel(ref)
                raise RequestCancelled("the client closed the connection")
            if _answered(ref).wait(min(_LOOK_EVERY_S, left_s)):
                return
        self._plane.expire(ref)
        raise DeadlineExceeded(f"the request was not finished within {timeout_s:g} s")

    def _relay(self, ref: Ref, request_id: str, timeout_s: float) -> Answered:
        if isinstance(ref, ItemRef) and ref.has_items():
            return StreamReply(ref, request_id, timeout_s, self._plane.cancel)
        outcome = ref.outcome()
        if outcome.state != "d":
            return of_outcome(outcome, request_id, self._settings.show_errors)
        status, named, body = parse(outcome.payload)
        headers = [(name, value) for name, value in named]
        headers.append(("x-request-id", request_id))
        return Reply(status, headers, body)


def _answered(ref: Ref) -> Promise:
    """Set when a request has ended, or the first item of its answer is there."""
    return ref.changed() if isinstance(ref, ItemRef) else ref.done


class _Found(NamedTuple):
    """Who answers a request."""

    route: Route
    graph: str
    path: str
    path_params: dict[str, Any]


def _find(table: RouteTable, path: str, environ: Environ) -> _Found:
    method = environ["REQUEST_METHOD"]
    route = table.match(path)
    if route is None and method == "CONNECT":  # its target is no path
        raise NoRoute("CONNECT is not allowed here", 405, PLAIN_METHODS)
    graph = None if route is None else route.find(path)
    if route is None or graph is None:
        other = path[:-1] if path.endswith("/") else f"{path}/"
        if route is not None and route.find(other) is not None:
            raise Elsewhere(url_of(environ, other))
        ping = f"Please ping {base_url(environ)}/-/routes for route table."
        raise NoRoute(f"Path '{path}' not found. {ping}", 404, driver=route is not None)
    if method not in route.methods:
        driver = route.record.driver is not None
        raise NoRoute(f"{method} is not allowed here", 405, route.methods, driver)
    return _Found(route, graph[0], path, graph[1])


def _json_body(environ: Environ, body: bytes) -> Any:
    if environ.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
        message = "a JSON body must not be compressed: send it without Content-Encoding"
        raise BadRequest(message, "unsupported_encoding", 415)
    return loads(body)
