"""The end of a request as an HTTP answer, whoever asks for it."""

from __future__ import annotations

import json

from qserve.http.render import parse
from qserve.wire.outcome import Outcome, State
from qserve_gateway.response.problems import of_outcome
from qserve_gateway.response.reply import Reply

PLACE = "/-/requests/"
"""Where answers can be asked for, followed by the request's id."""
_ID_HEADER = "x-qserve-request-id"
_POLL_AFTER_S = 1


def answer_of(outcome: Outcome, trace_id: str, show_errors: bool, request_id: str = "") -> Reply:
    """The answer to a request that has ended.

    Parameters:
      outcome: Its end.
      trace_id: The ``X-Request-ID`` of whoever asks.
      show_errors: Whether tracebacks of user code are shown.
      request_id: Under which the result can be asked for; "" when it cannot.
    """
    if outcome.state != State.DONE:
        return of_outcome(outcome, trace_id, show_errors)
    status, named, body = parse(outcome.payload)
    headers = [(name, value) for name, value in named]
    headers.append(("x-request-id", trace_id))
    if request_id:
        headers.append((_ID_HEADER, request_id))
    return Reply(status, headers, body)


def accepted(request_id: str, trace_id: str, applied: bool = False) -> Reply:
    """The answer while a request has not ended.

    Parameters:
      request_id: Under which the result can be asked for.
      trace_id: The ``X-Request-ID`` of whoever asks.
      applied: Whether it is given because the client prefers it to waiting.
    """
    headers = [
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("x-request-id", trace_id),
        (_ID_HEADER, request_id),
        ("location", PLACE + request_id),
        ("retry-after", str(_POLL_AFTER_S)),
    ]
    if applied:
        headers.append(("preference-applied", "respond-async"))
    body = {"request_id": request_id, "status": "accepted"}
    return Reply(202, headers, json.dumps(body, separators=(",", ":")).encode())
