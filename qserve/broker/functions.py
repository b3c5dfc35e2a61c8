"""The functions that run in the broker: one builder for each, giving the command to send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack

from qserve.base.keys import Keys
from qserve.broker.library import Command, function_name
from qserve.wire.moves import Awaited, Epoch, Model, Move, Start

NOT_REPLICATED = b"NOREPLICA"
"""Stands in the place of the reply to a submission that only the primary has."""

_SUBMIT, _COMMIT, _BURY, _POSTPONE = (function_name(name) for name in ("submit", "commit", "bury", "postpone"))
_WATCH, _LOOK, _FORGET, _CLOSE = (function_name(name) for name in ("watch", "look", "forget", "close"))
_EMIT, _TAKE, _GIVE_BACK = (function_name(name) for name in ("emit", "take", "give_back"))
_RECLAIM, _DISBAND, _RETIRE = (function_name(name) for name in ("reclaim", "disband", "retire"))
_ADVERTISE, _WAKE = (function_name(name) for name in ("advertise", "wake"))
_REPLAY, _PURGE = (function_name(name) for name in ("replay", "purge"))

_EPOCH = b"EPOCH "


class KnownEpoch:
    """The epoch that a process has last seen; "" before the first answer that tells it.

    Commands carry it, and the functions refuse those that were meant for data that is no more.
    """

    def __init__(self, keys: Keys) -> None:
        self.key = keys.epoch
        self.value = ""

    def current(self) -> Epoch:
        """What commands carry."""
        return Epoch(self.key, self.value)

    def adopt(self, value: str) -> bool:
        """Go on with the broker's epoch; whether data was lost since the one that was known before."""
        is_lost = bool(self.value) and value != self.value
        self.value = value
        return is_lost


def other_epoch(reply: Any) -> str | None:
    """The broker's epoch when a function refused a command because of it ("" for none); else None."""
    return reply[len(_EPOCH) :].decode() if isinstance(reply, bytes) and reply.startswith(_EPOCH) else None


def _pack(moves: Iterable[Move], streams: list[str], first_key: int) -> list[bytes | str | int]:
    packed: list[bytes | str | int] = [0]
    for count, move in enumerate(moves, 1):
        packed[0] = count
        if move.stream not in streams:
            streams.append(move.stream)
        key = first_key + streams.index(move.stream)
        if isinstance(move, Start):
            packed += ("S", key, move.step, len(move.values), *move.values)
        else:
            packed += ("F", key, move.step, move.needs, len(move.slots))
            for slot in move.slots:
                packed += slot
    return packed


def submit(
    request: str,
    request_id: str,
    epoch: Epoch,
    header: bytes,
    mailbox: str,
    life_ms: int,
    keep_ms: int,
    moves: Sequence[Move],
    awaited: Sequence[Awaited] = (),
    limits: dict[str, int] | None = None,
    model: Model | None = None,
    fingerprint: str = "",
) -> Command:
    """Accept a request: answers ``OK``, ``DUP``, ``[FULL, seconds]``, ``MOVED``, ``LOST`` or another epoch.

    With a fingerprint, ``[state, result]`` of the request that was accepted before under this id, or ``MISMATCH``.
    """
    streams: list[str] = []
    packed = _pack(moves, streams, 3)
    refs: list[bytes | str | int] = [len(awaited)]
    for item in awaited:
        if item.stream not in streams:
            streams.append(item.stream)
        waiter = {
            "request": request,
            "request_id": request_id,
            "header": header,
            "stream": item.stream,
            "step": item.step,
            "needs": item.needs,
            "slot": item.slot,
        }
        # Lua's cmsgpack reads byte strings only in msgpack's old "raw" form
        body = msgpack.packb(waiter, use_bin_type=False)
        refs += (
            item.request,
            body,
            3 + streams.index(item.stream),
            item.step,
            item.needs,
            item.slot,
        )
    caps = [(limits or {}).get(stream, -1) for stream in streams]
    keys = (request, epoch.key, *streams) if model is None else (request, epoch.key, *streams, model.models)
    wish = ("", 0) if model is None else (model.model_id, model.max_ongoing)
    return (
        "FCALL", _SUBMIT, len(keys), *keys, request_id, epoch.value, header, mailbox, life_ms, keep_ms, *wish,
        fingerprint, *caps, *refs, *packed,
    )  # fmt: skip


def is_submission(command: Command) -> bool:
    """Whether a command is what ``submit`` built."""
    return command[1] == _SUBMIT


def commit(
    stream: str,
    request: str,
    entry_id: bytes,
    request_id: str,
    epoch: Epoch,
    attempt: str,
    step: str,
    moves: Sequence[Move] = (),
    state: str = "",
    payload: bytes = b"",
) -> Command:
    """End a call: answers ``OK``, ``CLOSED``, ``HELD``, ``GONE``, ``STALE``, ``DUP``, ``BADKEY`` or another epoch."""
    streams: list[str] = []
    packed = _pack(moves, streams, 4)
    return (
        "FCALL", _COMMIT, 3 + len(streams), stream, request, epoch.key, *streams,
        entry_id, request_id, epoch.value, attempt, step, state, payload, *packed,
    )  # fmt: skip


def postpone(
    stream: str,
    request: str,
    delayed: str,
    entry_id: bytes,
    wait_ms: int,
    tries: int,
    life_ms: int,
    replica: str,
    what: str,
) -> Command:
    """End one try of a call, which comes back after ``wait_ms``: answers ``OK`` or ``STALE``.

    Parameters:
      replica, what: Who ran it and what happened, for its history.
    """
    return ("FCALL", _POSTPONE, 3, stream, request, delayed, entry_id, wait_ms, tries, life_ms, replica, what)


def bury(
    stream: str,
    request: str,
    entry_id: bytes,
    request_id: str,
    why: str,
    failure: bytes,
    replica: str,
    what: str,
    known: bool = True,
) -> Command:
    """End a delivery as a dead letter and fail its request: answers ``OK`` or ``STALE``.

    Parameters:
      why: ``retries`` or ``unreadable``.
      failure: What the caller is told.
      replica, what: Who ran it and what happened, for its history.
      known: Whether the message told its request; otherwise it is kept under an id of its own.
    """
    return ("FCALL", _BURY, 2, stream, request, entry_id, request_id, why, failure, replica, what, int(known))


def watch(request: str, mailbox: str = "") -> Command:
    """Look at a request, and have ``mailbox`` told of its end when it is still open."""
    return ("FCALL", _WATCH, 1, request, mailbox) if mailbox else ("FCALL", _LOOK, 1, request)


def emit(request: str, request_id: str, number: int, payload: bytes) -> Command:
    """Send one item of a streamed result: answers how many wait for the reader, or -1 to stop."""
    return ("FCALL", _EMIT, 1, request, request_id, number, payload)


def take(request: str, count: int) -> Command:
    """Say that the reader has taken ``count`` items more."""
    return ("FCALL", _TAKE, 1, request, count)


def forget(requests: Sequence[str]) -> Command:
    """Drop results (or the later result of open requests) that nobody will ask for."""
    return ("FCALL", _FORGET, len(requests), *requests)


def close(request: str, request_id: str, state: str, payload: bytes) -> Command:
    """End an open request without a result: answers 1, or 0 when it had ended before."""
    return ("FCALL", _CLOSE, 1, request, request_id, state, payload)


def give_back(stream: str, to: str, entry_ids: Iterable[bytes], request_prefix: str) -> Command:
    """Put deliveries that were not begun back, on the stream ``to``: answers how many; no death is counted."""
    return ("FCALL", _GIVE_BACK, 2, stream, to, request_prefix, *entry_ids)


# -- what supervisors and operators call -----------------------------------------------------------


def reclaim(
    stream: str, consumer: str, death_limit: int, failure: bytes, request_prefix: str, to: str | None = None
) -> Command:
    """Hand over what a dead consumer held, to the stream ``to`` (None: the same): answers the number of its calls."""
    return ("FCALL", _RECLAIM, 2, stream, to or stream, consumer, death_limit, failure, request_prefix)


def disband(personal: str, stream: str, models: str, consumer: str, request_prefix: str) -> Command:
    """Move what waits for a replica that is gone to the common stream: answers the number of calls."""
    return ("FCALL", _DISBAND, 3, personal, stream, models, consumer, request_prefix)


def retire(streams: Sequence[str], force: bool, failure: bytes, request_prefix: str) -> Command:
    """Remove a version's queues when they are empty, or with ``force`` fail what is left: answers 1 when gone."""
    return ("FCALL", _RETIRE, len(streams), *streams, int(force), failure, request_prefix)


def wake(delayed: str, stream: str) -> Command:
    """Put calls whose wait is over back on their queue: answers how many."""
    return ("FCALL", _WAKE, 2, delayed, stream)


def advertise(models: str, personal: str, consumer: str, life_ms: int, held: Iterable[str]) -> Command:
    """Say which models a replica holds; calls for them come to its own stream while it is free."""
    return ("FCALL", _ADVERTISE, 2, models, personal, consumer, life_ms, *held)


def replay(
    dead: str,
    request: str,
    request_id: str,
    header: bytes,
    life_ms: int,
    keep_ms: int,
    moved: Mapping[str, str],
) -> Command:
    """Open a dead letter's request again: answers ``OK``, ``NONE``, ``OPEN`` or ``MOVED``.

    Parameters:
      moved: The queue that has taken the place of an old one.
    """
    pairs = [stream for pair in moved.items() for stream in pair]
    return ("FCALL", _REPLAY, 2, dead, request, request_id, header, life_ms, keep_ms, *pairs)


def purge(index: str, letters: Mapping[str, str]) -> Command:
    """Throw dead letters away, given their keys by id: answers how many there were."""
    return ("FCALL", _PURGE, 1 + len(letters), index, *letters.values(), *letters)
