"""``RequestHandler``: find the route of a request, submit the call, wait for its result, and reply."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from wsproto import WSConnection

from qserve.base import failpoints
from qserve.base.settings import Settings
from qserve.calls.client import ClientPlane
from qserve.calls.items import ItemRef
from qserve.calls.ref import Call, Ref
from qserve.exceptions import DeadlineExceeded, PayloadTooLarge, RequestCancelled
from qserve.graph.advance import inputs_of
from qserve.http.message import BadRequest, HttpMessage
from qserve.http.strict_json import loads
from qserve.tracing.switch import switch
from qserve.wire.application import ApplicationRecord
from qserve.wire.claim import MARK, claim_in
from qserve.wire.envelope import Answer
from qserve.wire.outcome import ANNOUNCED, SESSION, State
from qserve.wire.outside import Stored
from qserve.wire.replies import length
from qserve_gateway.jobs import Job, Jobs
from qserve_gateway.request.access import AccessPolicy, ClientLimits, check_page
from qserve_gateway.request.body import Limit, held_bytes, read_body, read_or_store
from qserve_gateway.request.carried import Forwarded, carried_in
from qserve_gateway.request.environ import (
    FOUND,
    REQUEST_ID,
    SMALL,
    TRACEPARENT,
    Environ,
    Refused,
    arrived_body,
    base_url,
    line_of,
    may_ask_for_job,
    message_of,
    model_id_of,
    must_close,
    path_of,
    request_id_of,
    timeout_of,
    url_of,
    wrong_method,
)
from qserve_gateway.request.handshake import NOT_SUPPORTED, opened
from qserve_gateway.request.json_process import JsonProcess
from qserve_gateway.request.waiting import (
    POLL_INTERVAL_S,
    STREAM_BYTES,
    InFlightLimit,
    Place,
    is_disconnected,
    wait_for_result,
)
from qserve_gateway.response.errors import error_reply, failure_reply
from qserve_gateway.response.reply import Reply, StreamReply, call_when_sent, result_reply
from qserve_gateway.response.session import Session, SocketReply
from qserve_gateway.routes import PLAIN_METHODS, Route, RouteTable
from qserve_gateway.server_span import below_span, traced

AnyReply = Reply | StreamReply | SocketReply
_RESULT_TTL_S = 60.0
_ASKS_FOR_TRACE = "HTTP_X_QSERVE_TRACE"
_NO_WEBSOCKETS = "the route is a DAGDriver's, which serves no WebSockets: send an HTTP request"
_COMPRESSED = "a JSON body must not be compressed: send it without Content-Encoding"


def handle(environ: Environ, serve: Callable[[Environ, str], Any], clients: ClientLimits | None) -> Any:
    """Serve one request within the limits of its client; errors become replies too."""
    request_id = environ[REQUEST_ID] = request_id_of(environ)
    leave = None
    reply: Any = None
    try:
        leave = None if clients is None else clients.enter(environ)
        reply = serve(environ, request_id)
    except Exception as error:
        reply = error_reply(error, request_id, line_of(environ))
    finally:
        # the request of a client ends when its response is complete
        if leave is not None:
            call_when_sent(reply, leave)
    if must_close(environ):
        reply.ends_connection = True
    return reply


@dataclass(frozen=True)
class RequestHandler:
    """Replies to HTTP requests with the results of applications; it runs no user code.

    Parameters:
      table: Returns the current routes.
      forwarded: The headers that requests carry to user code; None for none.
      check_page: Raises BadRequest if the page that opens a WebSocket must not.
    """

    settings: Settings
    plane: ClientPlane
    table: Callable[[], RouteTable]
    access: AccessPolicy
    in_flight: InFlightLimit
    jobs: Jobs
    check_page: Callable[[Environ], None] = check_page
    parser: JsonProcess = field(default_factory=JsonProcess)
    forwarded: Forwarded | None = None

    @cached_property
    def _limits(self) -> tuple[Limit, Limit]:
        """The most bytes of a body, and of one that is parsed here."""
        body = Limit(self.settings.max_body_bytes, "QSERVE_MAX_BODY_BYTES")
        return body, min(body, Limit(self.settings.max_json_bytes, "QSERVE_MAX_JSON_BYTES"))

    def handle(self, environ: Environ) -> AnyReply:
        """Handle one request; errors become replies too."""
        answer = partial(handle, environ, self._serve, self.access.clients)
        spans = switch.spans
        reply: AnyReply = answer() if spans is None else traced(spans, environ, answer)
        return reply

    def _serve(self, environ: Environ, request_id: str) -> AnyReply:
        table = self.table()
        self.access.check(environ)
        protocol = self._opened(environ) if "HTTP_UPGRADE" in environ else None
        found = _find(table, path_of(environ), environ)
        record = found.route.record
        if protocol is not None and record.driver is not None:
            raise BadRequest(_NO_WEBSOCKETS, NOT_SUPPORTED, 501)
        environ[FOUND] = found.route, found.graph
        if self.plane.faults and (error := self.plane.unavailable(record, record.ingress)):
            raise error
        timeout_s = timeout_of(environ, record.timeout_s or self.settings.request_timeout_s)
        place = self.in_flight.enter(found.route.prefix)
        reply: AnyReply | None = None
        try:
            # in its own method, whose end frees the body: the result may come much later
            ref, job = self._submit(environ, request_id, found, timeout_s, place, protocol is not None)
            if failpoints.ARMED:
                failpoints.hit("gateway.after_submit")
            if job is not None:
                reply = self.jobs.follow(ref, job, timeout_s, environ, request_id, place, _reader_of(record))
                return reply
            end = time.monotonic() + timeout_s
            self._wait(ref, timeout_s, environ, record, protocol is not None)
            if isinstance(ref, ItemRef) and ref.items:
                try:
                    self._take_room(STREAM_BYTES, place, end, environ)
                except RequestCancelled:
                    self._on_disconnect(record, ref, protocol is not None)
                    raise
                except Refused:
                    self.plane.cancel(ref)
                    raise
                self.plane.add_credit(ref.request_id, 1)  # all of the window may come now
                if protocol is None:
                    reply = StreamReply(ref, request_id, end, partial(self._on_disconnect, record))
                else:
                    session = Session(ref, self.plane, self.settings, environ["gunicorn.socket"], protocol, request_id)
                    reply = SocketReply(session)
                return reply
            reply = self._reply(ref, request_id, record, place, end, environ)
            return reply
        finally:
            call_when_sent(reply, place.leave)

    def _reply(
        self, ref: Ref, request_id: str, record: ApplicationRecord, place: Place, end: float, environ: Environ
    ) -> Reply:
        """Return the reply to a request that has ended."""
        outcome = ref.outcome()
        if outcome.state == ANNOUNCED:
            self._take_room(length(outcome), place, end, environ)
            outcome = self.plane.fetch(ref.request_id, end - time.monotonic())
        if outcome.state != State.DONE:
            show_errors, line = self.settings.show_errors, line_of(environ)
            return failure_reply(outcome, request_id, show_errors, line, _reader_of(record))
        claim = claim_in(outcome.payload) if outcome.payload.startswith(MARK) else None
        if claim is not None:
            self._take_room(held_bytes(claim.store), place, end, environ)
        return result_reply(outcome.payload, request_id, self.plane.store, ref)

    def _opened(self, environ: Environ) -> WSConnection | None:
        """Return the protocol of a WebSocket that is to be opened; None for an offer that a server may ignore."""
        if "websocket" not in environ["HTTP_UPGRADE"].lower():
            return None
        self.check_page(environ)
        return opened(environ)

    def _submit(
        self, environ: Environ, request_id: str, found: _Found, timeout_s: float, place: Place, is_session: bool
    ) -> tuple[Ref, Job | None]:
        """Read a request's body and submit the call; a large body in memory counts until the broker has it."""
        digest = hashlib.sha256() if may_ask_for_job(environ) else None
        body = self._read_body(environ, found, place, digest)
        if not isinstance(body, Stored):
            return self._submit_body(environ, request_id, found, timeout_s, place, is_session, body, body)
        store = self.plane.store
        try:
            told = b"" if digest is None else digest.digest()
            ref, job = self._submit_body(environ, request_id, found, timeout_s, place, is_session, body, told)
        except BaseException:
            store.forget([body.claim])
            raise
        if not ref.request_id:  # the call was refused here: the broker does not know of the body
            store.forget([body.claim])
        return ref, job

    def _read_body(self, environ: Environ, found: _Found, place: Place, digest: Any) -> bytes | Stored:
        driver = found.route.record.driver
        is_parsed = driver is not None and driver.adapter == "json_request"
        limit = self._limits[is_parsed]
        body = arrived_body(environ, limit.size)
        if body is not None:
            return body
        if is_parsed:  # here: to store it first would be one more way
            return read_body(environ, place.take, limit)
        return read_or_store(environ, place.take, limit, self.plane.store, None if digest is None else digest.update)

    def _submit_body(
        self,
        environ: Environ,
        request_id: str,
        found: _Found,
        timeout_s: float,
        place: Place,
        is_session: bool,
        body: bytes | Stored,
        told: bytes,
    ) -> tuple[Ref, Job | None]:
        """Submit the call of a request.

        Parameters:
          told: What differs by the body in the fingerprint of a job.
        """
        route, record = found.route, found.route.record
        size = 0 if isinstance(body, Stored) else len(body)
        place.hold(size if size > SMALL else 0)
        job = None
        if is_session:
            timeout_s = self.settings.websocket_s
            method, args, run = SESSION, (_opening_of(environ, found),), None
        else:
            if may_ask_for_job(environ):
                job = Job.of(environ, told, record.name, self.settings, self.jobs.receivers)
            method, args, run = self._target_of(environ, found, body, timeout_s, place)
        del body
        forwarded = self.forwarded
        carried = carried_in(environ, forwarded) if forwarded or "HTTP_TRACEPARENT" in environ else None
        if switch.spans is not None:
            carried = below_span(switch.spans, environ, route.prefix, record.name, carried)
        if carried is not None:
            environ[TRACEPARENT] = carried.traceparent
        call = Call(
            record.name,
            record.ingress,
            method,
            args,
            graph=run,
            timeout_s=timeout_s,
            # until then the answer may wait for room
            result_ttl_s=_RESULT_TTL_S if is_session else max(_RESULT_TTL_S, timeout_s),
            trace_id=request_id,
            route=route.prefix,
            model_id=model_id_of(environ),
            answer=route.answer,
            owned=True,
            stream=route.answer is Answer.PLAIN or found.graph in route.streams,
            carried=carried,
            version=found.version,
            is_traced=environ.get(_ASKS_FOR_TRACE) == "1",
        )
        if job is not None:
            call = job.kept(call, self.settings)
        ref = self.plane.submit(call) if size <= SMALL else self._submit_large(call, place, timeout_s)
        return ref, job

    def _submit_large(self, call: Call, place: Place, timeout_s: float) -> Ref:
        if not self.in_flight.wait_for_turn(place.taken, timeout_s):
            raise self.in_flight.refusal()
        submitted = place.hand_over()
        try:
            ref = self.plane.submit(call)
        except PayloadTooLarge as error:
            submitted()
            raise _too_large(error) from error
        except BaseException:
            submitted()
            raise
        ref.acceptance.call_when_set(submitted)
        return ref

    def _target_of(
        self, environ: Environ, found: _Found, body: bytes | Stored, timeout_s: float, place: Place
    ) -> tuple[str, tuple[Any, ...], str | None]:
        """Return the method and the arguments of a call, or of a graph where the input needs no user code."""
        route, graph, path, path_params, _ = found
        driver = route.record.driver
        run = None if driver is None else graph
        if driver is not None and driver.adapter == "json_request":
            if environ.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
                raise BadRequest(_COMPRESSED, "unsupported_encoding", 415)
            assert isinstance(body, bytes)
            if len(body) <= SMALL:
                return "__call__", (loads(body),), run
            try:
                document = self.parser.parse(body, inputs_of(route.record.plans[graph][0]), timeout_s)
            except PayloadTooLarge as error:
                raise _too_large(error) from error
            place.hold(document.size)
            return "__call__", (document,), run
        message = message_of(environ, path, route.root_path, body, path_params)
        if driver is None or driver.adapter == "starlette_request":
            return "__call__", (message,), run
        return "adapt", (message, graph), None

    def _take_room(self, size: int, place: Place, end: float, environ: Environ) -> None:
        """Wait for room for an answer, which stays in the broker meanwhile, and take it."""
        while not self.in_flight.wait_for_room(size, min(POLL_INTERVAL_S, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                raise self.in_flight.refusal()
            if is_disconnected(environ.get("gunicorn.socket")):
                raise RequestCancelled("the client closed the connection")
        place.take(size)

    def _wait(self, ref: Ref, timeout_s: float, environ: Environ, record: ApplicationRecord, is_session: bool) -> None:
        try:
            if wait_for_result(ref, timeout_s, environ.get("gunicorn.socket")):
                return
        except RequestCancelled:
            self._on_disconnect(record, ref, is_session)
            raise
        if self.plane.expire(ref):
            return
        raise DeadlineExceeded(f"the request did not finish within {timeout_s:g} s")

    def _on_disconnect(self, record: ApplicationRecord, ref: Ref, is_session: bool = False) -> None:
        if record.cancel_on_disconnect or is_session:
            self.plane.cancel(ref)
        elif isinstance(ref, ItemRef):
            ref.drop_items()


class _Found(NamedTuple):
    """The route of a request, its graph, its path, the parameters in that, and its version where there are several."""

    route: Route
    graph: str
    path: str
    path_params: dict[str, Any]
    version: ApplicationRecord | None = None


def _opening_of(environ: Environ, found: _Found) -> HttpMessage:
    """Return the opening handshake of a WebSocket as the data that a replica receives."""
    scheme = "wss" if environ["wsgi.url_scheme"] == "https" else "ws"
    return message_of(environ, found.path, found.route.root_path, b"", found.path_params, scheme)


def _reader_of(record: ApplicationRecord) -> str:
    """Return the driver whose input the gateway reads from a JSON body; "" for another application."""
    return record.ingress if record.driver is not None and record.driver.adapter == "json_request" else ""


def _too_large(error: PayloadTooLarge) -> Refused:
    return Refused(f"the request (body and headers) is too large: {error}", "body_too_large", 413)


def _find(table: RouteTable, path: str, environ: Environ) -> _Found:
    method = environ["REQUEST_METHOD"]
    route, version = table.match(path), None
    if route is not None and route.staged is not None:
        route = route.picked()
        version = route.record
    if route is None and method == "CONNECT":  # its target is not a path
        raise wrong_method(method, PLAIN_METHODS)
    found = None if route is None else route.find(path)
    if route is None or found is None:
        other = path[:-1] if path.endswith("/") else f"{path}/"
        if route is not None and route.find(other) is not None:
            # FastAPI's routers redirect from a slash too many or too few as well
            url = url_of(environ, other)
            raise Refused(f"redirect to {url}", "redirect", 307, headers=(("location", url),))
        message = f"Path '{path}' not found. Please ping {base_url(environ)}/-/routes for route table."
        raise Refused(message, "not_found", 404, detail=None if route is None else "Not Found")
    if method not in route.methods:
        raise wrong_method(method, route.methods, driver=route.record.driver is not None)
    return _Found(route, found[0], path, found[1], version)
