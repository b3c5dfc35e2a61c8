"""The webhook of a request: where its end is sent, and what is to be sent once it has come."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack

from qserve.exceptions import PayloadError
from qserve.wire.codec import unpack
from qserve.wire.outcome import ENDED, Outcome, State
from qserve.wire.replies import number, request_id, shown
from qserve.wire.sealing import Seal, open_end, webhook_context

_PARTS = 6
_LAST_MS = 253_402_300_799_000  # the year 9999, after which there are no dates


class Target(NamedTuple):
    """Where the end of a request is sent.

    Parameters:
      url: The address, as the client gave it.
      trace_id: The ID that its client has given to the request.
    """

    url: str
    trace_id: str

    def encode(self) -> bytes:
        """Return it as msgpack."""
        return msgpack.packb(self)  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> Target:
        """Read what ``encode`` wrote; raise PayloadError for anything else."""
        found = unpack(data, "a webhook")
        if type(found) is not list or len(found) < len(cls._fields) or not all(type(part) is str for part in found[:2]):
            raise PayloadError(f"{len(data)} bytes are not a webhook")
        return cls(*found[: len(cls._fields)])  # a newer version may say more


class DueWebhook(NamedTuple):
    """A webhook whose time has come.

    Parameters:
      outcome: How the request has ended; None while it is open, after its deadline.
      is_whole: Whether the outcome has the result or failure. Of a long one only the state is there, which nobody has
        sealed.
      at_ms: When it ended, in Unix ms.
      tries: How often it was sent.
    """

    request_id: str
    target: Target
    outcome: Outcome | None
    is_whole: bool
    at_ms: int
    tries: int

    @property
    def status(self) -> str:
        """How the request has ended, in a word."""
        return "open" if self.outcome is None else State(self.outcome.state).word

    @classmethod
    def read(cls, parts: Any, seal: Seal) -> DueWebhook:
        """Return one webhook in a reply of ``due``; raise PayloadError for anything else."""
        if type(parts) is not list or len(parts) != _PARTS:
            raise PayloadError("a webhook is not what the broker's function replies")
        of, target, state, payload, at_ms, tries = parts
        found, at_ms = request_id(of), number(at_ms, "a time")
        if not all(type(part) is bytes for part in (target, state, payload)) or not 0 <= at_ms < _LAST_MS:
            raise PayloadError(f"the webhook of request {found} cannot be read")
        outcome = None
        if state:
            outcome = Outcome(shown(state), payload)
            if payload:
                outcome = open_end(seal, found, outcome)
            elif outcome.state not in ENDED:
                raise PayloadError(f"{outcome.state[:20]!r} is not a state in which a request ends")
        return cls(
            found,
            Target.decode(seal.open(webhook_context(found), target)),
            outcome,
            bool(payload),
            at_ms,
            number(tries, "a number of tries"),
        )
