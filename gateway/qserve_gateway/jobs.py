"""Jobs: requests whose results outlive their connections, to be fetched by ID or by the same idempotency key.

A job is stored in the broker only, so every gateway of an installation can answer for it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from typing import Any, NamedTuple

from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.connection import broker_errors, refusal
from qserve.broker.library import Command
from qserve.calls.client import ClientPlane
from qserve.calls.mailbox import is_late
from qserve.calls.ref import Call, Ref
from qserve.exceptions import DeadlineExceeded, PayloadError
from qserve.http.message import BadRequest
from qserve.wire.outcome import Field, Outcome, State
from qserve.wire.sealing import open_end, open_header
from qserve_gateway.request.environ import Environ, is_token, model_id_of, request_id_of
from qserve_gateway.request.waiting import InFlightLimit, wait_for_result
from qserve_gateway.response.errors import NoRoute, error_reply, failure_reply, problem_reply
from qserve_gateway.response.reply import Reply, result_reply

JOBS_PATH = "/-/requests/"
"""Where results are fetched and requests cancelled, followed by the request's ID."""
WAIT_LIMIT_S = 30.0

_METHODS = ("DELETE", "GET", "HEAD")
_ID_HEADER = "x-qserve-request-id"
_POLL_AFTER_S = 1
_FIELDS = (Field.STATE, Field.RESULT, Field.FINGERPRINT, Field.HEADER)
_WITHOUT_KEY = "once"
"""The fingerprint of a job that has no idempotency key, and so cannot be submitted twice."""


class Job(NamedTuple):
    """A request whose result is kept.

    Parameters:
      request_id: The ID by which the result is fetched.
      fingerprint: A digest of everything that a second request with the same idempotency key must have in common
        with the first.
      respond_async: Whether the client prefers not to wait.
      wait_s: How long it would wait in that case.
    """

    request_id: str
    fingerprint: str
    respond_async: bool
    wait_s: float

    @classmethod
    def of(cls, environ: Environ, body: bytes, app: str, settings: Settings) -> Job | None:
        """Return the job that a request for an application asks for with its headers; None for a plain request.

        Raises:
          BadRequest: The idempotency key is malformed.
        """
        key = idempotency_key_of(environ)
        preference = preference_of(environ)
        if key is None and not preference.respond_async:
            return None
        if key is None:
            return cls(new_id(), _WITHOUT_KEY, *preference)
        request_id = id_of_key(key, app, settings.namespace, settings.secret_key)
        return cls(request_id, _fingerprint(environ, body), *preference)

    def kept(self, call: Call, settings: Settings) -> Call:
        """Return the call with a result that is stored under the job's ID, whole, for as long as the settings say."""
        return call._replace(
            result_ttl_s=settings.result_ttl_s,
            owned=False,
            stream=False,
            request_id=self.request_id,
            fingerprint=self.fingerprint,
        )


class Jobs:
    """Follows the jobs that were submitted here, and handles requests below ``/-/requests/``."""

    def __init__(self, settings: Settings, plane: ClientPlane, in_flight: InFlightLimit) -> None:
        self._settings = settings
        self._plane = plane
        self._in_flight = in_flight

    def follow(self, ref: Ref, job: Job, timeout_s: float, environ: Environ, trace_id: str) -> Reply:
        """Return the reply to a request that has just been submitted.

        It is 202 as soon as the request is accepted, if the client prefers that. A client that disconnects, or waits
        too long, cancels nothing: it may come back for the result.

        Raises:
          RequestCancelled: The client closed the connection.
          DeadlineExceeded: The request did not finish in time.
        """
        sock = environ.get("gunicorn.socket")
        if job.respond_async:
            ref.accepted.wait()
            was_refused = ref.accepted.get_nowait() is None and ref.outcome().state == State.FAILED
            if not was_refused and not (job.wait_s and wait_for_result(ref, job.wait_s, sock)):
                return _accepted(job.request_id, trace_id, preferred=True)
        elif not wait_for_result(ref, timeout_s, sock):
            raise DeadlineExceeded(f"the request did not finish within {timeout_s:g} s")
        return self._reply(ref.outcome(), trace_id, job.request_id)

    def handle(self, environ: Environ) -> Reply:
        """Handle a request about a job; errors become replies too."""
        trace_id = request_id_of(environ)
        try:
            request_id = environ["PATH_INFO"].removeprefix(JOBS_PATH)
            if not is_id(request_id):
                raise BadRequest("a request ID has 32 hexadecimal digits", "invalid_id")
            method = environ["REQUEST_METHOD"]
            if method not in _METHODS:
                raise NoRoute(f"method {method} is not allowed here", 405, _METHODS)
            if method == "DELETE":
                return self._cancel(request_id, trace_id)
            return self._fetch(request_id, environ, trace_id)
        except Exception as error:
            return error_reply(error, trace_id)

    def _fetch(self, request_id: str, environ: Environ, trace_id: str) -> Reply:
        outcome = self._find(request_id)
        wait_s = preference_of(environ).wait_s
        if outcome.state == State.OPEN and wait_s:
            ref = Ref(request_id, self._plane)
            with self._in_flight:
                self._plane.follow(ref)
                if wait_for_result(ref, wait_s, environ.get("gunicorn.socket")):
                    outcome = ref.outcome()
        if outcome.state == State.OPEN:
            return _accepted(request_id, trace_id)
        if outcome.state == State.CANCELLED:
            return problem_reply(410, "cancelled", f"request {request_id} was cancelled", trace_id)
        return self._reply(outcome, trace_id, request_id)

    def _reply(self, outcome: Outcome, trace_id: str, request_id: str) -> Reply:
        if outcome.state != State.DONE:
            return failure_reply(outcome, trace_id, self._settings.show_errors)
        reply = result_reply(outcome.payload, trace_id)
        reply.headers.append((_ID_HEADER, request_id))
        return reply

    def _cancel(self, request_id: str, trace_id: str) -> Reply:
        state = self._find(request_id).state
        if state == State.OPEN:
            # Crash before this: nothing happened. Crash after: it is cancelled, and a second DELETE reports that.
            ended = self._ask(functions.close(self._plane.keys.request(request_id), request_id, State.CANCELLED, b""))
            state = State.CANCELLED if ended else self._find(request_id).state
        if state != State.CANCELLED:
            raise BadRequest(f"request {request_id} has already finished", "already_finished", 409)
        return Reply(204, [("x-request-id", trace_id)], b"")

    def _find(self, request_id: str) -> Outcome:
        """Read a request's state; one that is open past its deadline is ended first."""
        key = self._plane.keys.request(request_id)
        state, payload, fingerprint, header = self._ask(("HMGET", key, *_FIELDS))
        # without a fingerprint it is a call from Python, whose result is private and not an HTTP response
        if state is None or fingerprint is None:
            raise _unknown(request_id)
        if state == State.OPEN.encode() and self._is_late(header):
            self._ask(functions.close(key, request_id, State.EXPIRED, b""))
            return self._find(request_id)
        return open_end(self._plane.seal, request_id, Outcome(state.decode(), payload or b""))

    def _is_late(self, header: bytes | None) -> bool:
        try:
            return header is not None and is_late(open_header(self._plane.seal, header).deadline_ms)
        except PayloadError:
            return False

    def _ask(self, command: Command) -> Any:
        with broker_errors():
            reply = self._plane.execute(command)
        if isinstance(reply, Exception):
            raise refusal(reply)
        return reply


def _accepted(request_id: str, trace_id: str, preferred: bool = False) -> Reply:
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
    return Reply(202, headers, json.dumps(body, separators=(",", ":")).encode())


def _unknown(request_id: str) -> BadRequest:
    if is_genuine(request_id):
        return BadRequest(f"the result of request {request_id} is no longer stored", "result_expired", 410)
    return BadRequest(f"there is no request {request_id}", "not_found", 404)


# -- what the headers ask for ----------------------------------------------------------------------


class Preference(NamedTuple):
    """What the header ``Prefer`` (RFC 7240) asks for, as far as it is supported.

    Parameters:
      respond_async: Reply 202 at once and let the client come back, instead of letting it wait.
      wait_s: How long it would wait first.
    """

    respond_async: bool = False
    wait_s: float = 0.0


def preference_of(environ: Environ) -> Preference:
    """Return the client's preferences; unknown and malformed ones are ignored, as the RFC requires."""
    text = environ.get("HTTP_PREFER")
    if text is None:
        return Preference()
    respond_async, wait_s = False, 0.0
    for part in text.split(","):
        name, _, value = part.partition(";")[0].partition("=")
        name, value = name.strip().lower(), value.strip().strip('"')
        if name == "respond-async":
            respond_async = True
        elif name == "wait" and value.isascii() and value.isdigit():
            wait_s = min(float(value[:9]), WAIT_LIMIT_S)
    return Preference(respond_async, wait_s)


def idempotency_key_of(environ: Environ) -> str | None:
    """Return the client's ``Idempotency-Key``, with or without quotation marks around it; None when it sends none.

    Raises:
      BadRequest: It is malformed.
    """
    text = environ.get("HTTP_IDEMPOTENCY_KEY")
    if text is None:
        return None
    key = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    if not is_token(key):
        message = "Idempotency-Key must have 1 to 128 characters of A-Z a-z 0-9 _ . : -"
        raise BadRequest(message, "invalid_idempotency_key")
    return str(key)


def _fingerprint(environ: Environ, body: bytes) -> str:
    digest = hashlib.sha256()
    parts = (
        environ["REQUEST_METHOD"],
        environ["PATH_INFO"],
        environ.get("QUERY_STRING", ""),
        environ.get("CONTENT_TYPE", ""),
        model_id_of(environ),
        # two users of one application who choose the same key must not receive each other's results
        environ.get("HTTP_AUTHORIZATION", ""),
    )
    for part in (*(text.encode("latin-1") for text in parts), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


# -- IDs -------------------------------------------------------------------------------------------
#
# An ID has 32 hexadecimal digits. The last eight are a checksum of the others, so that a result that is no longer
# stored (410) can be told from one that never existed (404) without keeping anything in the broker.

_ID_BYTES = 12
_ID = re.compile(r"[0-9a-f]{32}")


def new_id() -> str:
    """Return a random ID."""
    return _with_checksum(os.urandom(_ID_BYTES).hex())


def id_of_key(key: str, app: str, namespace: str, secret: bytes | None) -> str:
    """Return the ID that belongs to an idempotency key in an application, the same in every gateway.

    With a secret, an ID cannot be computed by others who guess the key.
    """
    digest = hmac.new(secret or b"", "\0".join((namespace, app, key)).encode(), hashlib.sha256)
    return _with_checksum(digest.hexdigest()[: 2 * _ID_BYTES])


def is_id(text: str) -> bool:
    """Return whether a text has the form of an ID."""
    return _ID.fullmatch(text) is not None


def is_genuine(request_id: str) -> bool:
    """Return whether an ID was created here: a made-up one passes with a probability of one in four billion."""
    return _with_checksum(request_id[: 2 * _ID_BYTES]) == request_id


def _with_checksum(digits: str) -> str:
    return digits + hashlib.sha256(digits.encode()).hexdigest()[:8]
