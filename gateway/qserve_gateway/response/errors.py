"""Errors as HTTP responses: an error's class decides the status and the code, and no internals are shown.

Each of them is a line of the log with the ID of its request: an error of the application or of ours as an ERROR, a
request that was not finished or not accepted as a WARNING, and a mistake of the client at INFO.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from logging import ERROR, INFO, WARNING
from typing import Any

from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)

from qserve import exceptions
from qserve.base.log import get_logger, of_request
from qserve.exceptions import (
    BrokerError,
    BrokerFull,
    PayloadError,
    QserveException,
    ResultNotSerialisable,
    TaskError,
    WebSocketNotSupported,
)
from qserve.http.message import BadRequest
from qserve.http.render import head_of
from qserve.wire.failure import Failure
from qserve.wire.outcome import Outcome, State
from qserve_gateway.request.environ import Refused
from qserve_gateway.response.reply import Reply

log = get_logger(__name__)

_HEADERS = [
    ("content-type", "application/json"),
    ("x-content-type-options", "nosniff"),
    ("cache-control", "no-store"),
]
_RETRY_AFTER_S = 1
_UNREADABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (LimitRequestLine, 414, "uri_too_long"),
    (LimitRequestHeaders, 431, "headers_too_large"),
    (ExpectationFailed, 417, "expectation_failed"),
    (UnsupportedTransferCoding, 501, "unsupported_transfer_coding"),
    (ParseException, 400, "malformed_request"),
)
_SHOWN = 200
_INVALID_JSON = ("qserve.http.request", "InvalidJSON")
_LINES_PER_S = 10
"""How many lines there are in a second for errors of one code that are no errors of user code; and one for those that
pass by themselves, as when the broker is away: what is wrong is said elsewhere, once."""
_SILENT = ("redirect", "no_application")
"""The codes of what is no mistake, or what health checks ask for again and again."""


@dataclass
class _ErrorLog:
    """Logs error responses, a few of each code in a second, and how many others there were."""

    _seen: dict[str, list[float]] = field(default_factory=dict)

    def note(
        self, status: int, code: str, message: str, request_id: str, line: str = "", may_pass: bool = False
    ) -> None:
        """Log one, unless there were many of its code in this second.

        Parameters:
          line: Method and path.
          may_pass: Whether the same request may succeed soon.
        """
        if code in _SILENT:
            return
        level = ERROR if status == 500 else WARNING if status > 500 else INFO
        second, seen = time.monotonic() // 1, self._seen.setdefault(code, [0, 0, 0])
        if seen[0] != second:
            if seen[2]:
                log.log(level, "%d further requests ended with %d %s", seen[2], status, code)
            seen[:] = [second, 0, 0]
        seen[1] += 1
        if level == ERROR or seen[1] <= (1 if may_pass else _LINES_PER_S):
            of = of_request(request_id, status=status, code=code)
            log.log(level, "%s%s%d %s: %s", line, line and " ", status, code, message, extra=of)
        else:
            seen[2] += 1


errors = _ErrorLog()
Note = Callable[..., None]


def problem_reply(
    status: int,
    code: str,
    message: str,
    request_id: str,
    *,
    retryable: bool = False,
    detail: str | None = None,
    **more: Any,
) -> Reply:
    """Return a response that describes an error as JSON.

    Parameters:
      detail: The error in FastAPI's words, beside the error object.
      more: Further fields of the error object.
    """
    error = {"code": code, "message": message, "request_id": request_id, "retryable": retryable, **more}
    body = {"error": error} if detail is None else {"error": error, "detail": detail}
    return Reply(status, [*_HEADERS, ("x-request-id", request_id)], _json(body))


def unreadable_reply(error: BaseException, request_id: str) -> Reply:
    """Return the response to what the server could not read as a request of HTTP."""
    for kind, status, code in _UNREADABLE:
        if isinstance(error, kind):
            message = f"the request is not valid in HTTP: {str(error)[:_SHOWN]}"
            errors.note(status, code, message, request_id)
            return problem_reply(status, code, message, request_id)
    return error_reply(error, request_id)


def error_reply(error: BaseException, request_id: str, line: str = "", note: Note = errors.note) -> Reply:
    """Return the response for an exception that was raised in the gateway; ``line`` is method and path."""
    if not isinstance(error, QserveException):
        of = of_request(request_id)
        log.error("%s%s500 internal_error: the gateway failed", line, line and " ", exc_info=error, extra=of)
        return problem_reply(500, "internal_error", "Internal Server Error", request_id)
    message, code = str(error), error.code
    if isinstance(error, BrokerError) and not isinstance(error, BrokerFull):
        code = "broker_disk_full" if "MISCONF" in message else code
    note(error.status, code, message, request_id, line, may_pass=error.retryable)
    if isinstance(error, BrokerError) and not isinstance(error, BrokerFull):
        # the text may contain the broker's address
        message = "the broker cannot be reached, or does not accept calls at the moment"
    headers, detail = (error.headers, error.detail) if isinstance(error, Refused) else ((), None)
    deployment = getattr(error, "deployment", "")
    more = {"deployment": deployment} if deployment else {}
    reply = problem_reply(error.status, code, message, request_id, retryable=error.retryable, detail=detail, **more)
    reply.headers += headers
    reply.ends_connection = isinstance(error, BadRequest) and error.close
    if error.retryable:
        reply.headers.append(("retry-after", str(getattr(error, "retry_after_s", _RETRY_AFTER_S))))
    return reply


def failure_reply(
    outcome: Outcome, request_id: str, show_errors: bool, line: str = "", reader: str = "", note: Note = errors.note
) -> Reply:
    """Return the response for a request that ended without a result, with user code's traceback if ``show_errors``.

    Parameters:
      note: Logs it.
      reader: The driver for which the gateway reads the body: what fails there is what the client has sent.
    """
    if outcome.state == State.EXPIRED:
        message = f"request {request_id} did not finish before its deadline"
        note(504, "deadline_exceeded", message, request_id, line)
        return problem_reply(504, "deadline_exceeded", message, request_id)
    if outcome.state == State.CANCELLED:
        message = f"request {request_id} was cancelled"
        note(499, "cancelled", message, request_id, line)
        return problem_reply(499, "cancelled", message, request_id)
    try:
        failure = Failure.decode(outcome.payload)
    except QserveException as error:
        return error_reply(error, request_id, line, note)
    members = _members_of(failure)
    if all(map(_is_retryable, members)):
        failure = members[0]
    # an error of qserve that user code passed on counts as its own, unless the request may succeed later
    kind = _own_kind(failure)
    if kind is not None and (not failure.deployment or kind.retryable):
        return error_reply(replace(failure, deployment="").to_exception(), request_id, line, note)
    if (unfit := _unfit(failure, reader)) is not None:
        note(*unfit, request_id, line)
        return problem_reply(*unfit, request_id)
    reply = _http_exception_reply(failure, request_id) if failure.is_answer else None
    if reply is not None:
        if reply.status >= 400:
            text = f"{failure.summary} (of deployment {failure.deployment!r})"
            note(reply.status, "http_exception", text, request_id, line)
        return reply
    message = failure.summary
    more: dict[str, Any] = {"type": failure.type, "deployment": failure.deployment}
    if show_errors:
        more["traceback"] = failure.traceback
    # a result that cannot be sent is not the same as an exception
    code = kind.code if kind is not None and issubclass(kind, ResultNotSerialisable) else TaskError.code
    note(500, code, f"{message} (of deployment {failure.deployment!r})", request_id, line)
    return problem_reply(500, code, message, request_id, **more)


def _unfit(failure: Failure, reader: str) -> tuple[int, str, str] | None:
    """Return status, code and message of a failure that is about what the client has sent."""
    if _own_kind(failure) is WebSocketNotSupported:
        return WebSocketNotSupported.status, WebSocketNotSupported.code, failure.message
    if (failure.module, failure.type) == _INVALID_JSON:
        return 400, "invalid_json", f"the request body is not valid JSON: {failure.message}"
    if reader and failure.deployment == reader:
        message = f"the request body does not have what the graph takes of it: {failure.type}: {failure.message}"
        return 422, "invalid_request", message
    return None


def _members_of(failure: Failure) -> list[Failure]:
    """Return the errors of a group, such as that of an asyncio.TaskGroup, and of the groups in it; or the error."""
    return [part for member in failure.members for part in _members_of(member)] or [failure]


def _own_kind(failure: Failure) -> type[QserveException] | None:
    kind = getattr(exceptions, failure.type, None) if failure.module == exceptions.__name__ else None
    return kind if isinstance(kind, type) and issubclass(kind, QserveException) else None


def _is_retryable(failure: Failure) -> bool:
    kind = _own_kind(failure)
    return kind is not None and kind.retryable


def _http_exception_reply(failure: Failure, request_id: str) -> Reply | None:
    """Return the response that user code raised; None when its status or headers are not valid in HTTP."""
    status, detail, named = (failure.attributes.get(name) for name in ("status_code", "detail", "headers"))
    try:
        pairs = [(str(name).encode("latin-1"), str(value).encode("latin-1")) for name, value in (named or {}).items()]
        status, found, _ = head_of(status, pairs)
    except (AttributeError, PayloadError, UnicodeError):
        return None
    headers = [(name, value) for name, value in found]
    chosen = {name for name, _ in headers}
    headers += [header for header in _HEADERS if header[0] not in chosen]
    return Reply(status, [*headers, ("x-request-id", request_id)], _json({"detail": detail}))


def _json(body: dict[str, Any]) -> bytes:
    # ensure_ascii is kept: a message from user code may contain half of a surrogate pair
    return json.dumps(body, separators=(",", ":")).encode()
