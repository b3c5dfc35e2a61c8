"""What the function library answers, as outcomes."""

from __future__ import annotations

from typing import Any

from qserve.base import failpoints
from qserve.broker.connection import refusal
from qserve.broker.functions import NOT_REPLICATED
from qserve.exceptions import (
    AppNotFound,
    BackPressureError,
    BrokerError,
    BrokerStateLost,
    BrokerUnavailable,
    IdempotencyMismatch,
    NotReplicated,
    PayloadError,
    ResultUnavailable,
)
from qserve.wire.envelope import REQUEST_ID_CHARS
from qserve.wire.failure import Failure
from qserve.wire.outcome import ITEM, Outcome, State
from qserve.wire.sealing import Seal, open_end

MOVED = b"MOVED"
_STATES = frozenset(state.encode() for state in State if state is not State.OPEN) | {ITEM.encode()}
UNKNOWN = [b"", b""]
"""What ``watch`` answers for a request that the broker does not know."""


def read_message(message: bytes) -> tuple[str, Outcome]:
    """A mailbox's message (id, one character of state, payload): whose it is, and its end or (state ``i``) an item.

    Raises:
      PayloadError: It is something else.
    """
    head = message[: REQUEST_ID_CHARS + 1]
    if not head.isascii() or head[REQUEST_ID_CHARS:] not in _STATES:
        raise PayloadError(f"{len(message)} bytes are no message for a mailbox")
    text = head.decode()
    return text[:-1], Outcome(text[-1], message[REQUEST_ID_CHARS + 1 :])


def failed(error: BaseException) -> Outcome:
    """A failure that qserve itself found."""
    return Outcome(State.FAILED, Failure.of(error).encode())


def lost() -> Outcome:
    """For a request of which the broker knows nothing."""
    return failed(ResultUnavailable("nothing is known of this request: its result expired, or it never existed"))


def state_lost() -> Outcome:
    """For a request that was accepted by a broker which has lost its data since."""
    return failed(BrokerStateLost("the broker has lost its data, and this request with it: send it again"))


def was_known(reply: Any) -> bool:
    """Whether ``submit`` found a request that had been taken before, and answers what ``watch`` would."""
    return isinstance(reply, list) and reply[0] != b"FULL"


def refused(reply: Any) -> Outcome | None:
    """Why ``submit`` refused; None when the request was accepted (now or by an earlier sending)."""
    if failpoints.ARMED:
        failpoints.hit("submit.after_send")
    if reply in (b"OK", b"DUP"):
        return None
    if isinstance(reply, list):
        full = "Request dropped due to backpressure: as many requests as allowed are waiting"
        return failed(BackPressureError(full, reply[1]))
    if reply == b"MISMATCH":
        return failed(IdempotencyMismatch("this Idempotency-Key was used for another request"))
    if reply == MOVED:
        return failed(AppNotFound("the application's queues are gone: it was deleted or replaced"))
    if reply == b"LOST":
        return failed(ResultUnavailable("an argument's result is no longer stored"))
    if reply == NOT_REPLICATED:
        return failed(NotReplicated("no replica of the broker had this request in time; send it again"))
    return _unexpected(reply)


def read_reply(reply: Any, seal: Seal, request_id: str) -> Outcome | None:
    """What ``watch`` found; None while the request is open."""
    if isinstance(reply, Exception) or not isinstance(reply, list):
        error = reply if isinstance(reply, BrokerError) else refusal(reply)
        # what passes by itself says nothing of the request: whoever waits for it looks again
        return None if isinstance(error, BrokerUnavailable) else failed(error)
    state, payload = reply[0].decode(), reply[1]
    if state == State.OPEN:
        return None
    return open_end(seal, request_id, Outcome(state, payload)) if state else lost()


def _unexpected(reply: Any) -> Outcome:
    if isinstance(reply, BrokerUnavailable):
        return failed(reply)
    return failed(refusal(reply))
