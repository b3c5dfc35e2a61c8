"""Jobs: requests whose results outlive their connections, to be fetched by ID or by the same idempotency key.

A job is stored in the broker only, so every gateway of an installation can answer for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.connection import broker_errors, refusal
from qserve.broker.functions import read_found
from qserve.broker.library import Command
from qserve.calls.client import ClientPlane
from qserve.calls.mailbox import is_late, outcome_of
from qserve.calls.ref import Call, Ref
from qserve.exceptions import DeadlineExceeded, PayloadError, ResultUnavailable
from qserve.http.message import BadRequest
from qserve.http.render import to_json
from qserve.wire.claim import claim_in
from qserve.wire.codec import Codec
from qserve.wire.events import END_ID
from qserve.wire.outcome import ANNOUNCED, Outcome, State, items_in
from qserve.wire.progress import Progress
from qserve.wire.replies import length
from qserve.wire.request_ids import id_of_key, is_genuine, is_of_value, is_request_id, new_response_id
from qserve.wire.sealing import open_header
from qserve.wire.webhook import Target
from qserve_gateway.request.body import held_bytes
from qserve_gateway.request.environ import CLIENT_ID, Environ, Refused, key_of, model_id_of, wrong_method
from qserve_gateway.request.receivers import HEADER, SECRET, Receivers
from qserve_gateway.request.waiting import InFlightLimit, Place, wait_for_result
from qserve_gateway.response.errors import failure_reply, problem_reply
from qserve_gateway.response.events import Events, progress_of
from qserve_gateway.response.reply import Reply, call_when_sent, result_reply

log = get_logger(__name__)

JOBS_PATH = "/-/requests/"
"""The path for fetching results and cancelling requests; the request's ID follows it."""
WAIT_LIMIT_S = 30.0
VALUE_LIMIT = 1024 * 1024
"""The longest value, in bytes as it is stored, that a gateway converts to JSON."""

READERS_LIMIT = 256
"""The most clients that may follow requests at a time, in each process of the gateway."""
WEBHOOK = key_of(HEADER)
_EVENTS = "/events"
"""After the ID, the path for following a request."""
_METHODS = ("DELETE", "GET", "HEAD")
_ID_HEADER = "x-qserve-request-id"
_POLL_AFTER_S = 1
_WITHOUT_KEY = "once"
"""The fingerprint of a job that has no idempotency key, and so cannot be submitted twice."""


class Preference(NamedTuple):
    """The supported part of the header ``Prefer`` (RFC 7240).

    Parameters:
      respond_async: Reply 202 at once and let the client come back, instead of letting it wait.
      wait_s: How long it would wait first.
    """

    respond_async: bool = False
    wait_s: float = 0.0


def preference_of(environ: Environ) -> Preference:
    """Return the client's preferences; unknown and malformed ones are ignored, as the RFC requires."""
    respond_async, wait_s = False, 0.0
    for part in environ.get("HTTP_PREFER", "").split(","):
        name, _, value = part.partition(";")[0].partition("=")
        name, value = name.strip().lower(), value.strip().strip('"')
        if name == "respond-async":
            respond_async = True
        elif name == "wait" and value.isascii() and value.isdigit():
            wait_s = min(float(value[:9]), WAIT_LIMIT_S)
    return Preference(respond_async, wait_s)


class Job(NamedTuple):
    """A request whose result is kept.

    Parameters:
      request_id: The ID by which the result is fetched.
      fingerprint: A digest of everything that a second request with the same idempotency key must have in common
        with the first.
      webhook: Where its end is sent; "" for nowhere.
    """

    request_id: str
    fingerprint: str
    preference: Preference
    webhook: str = ""

    @classmethod
    def of(
        cls, environ: Environ, body: bytes, app: str, settings: Settings, receivers: Receivers | None = None
    ) -> Job | None:
        """Return the job that a request for an application asks for with its headers; None for a plain request.

        Parameters:
          body: All of it, or its digest.

        Raises:
          BadRequest: The idempotency key is malformed, or no webhook may be sent to where it is asked for.
        """
        preference = preference_of(environ)
        key = environ.get("HTTP_IDEMPOTENCY_KEY")
        if key is None:
            if preference.respond_async:
                return cls(new_response_id(), _WITHOUT_KEY, preference, _webhook_of(environ, receivers))
            if WEBHOOK in environ:
                raise BadRequest(f"{HEADER} needs Prefer: respond-async, or an Idempotency-Key", "invalid_webhook")
            return None
        if len(key) > 1 and key[0] == key[-1] == '"':
            key = key[1:-1]
        if not CLIENT_ID.fullmatch(key):
            message = "Idempotency-Key must have 1 to 128 characters of A-Z a-z 0-9 _ . : -"
            raise BadRequest(message, "invalid_idempotency_key")
        request_id = id_of_key(key, app, settings.namespace, settings.secret_key)
        webhook = _webhook_of(environ, receivers)
        return cls(request_id, _fingerprint(environ, body, settings.tenant_header), preference, webhook)

    def kept(self, call: Call, settings: Settings) -> Call:
        """Return the call with a result that is stored under the job's ID, whole, for as long as the settings say."""
        return call._replace(
            result_ttl_s=settings.result_ttl_s,
            owned=False,
            stream=False,
            request_id=self.request_id,
            fingerprint=self.fingerprint,
            webhook=Target(self.webhook, call.trace_id).encode() if self.webhook else b"",
        )


def _webhook_of(environ: Environ, receivers: Receivers | None) -> str:
    url: str = environ.get(WEBHOOK, "")
    if WEBHOOK in environ:
        if receivers is None:
            message = f"{HEADER}: this gateway sends no webhooks: its operator has to set {SECRET}"
            raise BadRequest(message, "invalid_webhook")
        receivers.check(url)
    return url


def _fingerprint(environ: Environ, body: bytes, tenant_header: str) -> str:
    digest = hashlib.sha256()
    parts = [
        environ["REQUEST_METHOD"],
        environ["PATH_INFO"],
        environ.get("QUERY_STRING", ""),
        environ.get("CONTENT_TYPE", ""),
        model_id_of(environ),
        # two users of one application who choose the same key must not receive each other's results
        environ.get("HTTP_AUTHORIZATION", ""),
    ]
    if tenant_header:  # nor must two tenants
        parts.append(environ.get(key_of(tenant_header), ""))
    if WEBHOOK in environ:
        parts.append(f"webhook {environ[WEBHOOK]}")
    for part in (*(text.encode("latin-1") for text in parts), body):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True)
class Jobs:
    """Follows the jobs that were submitted here, and handles requests below ``/-/requests/``.

    Parameters:
      receivers: Who may receive webhooks; None if there are none.
      on_due: Called when a request has ended whose end is to be sent.
    """

    settings: Settings
    plane: ClientPlane
    in_flight: InFlightLimit
    receivers: Receivers | None = None
    on_due: Callable[[], object] = bool
    readers: set[Events] = field(default_factory=set, init=False)

    def follow(
        self, ref: Ref, job: Job, timeout_s: float, environ: Environ, trace_id: str, place: Place, reader: str = ""
    ) -> Reply:
        """Return the reply to a request that has just been submitted.

        It is 202 as soon as the request is accepted, if the client prefers that. A client that disconnects, or waits
        too long, cancels nothing: it may come back for the result.

        Parameters:
          reader: See ``failure_reply``.

        Raises:
          RequestCancelled: The client closed the connection.
          DeadlineExceeded: The request did not finish in time.
          Refused: There is no memory left for the result, which stays stored (503).
        """
        sock = environ.get("gunicorn.socket")
        if job.webhook:
            ref.done.call_when_set(self.on_due)
        respond_async, wait_s = job.preference
        if respond_async:
            ref.acceptance.wait()
            if ref.acceptance.get_nowait() and not (wait_s and wait_for_result(ref, wait_s, sock)):
                return _accepted(job.request_id, trace_id, preferred=True)
        elif not wait_for_result(ref, timeout_s, sock) and not self.plane.look(ref):
            raise DeadlineExceeded(f"the request did not finish within {timeout_s:g} s")
        return self._reply(ref.outcome(), trace_id, job.request_id, place, reader)

    def serve(self, environ: Environ, trace_id: str) -> Reply | Events:
        """Serve a request about a job.

        Raises:
          QserveException: There is no such job, or the broker cannot say.
        """
        path = environ["PATH_INFO"].removeprefix(JOBS_PATH)
        request_id = path.removesuffix(_EVENTS)
        if not is_request_id(request_id):
            raise BadRequest("a request ID has 32 hexadecimal digits", "invalid_id")
        method, methods = environ["REQUEST_METHOD"], _METHODS if path == request_id else _METHODS[1:]
        if method not in methods:
            raise wrong_method(method, methods)
        place = self.in_flight.enter(JOBS_PATH)
        reply: Reply | Events | None = None
        try:
            if path != request_id:
                reply = self._follow(request_id, environ.get("HTTP_LAST_EVENT_ID", ""), trace_id)
                return reply
            if method == "DELETE":
                return self._cancel(request_id, trace_id)
            reply = self._fetch(request_id, environ, trace_id, place)
            return reply
        finally:
            call_when_sent(reply, place.leave)

    def _follow(self, request_id: str, last_id: str, trace_id: str) -> Reply | Events:
        if last_id == END_ID:
            return Reply(204, [("x-request-id", trace_id)], b"")  # by this an EventSource ends, and asks no more
        self._find(request_id)
        if len(self.readers) >= READERS_LIMIT:
            message = f"this gateway process already has {READERS_LIMIT} clients that follow requests"
            raise Refused(message, "readers_full", 503, retry_after_s=5)
        events = Events(self.plane, request_id, last_id, trace_id)
        self.readers.add(events)
        events.when_sent.append(partial(self.readers.discard, events))
        return events

    def _fetch(self, request_id: str, environ: Environ, trace_id: str, place: Place) -> Reply:
        outcome = self._find(request_id)
        wait_s = preference_of(environ).wait_s
        if outcome.state == State.OPEN and wait_s:
            ref = Ref(request_id, self.plane)
            self.plane.follow(ref)
            if wait_for_result(ref, wait_s, environ.get("gunicorn.socket")):
                outcome = ref.outcome()
        if outcome.state == State.OPEN:
            return _accepted(request_id, trace_id, progress=progress_of(self.plane, request_id))
        if outcome.state == State.CANCELLED:
            return problem_reply(410, "cancelled", f"request {request_id} was cancelled", trace_id)
        return self._reply(outcome, trace_id, request_id, place)

    def _reply(self, outcome: Outcome, trace_id: str, request_id: str, place: Place, reader: str = "") -> Reply:
        if outcome.state == ANNOUNCED:
            place.take(length(outcome))
            outcome = self.plane.fetch(request_id, WAIT_LIMIT_S)
        if outcome.state != State.DONE:
            return failure_reply(outcome, trace_id, self.settings.show_errors, reader=reader)
        if is_of_value(request_id):
            headers = [("content-type", "application/json"), ("cache-control", "no-store"), ("x-request-id", trace_id)]
            reply = Reply(200, headers, value_as_json(outcome.payload, request_id))
        else:
            claim = claim_in(outcome.payload)
            if claim is not None:
                place.take(held_bytes(claim.store))
            reply = result_reply(outcome.payload, trace_id, self.plane.store)
        reply.headers.append((_ID_HEADER, request_id))
        return reply

    def _cancel(self, request_id: str, trace_id: str) -> Reply:
        state = self._find(request_id).state
        if state == State.OPEN:
            # Crash before this: nothing happened. Crash after: it is cancelled, and a second DELETE reports that.
            state = State.CANCELLED if self._close(request_id, State.CANCELLED) else self._find(request_id).state
        if state != State.CANCELLED:
            raise BadRequest(f"request {request_id} has already finished", "already_finished", 409)
        return Reply(204, [("x-request-id", trace_id)], b"")

    def _find(self, request_id: str) -> Outcome:
        """Read a request's state; one that is open past its deadline is ended first."""
        if not is_genuine(request_id):  # it was not given out, and what may be stored under it is private
            raise BadRequest(f"there is no request {request_id}", "not_found", 404)
        found = read_found(self._ask(functions.look(self.plane.keys.request(request_id), self.plane.mailbox.name)))
        if found is None or not found.state:
            raise BadRequest(f"the result of request {request_id} is no longer stored", "result_expired", 410)
        outcome = outcome_of(found, self.plane.seal, request_id)
        if outcome is not None:
            return outcome
        if not self._is_late(found.header):
            return Outcome(State.OPEN, b"")
        if self._close(request_id, State.EXPIRED) == 1:
            return Outcome(State.EXPIRED, b"")
        return self._find(request_id)

    def _is_late(self, header: bytes) -> bool:
        try:
            return is_late(open_header(self.plane.seal, header).deadline_ms)
        except PayloadError:
            return False

    def _close(self, request_id: str, state: State) -> Any:
        return self._ask(functions.end(self.plane.seal, self.plane.keys.request(request_id), request_id, state))

    def _ask(self, command: Command) -> Any:
        with broker_errors():
            reply = self.plane.execute(command)
        if isinstance(reply, Exception):
            raise refusal(reply)
        return reply


def value_as_json(payload: bytes, request_id: str) -> bytes:
    """Return the value of a request from Python as JSON; nothing is unpickled here, where no user code runs.

    Raises:
      BadRequest: It is not plain data, or too long to be converted in a process that serves others meanwhile.
      ResultUnavailable: It was a stream.
    """
    if not payload or items_in(payload) is not None:
        raise ResultUnavailable(f"request {request_id} was a stream: its items are not stored")
    try:
        if len(payload) > VALUE_LIMIT:
            raise PayloadError(f"it takes {len(payload)} bytes, and the limit is {VALUE_LIMIT}")
        return to_json(Codec().decode(payload))
    except PayloadError as error:
        log.debug("request %s: %s", request_id, error)
        message = (
            f"the value of request {request_id} cannot be sent as JSON: it is longer than {VALUE_LIMIT} bytes, or not"
            f" plain data. Fetch it in Python with qserve.get_ref({request_id!r}).result()"
        )
        raise BadRequest(message, "not_json", 406) from error


def _accepted(request_id: str, trace_id: str, preferred: bool = False, progress: Progress | None = None) -> Reply:
    """Return the reply for a request that has not ended; ``preferred`` if the client asked for it with ``Prefer``."""
    headers = [
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("x-request-id", trace_id),
        (_ID_HEADER, request_id),
        ("location", JOBS_PATH + request_id),
        ("retry-after", str(_POLL_AFTER_S)),
    ]
    if preferred:
        headers.append(("preference-applied", "respond-async"))
    body = {"request_id": request_id, "status": "accepted"}
    return Reply(202, headers, to_json(body if progress is None else body | {"progress": progress._asdict()}))
