"""A request as the broker stores it: the fields of its hash and of its calls, its states, and how it ended."""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import NamedTuple


class Field(bytes, Enum):
    """A field of the hash of a request, or of a dead letter, which holds what its request held."""

    STATE = b"st"
    HEADER = b"h"  # that each of its calls carries
    MAILBOX = b"to"  # of the submitter
    WAITERS = b"w"  # the number of further waiters; w1, w2 ... are each one
    KEEP = b"keep"  # milliseconds that the result is kept
    LEFT = b"left"  # there if the result is left for a reader who may never come
    COMMITTED_BY = b"by"  # step:attempt of the last commit
    RESULT = b"res"  # once it is not open
    SENT = b"sent"  # items of a streamed result
    TAKEN = b"taken"  # those of them that its reader has taken
    ITEMS = b"i"  # the stored values of the last of them: a cmsgpack of their names
    TOLD = b"told"  # parts of messages that the client of a WebSocket has sent
    HEARD = b"hrd"  # those of them that its application has taken
    PROGRESS = b"at"  # the last event in which its code says how far it is
    TRACED = b"tr"  # when it was accepted, in Unix ms, if its trace is kept once it has ended
    QUEUE = b"q"  # that of its first call, which names the version, if its trace is kept
    EVENTS = b"ev"  # how many events were written down; there once somebody wants to know
    VALUES = b"y"  # the stored values that it holds: a cmsgpack of the uses that are left of each
    FINGERPRINT = b"fp"  # of what was asked, where the result can be fetched by the id

    # of dead letters only
    WHY = b"!why"  # deaths, retries or unreadable
    AT = b"!at"  # Unix ms
    FAILURE = b"!failure"  # the error that its caller got
    HISTORY = b"!y"  # of the call that failed
    CALLS = b"!n"  # the number of its calls; they are in !1, !2 ..., see KEPT_CALL


KEPT_CALL = b"!"
HOLDERS = b"n"
"""The field of a stored value with the number of requests, dead letters, results and items that hold it."""


class CallField(bytes, Enum):
    """A field of a call, which is an entry of a stream; 0, 1 ... have the values of its slots."""

    HEADER = b"h"
    STEP = b"s"
    DEATHS = b"x"  # of its replica
    TRIES = b"t"  # that user code failed
    HISTORY = b"y"  # what happened to it: a msgpack list of [Unix ms, replica, what]


class HookField(bytes, Enum):
    """A field of the webhook of a request."""

    TARGET = b"to"  # where it is sent, sealed
    STATE = b"st"  # how the request has ended
    PAYLOAD = b"res"  # its result or failure, if that is short
    AT = b"at"  # when it ended, in Unix ms
    TRIES = b"t"  # how often it was sent


class State(StrEnum):
    """The state of a request; the values are what the broker stores, and what its functions know."""

    OPEN = "o"
    DONE = "d"
    FAILED = "f"
    CANCELLED = "c"
    EXPIRED = "x"

    @property
    def word(self) -> str:
        """What people call it, such as "done"."""
        return self.name.lower()


ENDED = frozenset(State) - {State.OPEN}
"""The states in which a request has ended."""

RUNS, WAITS, RETRIES, AWAITS = "running", "waiting", "retrying", "awaiting"
"""What a call of an open request does: a replica has it, or it waits for one, for its next try, or for a result."""
ITEM = "i"
"""Stands in the place of a state in a mailbox's message that holds one item of a streamed result."""
OBSERVED = "w"
"""Stands in the place of a state in a message to a replica that somebody follows a request which it runs."""
TOLD = "t"
"""Stands in the place of a state in a message to a replica that holds a part of what a WebSocket's client has sent."""
SESSION = "__qserve_websocket__"
"""The step that is the session of a WebSocket. It stays with its replica, and ends with it."""
ANNOUNCED = "a"
"""Stands in the place of a state when only the length of a result is sent, which is then the payload."""
ANNOUNCED_FROM = 64 * 1024
"""Longer results are only announced to the mailboxes that want it, in bytes as they are stored."""


class Outcome(NamedTuple):
    """How a request ended: any state but open, with the bytes of its result or failure."""

    state: str
    payload: bytes


def end_of_items(count: int) -> bytes:
    """Return the stored result of a request whose result was sent as so many items."""
    return b"\xc1%d" % count  # no value begins with this byte, which msgpack never writes


def items_in(payload: bytes) -> int | None:
    """Return how many items a result was sent as; None for one that is stored whole."""
    mark, number = payload[:1], payload[1:]
    return int(number) if mark == b"\xc1" and number.isdigit() and len(number) < 20 else None
