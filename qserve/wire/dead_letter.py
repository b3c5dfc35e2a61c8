"""A dead letter as the broker stores it: the hash of its request, and the calls that a replay starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from qserve.exceptions import PayloadError
from qserve.wire import replies
from qserve.wire.codec import unpack
from qserve.wire.envelope import Header
from qserve.wire.failure import Failure
from qserve.wire.outcome import KEPT_CALL, CallField, Field, Outcome, State
from qserve.wire.sealing import Seal, open_end, open_header, open_values

T = TypeVar("T")
_LAST_MS = 253_402_300_799_000  # the year 9999, after which there are no dates
_IS_KEPT_CALL = re.compile(re.escape(KEPT_CALL) + rb"([1-9][0-9]{0,6})").fullmatch


@dataclass(frozen=True)
class Event:
    """An event in the history of a call: when (Unix seconds), on which replica, and what happened."""

    at: float
    replica: str
    what: str


@dataclass(frozen=True)
class HeldCall:
    """A call that a replay starts: its queue, its step and its encoded values."""

    stream: str
    step: str
    values: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class DeadLetter:
    """A dead letter.

    Parameters:
      request_id: Its request; the result of a replay has the same ID.
      why: ``deaths`` (its replica died three times), ``retries`` (they are used up), ``unreadable``, or ``refused``
        (the broker refused to write its end).
      at: The time of its failure, in Unix seconds.
      failure: The error that its caller got; None if that cannot be read.
      history: What happened to the call that failed, in order.
      call: The call that failed.
      header: The header of its request; None if that cannot be read.
      others: Calls of other branches, which a replay starts as well.
    """

    request_id: str
    why: str
    at: float
    failure: Failure | None
    history: tuple[Event, ...]
    call: HeldCall
    header: Header | None
    others: tuple[HeldCall, ...]

    @classmethod
    def read(cls, request_id: str, parts: Mapping[bytes, bytes], seal: Seal) -> DeadLetter | None:
        """Return the dead letter in a hash; None when there is none in it.

        Raises:
          PayloadError: It cannot be read.
        """
        numbers = sorted(replies.number(found[1]) for found in map(_IS_KEPT_CALL, parts) if found)
        if not numbers:
            return None
        try:
            kept = [parts[b"%b%d" % (KEPT_CALL, number)] for number in numbers]
            (call, header), *others = [_held(data, seal) for data in kept]
            failure = Outcome(State.FAILED, parts.get(Field.FAILURE, b""))
            # a call that does not say whose it is has an ID of its own here, which its replica did not know
            claimed = replies.claimed_id(_kept_call(kept[0])[1].get(CallField.HEADER, b""))
            return cls(
                request_id,
                replies.text(parts.get(Field.WHY, b""), "a reason"),
                _moment(replies.number(parts.get(Field.AT, b"0"), "a time")),
                _readable(lambda: Failure.decode(open_end(seal, claimed, failure).payload)),
                _readable(lambda: _history(parts.get(Field.HISTORY, b"\x90"))) or (),
                call,
                header,
                tuple(call for call, _ in others),
            )
        except PayloadError as error:
            raise PayloadError(f"dead letter {request_id} cannot be read: {error}") from error


def _held(data: bytes, seal: Seal) -> tuple[HeldCall, Header | None]:
    stream, fields = _kept_call(data)
    slots = (b"%d" % number for number in range(len(fields)))
    values = [fields[slot] for slot in slots if slot in fields]
    step = replies.shown(fields.get(CallField.STEP, b""))
    header = _readable(lambda: open_header(seal, fields.get(CallField.HEADER, b"")))
    if header is not None:
        with suppress(PayloadError):  # what cannot be opened is shown as it is
            values = open_values(seal, stream, header, step, values)
    return HeldCall(stream, step, tuple(values)), header


def _kept_call(data: bytes) -> tuple[str, dict[bytes, bytes]]:
    kept = unpack(data, "a call of it", depth=2, raw=True)
    if type(kept) is not list or len(kept) < 2 or type(kept[1]) is not list:
        raise PayloadError("a call of it is malformed")
    # the number of a slot, which the broker's functions count
    flat = [b"%d" % part if type(part) is int else part for part in kept[1]]
    return replies.text(kept[0], "a queue"), replies.fields(flat)


def _history(data: bytes) -> tuple[Event, ...]:
    lines: Any = unpack(data, "its history", depth=2)
    if type(lines) is not list or not all(type(line) is list and len(line) >= 3 for line in lines):
        raise PayloadError("its history is malformed")
    if not all(type(at) in (int, float) and type(who) is type(what) is str for at, who, what, *_ in lines):
        raise PayloadError("its history is malformed")
    return tuple(Event(_moment(at), who, what) for at, who, what, *_ in lines)


def _moment(at_ms: float) -> float:
    if not 0 <= at_ms <= _LAST_MS:
        raise PayloadError(f"{at_ms} is not a time")
    return at_ms / 1000


def _readable(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except PayloadError:
        return None
