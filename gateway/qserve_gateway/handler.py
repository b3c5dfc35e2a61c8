"""``RequestHandler``: find the route of a request, submit the call, wait for its result, and reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from qserve.base import failpoints
from qserve.base.settings import Settings
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Call, ItemRef, Ref
from qserve.exceptions import DeadlineExceeded, RequestCancelled
from qserve.http.message import BadRequest
from qserve.http.strict_json import loads
from qserve.wire.envelope import Answer
from qserve.wire.outcome import State
from qserve_gateway.jobs import Job, Jobs
from qserve_gateway.request.access import AccessPolicy
from qserve_gateway.request.environ import (
    Environ,
    base_url,
    message_of,
    model_id_of,
    path_of,
    read_body,
    request_id_of,
    timeout_of,
    url_of,
)
from qserve_gateway.request.waiting import InFlightLimit, wait_for_result
from qserve_gateway.response.errors import NoRoute, Redirect, error_reply, failure_reply, not_ready_reply
from qserve_gateway.response.reply import Reply, result_reply
from qserve_gateway.response.streaming import StreamReply
from qserve_gateway.routes import PLAIN_METHODS, Route, RouteTable

AnyReply = Reply | StreamReply
_RESULT_TTL_S = 60.0


class RequestHandler:
    """Answers HTTP requests with the results of applications; it runs no user code.

    Parameters:
      table: Returns the current routes; None while they are not known.
    """

    def __init__(
        self,
        settings: Settings,
        plane: ClientPlane,
        table: Callable[[], RouteTable | None],
        access: AccessPolicy,
        in_flight: InFlightLimit,
        jobs: Jobs,
    ) -> None:
        self._settings = settings
        self._plane = plane
        self._table = table
        self._access = access
        self._in_flight = in_flight
        self._jobs = jobs

    def handle(self, environ: Environ) -> AnyReply:
        """Handle one request; errors become replies too."""
        request_id = request_id_of(environ)
        try:
            leave = self._access.enter(environ)
            if leave is None:
                return self._serve(environ, request_id)
            return _counted(lambda: self._serve(environ, request_id), leave)
        except Exception as error:
            return error_reply(error, request_id)

    def _serve(self, environ: Environ, request_id: str) -> AnyReply:
        table = self._table()
        if table is None:
            return not_ready_reply(request_id)
        self._access.check(environ)
        match = _find(table, path_of(environ), environ)
        record = match.route.record
        body = read_body(environ)
        timeout_s = timeout_of(environ, record.timeout_s or self._settings.request_timeout_s)
        job = None
        if "HTTP_PREFER" in environ or "HTTP_IDEMPOTENCY_KEY" in environ:
            job = Job.of(environ, body, record.name, self._settings)
        with self._in_flight:
            call = _call_of(environ, match, body, timeout_s, request_id)
            if job is not None:
                call = job.kept(call, self._settings)
            ref = self._plane.submit(call)
            if failpoints.ARMED:
                failpoints.hit("gateway.after_submit")
            if job is not None:
                return self._jobs.follow(ref, job, timeout_s, environ, request_id)
            self._wait(ref, timeout_s, environ)
        if isinstance(ref, ItemRef) and ref.items:
            return StreamReply(ref, request_id, timeout_s, self._plane.cancel)
        outcome = ref.outcome()
        if outcome.state == State.DONE:
            return result_reply(outcome.payload, request_id)
        return failure_reply(outcome, request_id, self._settings.show_errors)

    def _wait(self, ref: Ref, timeout_s: float, environ: Environ) -> None:
        try:
            if wait_for_result(ref, timeout_s, environ.get("gunicorn.socket")):
                return
        except RequestCancelled:
            self._plane.cancel(ref)
            raise
        self._plane.expire(ref)
        raise DeadlineExceeded(f"the request did not finish within {timeout_s:g} s")


def _counted(serve: Callable[[], AnyReply], leave: Callable[[], None]) -> AnyReply:
    """Serve a request, and call ``leave`` once its response is complete."""
    try:
        reply = serve()
    except BaseException:
        leave()
        raise
    if isinstance(reply, StreamReply):
        reply.on_close = leave
    else:
        leave()
    return reply


class _Match(NamedTuple):
    """The route of a request, and what its path says."""

    route: Route
    graph: str
    path: str
    path_params: dict[str, Any]


def _find(table: RouteTable, path: str, environ: Environ) -> _Match:
    method = environ["REQUEST_METHOD"]
    route = table.match(path)
    if route is None and method == "CONNECT":  # its target is not a path
        raise NoRoute("method CONNECT is not allowed here", 405, PLAIN_METHODS)
    graph = None if route is None else route.find(path)
    if route is None or graph is None:
        other = path[:-1] if path.endswith("/") else f"{path}/"
        if route is not None and route.find(other) is not None:
            raise Redirect(url_of(environ, other))
        ping = f"Please ping {base_url(environ)}/-/routes for route table."
        raise NoRoute(f"Path '{path}' not found. {ping}", 404, driver=route is not None)
    if method not in route.methods:
        driver = route.record.driver is not None
        raise NoRoute(f"method {method} is not allowed here", 405, route.methods, driver)
    return _Match(route, graph[0], path, graph[1])


def _call_of(environ: Environ, match: _Match, body: bytes, timeout_s: float, request_id: str) -> Call:
    """Return the call that answers a request: of the ingress, or of a graph where the input needs no user code."""
    route, graph, path, path_params = match
    driver = route.record.driver
    method, run = "__call__", None if driver is None else graph
    if driver is not None and driver.adapter == "json_request":
        args: tuple[Any, ...] = (_json_body(environ, body),)
    else:
        args = (message_of(environ, path, route.root_path, body, path_params),)
        if driver is not None and driver.adapter != "starlette_request":
            method, args, run = "adapt", (*args, graph), None
    return Call(
        route.record.name,
        route.record.ingress,
        method,
        args,
        graph=run,
        timeout_s=timeout_s,
        result_ttl_s=_RESULT_TTL_S,
        trace_id=request_id,
        route=route.prefix,
        model_id=model_id_of(environ),
        answer=route.answer,
        owned=True,
        stream=route.answer is Answer.PLAIN,
    )


def _json_body(environ: Environ, body: bytes) -> Any:
    if environ.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
        message = "a JSON body must not be compressed: send it without Content-Encoding"
        raise BadRequest(message, "unsupported_encoding", 415)
    return loads(body)
