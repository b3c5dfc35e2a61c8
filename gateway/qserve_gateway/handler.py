"""``RequestHandler``: find the route of a request, submit the call, wait for its result, and reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qserve.base import failpoints
from qserve.base.settings import Settings
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Call, ItemRef, Ref
from qserve.exceptions import DeadlineExceeded, RequestCancelled
from qserve.http.message import BadRequest
from qserve.http.strict_json import loads
from qserve.wire.envelope import Answer
from qserve_gateway.jobs import Job, Jobs
from qserve_gateway.request.access import AccessPolicy, ClientLimits
from qserve_gateway.request.environ import (
    Environ,
    Refused,
    base_url,
    message_of,
    model_id_of,
    path_of,
    read_body,
    request_id_of,
    timeout_of,
    url_of,
    wrong_method,
)
from qserve_gateway.request.waiting import InFlightLimit, wait_for_result
from qserve_gateway.response.errors import error_reply, outcome_reply
from qserve_gateway.response.reply import Reply, StreamReply
from qserve_gateway.routes import PLAIN_METHODS, Route, RouteTable

AnyReply = Reply | StreamReply
_RESULT_TTL_S = 60.0
_COMPRESSED = "a JSON body must not be compressed: send it without Content-Encoding"


def handle(environ: Environ, serve: Callable[[Environ, str], Any], clients: ClientLimits | None) -> Any:
    """Serve one request within the limits of its client; errors become replies too."""
    request_id = request_id_of(environ)
    leave = reply = None
    try:
        leave = None if clients is None else clients.enter(environ)
        reply = serve(environ, request_id)
        return reply
    except Exception as error:
        return error_reply(error, request_id)
    finally:
        # the request of a client ends when its response is complete
        if leave is not None:
            if isinstance(reply, StreamReply):
                reply.on_close = leave
            else:
                leave()


@dataclass(frozen=True)
class RequestHandler:
    """Answers HTTP requests with the results of applications; it runs no user code.

    Parameters:
      table: Returns the current routes.
    """

    settings: Settings
    plane: ClientPlane
    table: Callable[[], RouteTable]
    access: AccessPolicy
    in_flight: InFlightLimit
    jobs: Jobs

    def handle(self, environ: Environ) -> AnyReply:
        """Handle one request; errors become replies too."""
        reply: AnyReply = handle(environ, self._serve, self.access.clients)
        return reply

    def _serve(self, environ: Environ, request_id: str) -> AnyReply:
        table = self.table()
        self.access.check(environ)
        path = path_of(environ)
        route, graph, path_params = _find(table, path, environ)
        record = route.record
        body = read_body(environ)
        timeout_s = timeout_of(environ, record.timeout_s or self.settings.request_timeout_s)
        job = None
        if "HTTP_PREFER" in environ or "HTTP_IDEMPOTENCY_KEY" in environ:
            job = Job.of(environ, body, record.name, self.settings)
        with self.in_flight:
            method, args, run = _target_of(environ, route, graph, path, path_params, body)
            call = Call(
                record.name,
                record.ingress,
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
            if job is not None:
                call = job.kept(call, self.settings)
            ref = self.plane.submit(call)
            if failpoints.ARMED:
                failpoints.hit("gateway.after_submit")
            if job is not None:
                return self.jobs.follow(ref, job, timeout_s, environ, request_id)
            self._wait(ref, timeout_s, environ)
        if isinstance(ref, ItemRef) and ref.items:
            return StreamReply(ref, request_id, timeout_s, self.plane.cancel)
        return outcome_reply(ref.outcome(), request_id, self.settings.show_errors)

    def _wait(self, ref: Ref, timeout_s: float, environ: Environ) -> None:
        try:
            if wait_for_result(ref, timeout_s, environ.get("gunicorn.socket")):
                return
        except RequestCancelled:
            self.plane.cancel(ref)
            raise
        if self.plane.expire(ref):
            return
        raise DeadlineExceeded(f"the request did not finish within {timeout_s:g} s")


def _find(table: RouteTable, path: str, environ: Environ) -> tuple[Route, str, dict[str, Any]]:
    """Return the route of a request, its graph, and the parameters in its path."""
    method = environ["REQUEST_METHOD"]
    route = table.match(path)
    if route is None and method == "CONNECT":  # its target is not a path
        raise wrong_method(method, PLAIN_METHODS)
    found = None if route is None else route.find(path)
    if route is None or found is None:
        other = path[:-1] if path.endswith("/") else f"{path}/"
        if route is not None and route.find(other) is not None:
            # FastAPI's routers redirect from a slash too many or too few as well
            url = url_of(environ, other)
            raise Refused(f"the path is {url}", "redirect", 307, headers=(("location", url),))
        message = f"Path '{path}' not found. Please ping {base_url(environ)}/-/routes for route table."
        raise Refused(message, "not_found", 404, detail=None if route is None else "Not Found")
    if method not in route.methods:
        raise wrong_method(method, route.methods, driver=route.record.driver is not None)
    return route, *found


def _target_of(
    environ: Environ, route: Route, graph: str, path: str, path_params: dict[str, Any], body: bytes
) -> tuple[str, tuple[Any, ...], str | None]:
    """Return the method and the arguments of a call, or of a graph where the input needs no user code."""
    driver = route.record.driver
    run = None if driver is None else graph
    if driver is not None and driver.adapter == "json_request":
        if environ.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
            raise BadRequest(_COMPRESSED, "unsupported_encoding", 415)
        return "__call__", (loads(body),), run
    message = message_of(environ, path, route.root_path, body, path_params)
    if driver is None or driver.adapter == "starlette_request":
        return "__call__", (message,), run
    return "adapt", (message, graph), None
