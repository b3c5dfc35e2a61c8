"""What is sealed of a request's messages, and the place that each of them is for.

    message           place
    header            its request
    value of a slot   queue (the same in every version), request, step and slot
    result            its request
    failure           any request: it passes unchanged to requests that waited for the one that failed
    item              its request, and its number in the stream

A value that is another request's result was sealed as a result; the header, which its submitter sealed, says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from qserve.exceptions import AppNotFound, PayloadError, QserveException, ReplicaLost
from qserve.wire.envelope import REQUEST_ID_CHARS, Header
from qserve.wire.failure import Failure
from qserve.wire.moves import Join, Move, Start
from qserve.wire.outcome import Outcome, State
from qserve.wire.signing import Seal

DEATH_LIMIT = 3
"""Deaths of a call's replica (the later ones while it ran alone) after which the call fails."""
LOST = b"\0replica_lost"
DELETED = b"\0app_deleted"
_TOLD: Mapping[bytes, QserveException] = {
    LOST: ReplicaLost(f"its replica died {DEATH_LIMIT} times while running this call"),
    DELETED: AppNotFound("the application was deleted before this call was finished"),
}
"""Failures that the broker's functions themselves give to requests: they hold no key, so it is words that they give."""


@lru_cache(maxsize=4096)
def place_of(stream: str) -> str:
    """A queue without its version, and without the replica whose own one it is."""
    start, _, rest = stream.partition(":q:")
    app, _, deployment = rest.partition("@")[0].rpartition(":")
    return f"{start}|{app.rpartition(':')[0]}|{deployment}"


def seal_header(seal: Seal, header: bytes) -> bytes:
    """A header, as it travels: its request's id stays readable for the broker's functions."""
    request_id = header[:REQUEST_ID_CHARS]
    return request_id + seal.seal(b"header|" + request_id, header[REQUEST_ID_CHARS:])


def open_header(seal: Seal, sealed: bytes) -> Header:
    """The header of a message; PayloadError when it is none of ours."""
    request_id = sealed[:REQUEST_ID_CHARS]
    return Header.decode(request_id + seal.open(b"header|" + request_id, sealed[REQUEST_ID_CHARS:]))


def seal_moves(seal: Seal, request_id: str, moves: Sequence[Move]) -> list[Move]:
    """Moves whose values are sealed."""
    sealed: list[Move] = []
    for move in moves:
        place, step = place_of(move.stream), move.step
        if isinstance(move, Start):
            values = [seal.seal(_slot(place, request_id, step, slot), value) for slot, value in enumerate(move.values)]
            sealed.append(Start(move.stream, step, values))
        else:
            slots = [(slot, seal.seal(_slot(place, request_id, step, slot), value)) for slot, value in move.slots]
            sealed.append(Join(move.stream, step, move.needs, slots))
    return sealed


def open_values(seal: Seal, stream: str, header: Header, step: str, values: Sequence[bytes]) -> list[bytes]:
    """The values of a call's slots; PayloadError when one was not sealed for this call."""
    place, request_id = place_of(stream), header.request_id
    if not header.awaits:
        return [seal.open(_slot(place, request_id, step, slot), value) for slot, value in enumerate(values)]
    opened = []
    for slot, value in enumerate(values):
        awaited = header.awaits.get(f"{step}.{slot}")
        context = _slot(place, request_id, step, slot) if awaited is None else _end(awaited)
        opened.append(seal.open(context, value))
    return opened


def seal_end(seal: Seal, request_id: str, state: str, payload: bytes) -> bytes:
    """The result or failure of a request; what has neither needs no seal."""
    if state == State.DONE:
        return seal.seal(_end(request_id), payload)
    return seal.seal(_FAILURE, payload) if state == State.FAILED else payload


def open_end(seal: Seal, request_id: str, outcome: Outcome) -> Outcome:
    """How a request ended; a failure when that was not sealed by one of us."""
    try:
        if outcome.state == State.DONE:
            return Outcome(State.DONE, seal.open(_end(request_id), outcome.payload))
        if outcome.state == State.FAILED:
            told = _TOLD.get(outcome.payload)
            return Outcome(State.FAILED, Failure.of(told).encode() if told else seal.open(_FAILURE, outcome.payload))
    except PayloadError as error:
        return Outcome(State.FAILED, Failure.of(error).encode())
    return outcome


def item_context(request_id: str, number: int) -> bytes:
    """The place of one item of a streamed result."""
    return b"item|%b|%d" % (request_id.encode(), number)


_FAILURE = b"failure"


def _end(request_id: str) -> bytes:
    return b"result|" + request_id.encode()


def _slot(place: str, request_id: str, step: str, slot: int) -> bytes:
    return f"{place}|{request_id}|{step}|{slot}".encode()
