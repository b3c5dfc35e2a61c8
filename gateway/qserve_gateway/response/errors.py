"""Errors as HTTP responses: an error's class decides the status and the code, and no internals are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from logging import DEBUG, WARNING
from typing import Any

from qserve import exceptions
from qserve.base.log import get_logger
from qserve.exceptions import BrokerError, BrokerUnavailable, BrokerUnsafe, QserveException
from qserve.http.message import BadRequest
from qserve.wire.failure import Failure
from qserve.wire.outcome import Outcome, State
from qserve_gateway.response.reply import WITHOUT_BODY, Reply

log = get_logger(__name__)

_HEADERS = [
    ("content-type", "application/json"),
    ("x-content-type-options", "nosniff"),
    ("cache-control", "no-store"),
]
_RETRY_AFTER_S = 1
_INVALID_JSON = ("qserve.http.request", "InvalidJSON")
_DETAILS = {404: "Not Found", 405: "Method Not Allowed"}
# redis-py strips some of the broker's own codes from its errors and keeps only their texts
_BROKER_CODES = (("OOM", "broker_full"), ("used memory >", "broker_full"), ("MISCONF", "broker_disk_full"))


class NoRoute(BadRequest):
    """Raised when no application serves a path, or none with this method.

    Parameters:
      message: What is wrong.
      status: 404 or 405.
      allow: The methods that are served.
      driver: Whether the path belongs to a DAGDriver, whose clients expect FastAPI's ``detail``.
    """

    def __init__(self, message: str, status: int, allow: tuple[str, ...] = (), driver: bool = False) -> None:
        super().__init__(message, "not_found" if status == 404 else "method_not_allowed", status)
        self.allow = allow
        self.driver = driver


class Redirect(BadRequest):
    """Raised when a path has a slash too many or too few at its end; FastAPI's routers redirect these as well.

    Parameters:
      location: The URL of the path that is served.
    """

    def __init__(self, location: str) -> None:
        super().__init__(f"the path is {location}", "redirect", 307)
        self.location = location


def problem_reply(status: int, code: str, message: str, request_id: str, retryable: bool = False, **more: Any) -> Reply:
    """Return a response that describes an error as JSON.

    Parameters:
      code: Names the kind of error, for programs.
      message: Explains it to people.
      retryable: Whether the same request may succeed later.
      more: Further fields of the error object.
    """
    error = {
        "code": code,
        "message": message,
        "request_id": request_id,
        "retryable": retryable,
        **more,
    }
    return Reply(status, [*_HEADERS, ("x-request-id", request_id)], _json({"error": error}))


def not_ready_reply(request_id: str) -> Reply:
    """Return the response of a gateway that has started but does not know its routes."""
    message = "the gateway has not read the applications yet"
    reply = problem_reply(503, BrokerUnavailable.code, message, request_id, retryable=True)
    reply.headers.append(("retry-after", str(_RETRY_AFTER_S)))
    return reply


def error_reply(error: BaseException, request_id: str) -> Reply:
    """Return the response for an exception that was raised in the gateway."""
    if not isinstance(error, QserveException):
        log.error("request %s: the gateway failed", request_id, exc_info=error)
        return problem_reply(500, "internal_error", "Internal Server Error", request_id)
    message, code = str(error), error.code
    if isinstance(error, BrokerError):
        # the text may contain the broker's address
        log.log(DEBUG if isinstance(error, BrokerUnsafe) else WARNING, "request %s: %s", request_id, error)
        code = next((code for word, code in _BROKER_CODES if word in message), code)
        message = "the broker cannot be reached, or does not accept calls at the moment"
    reply = problem_reply(error.status, code, message, request_id, error.retryable)
    if isinstance(error, BadRequest):
        reply.close = error.close
        reply.headers += getattr(error, "headers", ())
    if isinstance(error, Redirect):
        return Reply(error.status, [("location", error.location), ("x-request-id", request_id)], b"")
    if isinstance(error, NoRoute):
        _explain_route(reply, error)
    if error.retryable:
        after_s = getattr(error, "retry_after_s", _RETRY_AFTER_S)
        reply.headers.append(("retry-after", str(after_s)))
    return reply


def _explain_route(reply: Reply, error: NoRoute) -> None:
    if error.allow:
        reply.headers.append(("allow", ", ".join(error.allow)))
    if error.driver:
        reply.body = _json({**json.loads(reply.body), "detail": _DETAILS[error.status]})


def failure_reply(outcome: Outcome, request_id: str, show_errors: bool) -> Reply:
    """Return the response for a request that ended without a result; ``show_errors`` adds the traceback."""
    if outcome.state == State.EXPIRED:
        message = f"request {request_id} did not finish before its deadline"
        return problem_reply(504, "deadline_exceeded", message, request_id)
    if outcome.state == State.CANCELLED:
        return problem_reply(499, "cancelled", f"request {request_id} was cancelled", request_id)
    try:
        failure = Failure.decode(outcome.payload)
    except QserveException as error:
        return error_reply(error, request_id)
    refusal = _refusal_of(failure)
    if refusal is not None:
        return error_reply(refusal, request_id)
    if (failure.module, failure.type) == _INVALID_JSON:
        message = f"the request body is not valid JSON: {failure.message}"
        return problem_reply(400, "invalid_json", message, request_id)
    reply = _http_exception_reply(failure, request_id) if failure.is_answer else None
    return reply or _user_error_reply(failure, request_id, show_errors)


def _refusal_of(failure: Failure) -> BaseException | None:
    """Return the error of qserve itself behind a failure.

    A failure that user code passed on counts as its own, unless it may succeed later: that one keeps its status.
    """
    if failure.module != exceptions.__name__:
        return None
    kind = getattr(exceptions, failure.type, None)
    if failure.deployment and not getattr(kind, "retryable", False):
        return None
    return replace(failure, deployment="").to_exception()


def _http_exception_reply(failure: Failure, request_id: str) -> Reply | None:
    """Return the response that user code raised; None when its status or headers are not valid in HTTP."""
    status, detail, named = (failure.attributes.get(name) for name in ("status_code", "detail", "headers"))
    if not isinstance(status, int) or not 200 <= status <= 599:
        return None
    headers = [(str(name).lower(), str(value)) for name, value in (named or {}).items()]
    if any(character in part for header in headers for part in header for character in "\r\n\0"):
        return None
    chosen = {name for name, _ in headers}
    headers = [header for header in headers if header[0] != "content-length"]
    headers += [header for header in _HEADERS if header[0] not in chosen]
    body = b"" if status in WITHOUT_BODY else _json({"detail": detail})
    return Reply(status, [*headers, ("x-request-id", request_id)], body)


def _user_error_reply(failure: Failure, request_id: str, show_errors: bool) -> Reply:
    message = f"{failure.type}: {failure.message}" if failure.message else failure.type
    log.error("request %s failed in deployment %r: %s", request_id, failure.deployment, message)
    more: dict[str, Any] = {"type": failure.type, "deployment": failure.deployment}
    if show_errors:
        more["traceback"] = failure.traceback
    return problem_reply(500, _code_of(failure), message, request_id, **more)


def _code_of(failure: Failure) -> str:
    """Return the code for a failure in a deployment; a result that cannot be sent is told apart from an exception."""
    kind = getattr(exceptions, failure.type, None) if failure.module == exceptions.__name__ else None
    if isinstance(kind, type) and issubclass(kind, exceptions.ResultNotSerialisable):
        return kind.code
    return exceptions.TaskError.code


def _json(body: dict[str, Any]) -> bytes:
    # ensure_ascii is kept: a message from user code may contain half of a surrogate pair
    return json.dumps(body, separators=(",", ":")).encode()
