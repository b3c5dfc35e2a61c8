"""Requests whose answers outlive their connections: asked for later by id, and had again by idempotency key.

What is known of such a request is in the broker only, so any gateway answers for any of them.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.connection import broker_errors, refusal
from qserve.broker.library import Command
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Ref
from qserve.calls.submitter import is_late
from qserve.exceptions import DeadlineExceeded, PayloadError
from qserve.http.bad_request import BadRequest
from qserve.wire.outcome import Outcome, State
from qserve.wire.sealing import open_end, open_header
from qserve_gateway.request.clients import wait_for_answer
from qserve_gateway.request.incoming import Environ, idempotency_key_of, model_id_of, preference_of, request_id_of
from qserve_gateway.request.limits import WaitingRoom
from qserve_gateway.request.request_ids import id_of_key, is_id, new_id, was_given_out
from qserve_gateway.response.answers import PLACE, accepted, answer_of
from qserve_gateway.response.problems import NoRoute, of_error, problem
from qserve_gateway.response.reply import Reply

_METHODS = ("DELETE", "GET", "HEAD")
_ONCE = "once"
"""The fingerprint of a request that has no key, and so cannot come again."""


class Job(NamedTuple):
    """A request whose answer is kept.

    Parameters:
      request_id: Under which it can be asked for.
      fingerprint: Of everything that a second request with the same key must have in common with the first.
      respond_async: Whether its client would rather not wait.
      wait_s: How long it would, in that case.
    """

    request_id: str
    fingerprint: str
    respond_async: bool
    wait_s: float

    @classmethod
    def of(cls, environ: Environ, body: bytes, app: str, settings: Settings) -> Job | None:
        """What a request asks for beyond an answer; None when nothing.

        Parameters:
          environ: The request, as WSGI has it.
          body: Its body.
          app: The application that it is for.
          settings: Namespace and key of the installation.

        Raises:
          BadRequest: The idempotency key is malformed.
        """
        key = idempotency_key_of(environ)
        preference = preference_of(environ)
        if key is None and not preference.respond_async:
            return None
        if key is None:
            return cls(new_id(), _ONCE, *preference)
        request_id = id_of_key(key, app, settings.namespace, settings.secret_key)
        return cls(request_id, _fingerprint(environ, body), *preference)


class Jobs:
    """Follows requests whose answers are kept, and answers below ``/-/requests/``.

    Parameters:
      settings: Whether tracebacks are shown.
      plane: Reaches the broker.
      room: Where clients wait.
    """

    def __init__(self, settings: Settings, plane: ClientPlane, room: WaitingRoom) -> None:
        self._settings = settings
        self._plane = plane
        self._room = room

    def follow(self, ref: Ref, job: Job, timeout_s: float, environ: Environ, trace_id: str) -> Reply:
        """The answer to a request that was just submitted: 202 as soon as it is accepted if its client prefers that.

        A client that leaves, or waits in vain, ends nothing here: it may come back for the answer.

        Raises:
          RequestCancelled: The client closed the connection.
          DeadlineExceeded: The request was not finished in time.
        """
        sock = environ.get("gunicorn.socket")
        if job.respond_async:
            ref.accepted.wait()
            was_refused = ref.accepted.get_nowait() is None and ref.outcome().state == State.FAILED
            if not was_refused and not (job.wait_s and wait_for_answer(ref, job.wait_s, sock)):
                return accepted(job.request_id, trace_id, applied=True)
        elif not wait_for_answer(ref, timeout_s, sock):
            raise DeadlineExceeded(f"the request was not finished within {timeout_s:g} s")
        return answer_of(ref.outcome(), trace_id, self._settings.show_errors, job.request_id)

    def answer(self, environ: Environ) -> Reply:
        """Answer a request for a request; errors become answers as well."""
        trace_id = request_id_of(environ)
        try:
            request_id = environ["PATH_INFO"].removeprefix(PLACE)
            if not is_id(request_id):
                raise BadRequest("a request's id is 32 hexadecimal digits", "invalid_id")
            method = environ["REQUEST_METHOD"]
            if method not in _METHODS:
                raise NoRoute(f"{method} is not allowed here", 405, _METHODS)
            if method == "DELETE":
                return self._cancel(request_id, trace_id)
            return self._fetch(request_id, environ, trace_id)
        except Exception as error:
            return of_error(error, trace_id)

    def _fetch(self, request_id: str, environ: Environ, trace_id: str) -> Reply:
        outcome = self._look(request_id)
        wait_s = preference_of(environ).wait_s
        if outcome.state == State.OPEN and wait_s:
            ref = Ref(request_id, self._plane)
            with self._room:
                self._plane.follow(ref)
                if wait_for_answer(ref, wait_s, environ.get("gunicorn.socket")):
                    outcome = ref.outcome()
        if outcome.state == State.OPEN:
            return accepted(request_id, trace_id)
        if outcome.state == State.CANCELLED:
            return problem(410, "cancelled", f"request {request_id} was cancelled", trace_id)
        return answer_of(outcome, trace_id, self._settings.show_errors, request_id)

    def _cancel(self, request_id: str, trace_id: str) -> Reply:
        state = self._look(request_id).state
        if state == State.OPEN:
            # died before this: nothing happened. Died after: it is cancelled, and asking again says so
            ended = self._ask(functions.close(self._plane.keys.request(request_id), request_id, State.CANCELLED, b""))
            state = State.CANCELLED if ended else self._look(request_id).state
        if state != State.CANCELLED:
            raise BadRequest(f"request {request_id} has already ended", "already_finished", 409)
        return Reply(204, [("x-request-id", trace_id)], b"")

    def _look(self, request_id: str) -> Outcome:
        """What is known of a request; one that is open past its deadline is ended, if nobody else did it."""
        key = self._plane.keys.request(request_id)
        state, payload, fingerprint, header = self._ask(("HMGET", key, "st", "res", "fp", "h"))
        # without a fingerprint it is a call from Python: its result is no HTTP answer, and not for everybody
        if state is None or fingerprint is None:
            raise _unknown(request_id)
        if state == State.OPEN.encode() and self._is_late(header):
            self._ask(functions.close(key, request_id, State.EXPIRED, b""))
            return self._look(request_id)
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


def _fingerprint(environ: Environ, body: bytes) -> str:
    digest = hashlib.sha256()
    parts = (
        environ["REQUEST_METHOD"],
        environ["PATH_INFO"],
        environ.get("QUERY_STRING", ""),
        environ.get("CONTENT_TYPE", ""),
        model_id_of(environ),
        # two users of one application who choose the same key must not get each other's answers
        environ.get("HTTP_AUTHORIZATION", ""),
    )
    for part in (*(text.encode("latin-1") for text in parts), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _unknown(request_id: str) -> BadRequest:
    if was_given_out(request_id):
        return BadRequest(f"the answer to request {request_id} is no longer kept", "result_expired", 410)
    return BadRequest(f"there was no request {request_id}", "not_found", 404)
