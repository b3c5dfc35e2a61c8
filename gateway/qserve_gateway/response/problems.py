"""Errors as HTTP answers: status and words come from the error's class, and nothing of our own insides."""

from __future__ import annotations

import json
from dataclasses import replace
from logging import DEBUG, WARNING
from typing import Any

from qserve import exceptions
from qserve.base.log import get_logger
from qserve.exceptions import BrokerError, BrokerUnavailable, BrokerUnsafe, QserveException
from qserve.http.bad_request import BadRequest
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
# redis-py cuts some of the broker's own codes off, and leaves their texts
_BROKER_CODES = (("OOM", "broker_full"), ("used memory >", "broker_full"), ("MISCONF", "broker_disk_full"))


class NoRoute(BadRequest):
    """Raised when no application answers a path, or not with this method.

    Parameters:
      message: What is wrong.
      status: 404 or 405.
      allow: The methods that are answered.
      driver: Whether a DAGDriver refuses, whose users expect FastAPI's ``detail``.
    """

    def __init__(self, message: str, status: int, allow: tuple[str, ...] = (), driver: bool = False) -> None:
        super().__init__(message, "not_found" if status == 404 else "method_not_allowed", status)
        self.allow = allow
        self.driver = driver


class Elsewhere(BadRequest):
    """Raised when only a slash at the path's end is too many or missing, as FastAPI's routers answer it.

    Parameters:
      location: The URL that is answered.
    """

    def __init__(self, location: str) -> None:
        super().__init__(f"the path is {location}", "redirect", 307)
        self.location = location


def problem(status: int, code: str, message: str, request_id: str, retryable: bool = False, **more: Any) -> Reply:
    """The answer for an error.

    Parameters:
      status: The HTTP status.
      code: The word for programs.
      message: What people read.
      request_id: The request's ``X-Request-ID``.
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
    return _reply(status, {"error": error}, request_id)


def of_error(error: BaseException, request_id: str) -> Reply:
    """The answer for an exception that the gateway caught."""
    if not isinstance(error, QserveException):
        log.error("request %s: the gateway failed", request_id, exc_info=error)
        return problem(500, "internal_error", "Internal Server Error", request_id)
    message, code = str(error), error.code
    if isinstance(error, BrokerError):
        # the text may name the broker's address
        log.log(DEBUG if isinstance(error, BrokerUnsafe) else WARNING, "request %s: %s", request_id, error)
        code = next((code for word, code in _BROKER_CODES if word in message), code)
        message = "the broker cannot be reached or does not accept calls now"
    reply = problem(error.status, code, message, request_id, error.retryable)
    if isinstance(error, BadRequest):
        reply.close = error.close
        reply.headers += getattr(error, "headers", ())
    if isinstance(error, Elsewhere):
        return Reply(error.status, [("location", error.location), ("x-request-id", request_id)], b"")
    if isinstance(error, NoRoute):
        _explain_route(reply, error)
    if error.retryable:
        after_s = getattr(error, "retry_after_s", _RETRY_AFTER_S)
        reply.headers.append(("retry-after", str(after_s)))
    return reply


def of_outcome(outcome: Outcome, request_id: str, show_errors: bool) -> Reply:
    """The answer for a request that ended without a result."""
    if outcome.state == State.EXPIRED:
        message = f"request {request_id} was not finished within its deadline"
        return problem(504, "deadline_exceeded", message, request_id)
    if outcome.state == State.CANCELLED:
        message = f"request {request_id} was cancelled"
        return problem(499, "cancelled", message, request_id)
    try:
        failure = Failure.decode(outcome.payload)
    except QserveException as error:
        return of_error(error, request_id)
    refusal = _refusal_of(failure)
    if refusal is not None:
        return of_error(refusal, request_id)
    if (failure.module, failure.type) == _INVALID_JSON:
        return problem(400, "invalid_json", f"the body is no JSON: {failure.message}", request_id)
    answer = _of_http_exception(failure, request_id) if failure.is_answer else None
    return answer or _user_code_failed(failure, request_id, show_errors)


def unavailable(message: str, request_id: str) -> Reply:
    """The answer while the gateway itself cannot serve."""
    reply = problem(503, BrokerUnavailable.code, message, request_id, retryable=True)
    reply.headers.append(("retry-after", str(_RETRY_AFTER_S)))
    return reply


def _refusal_of(failure: Failure) -> BaseException | None:
    """The error of qserve itself that a failure is; one that may pass keeps its status behind user code too."""
    if failure.module != exceptions.__name__:
        return None
    kind = getattr(exceptions, failure.type, None)
    if failure.deployment and not getattr(kind, "retryable", False):
        return None
    return replace(failure, deployment="").to_exception()


def _of_http_exception(failure: Failure, request_id: str) -> Reply | None:
    """The answer that user code raised; None when it is not one that HTTP has."""
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


def _user_code_failed(failure: Failure, request_id: str, show_errors: bool) -> Reply:
    said = f"{failure.type}: {failure.message}" if failure.message else failure.type
    log.error("request %s failed in deployment %r: %s", request_id, failure.deployment, said)
    more: dict[str, Any] = {"type": failure.type, "deployment": failure.deployment}
    if show_errors:
        more["traceback"] = failure.traceback
    return problem(500, _code_of(failure), said, request_id, **more)


def _code_of(failure: Failure) -> str:
    """The word for a failure in a deployment: what it returned may be at fault, and not what it did."""
    kind = getattr(exceptions, failure.type, None) if failure.module == exceptions.__name__ else None
    if isinstance(kind, type) and issubclass(kind, exceptions.ResultNotSerialisable):
        return kind.code
    return exceptions.TaskError.code


def _explain_route(reply: Reply, error: NoRoute) -> None:
    if error.allow:
        reply.headers.append(("allow", ", ".join(error.allow)))
    if error.driver:
        reply.body = _json({**json.loads(reply.body), "detail": _DETAILS[error.status]})


def _reply(status: int, body: dict[str, Any], request_id: str) -> Reply:
    return Reply(status, [*_HEADERS, ("x-request-id", request_id)], _json(body))


def _json(body: dict[str, Any]) -> bytes:
    # ensure_ascii: a message of user code may hold half of a surrogate pair
    return json.dumps(body, separators=(",", ":")).encode()
