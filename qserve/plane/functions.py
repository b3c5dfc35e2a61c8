"""The face of the library in ``lua/``: one builder for each function, giving the command to send.

Functions and not EVALSHA: they survive restarts and FLUSHALL, and an ACL can deny EVAL to everybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import msgpack

Command = tuple[bytes | str | int, ...]

# in this order: a file may use what those before it define
_PARTS = ("requests", "models", "submit", "commit", "retries", "results", "takeover")
_TEXT = "#!lua name=qserve_@\n" + "\n".join(
    (files("qserve.plane") / "lua" / f"{part}.lua").read_text() for part in _PARTS
)
_DIGEST = hashlib.sha256(_TEXT.encode()).hexdigest()[:8]
LIBRARY = _TEXT.replace("@", _DIGEST)
"""The library's text; its digest is part of every name, so two versions can be loaded at once."""
LOAD: Command = ("FUNCTION", "LOAD", "REPLACE", LIBRARY)


def _name(function: str) -> bytes:
    return f"qserve_{function}_{_DIGEST}".encode()


_SUBMIT, _COMMIT, _WATCH = _name("submit"), _name("commit"), _name("watch")
_ADVERTISE, _DISBAND = _name("advertise"), _name("disband")
_POSTPONE, _WAKE = _name("postpone"), _name("wake")
_EMIT, _TAKE, _RETIRE = _name("emit"), _name("take"), _name("retire")
_FORGET, _CLOSE, _RECLAIM = _name("forget"), _name("close"), _name("reclaim")


@dataclass(frozen=True)
class Start:
    """A move: put the call ``step`` on ``stream`` with all its values."""

    stream: str
    step: str
    values: Sequence[bytes]


@dataclass(frozen=True)
class Join:
    """A move: fill slots of the call ``step``; it goes on ``stream`` when ``needs`` of them are there."""

    stream: str
    step: str
    needs: int
    slots: Sequence[tuple[int, bytes]]


Move = Start | Join


@dataclass(frozen=True)
class Awaited:
    """An argument that is another request's result: it fills ``slot`` of ``step`` when that request is done."""

    request: str
    stream: str
    step: str
    needs: int
    slot: int


@dataclass(frozen=True)
class Model:
    """A call's wish: a replica that holds this model, when one that does is free.

    Parameters:
      models: The hash of who holds what.
      max_ongoing: Calls that a replica takes at once.
    """

    models: str
    model_id: str
    max_ongoing: int


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
    header: bytes,
    mailbox: str,
    life_ms: int,
    keep_ms: int,
    moves: Sequence[Move],
    awaited: Sequence[Awaited] = (),
    limits: dict[str, int] | None = None,
    model: Model | None = None,
) -> Command:
    """Accept a request: answers ``OK``, ``DUP``, ``FULL``, ``MOVED`` or ``LOST``."""
    streams: list[str] = []
    packed = _pack(moves, streams, 2)
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
            2 + streams.index(item.stream),
            item.step,
            item.needs,
            item.slot,
        )
    caps = [(limits or {}).get(stream, -1) for stream in streams]
    keys = (request, *streams) if model is None else (request, *streams, model.models)
    wish = ("", 0) if model is None else (model.model_id, model.max_ongoing)
    return (
        "FCALL", _SUBMIT, len(keys), *keys, request_id, header, mailbox, life_ms, keep_ms, *wish, *caps,
        *packed, *refs,
    )  # fmt: skip


def commit(
    stream: str,
    request: str,
    entry_id: bytes,
    request_id: str,
    attempt: str,
    step: str,
    moves: Sequence[Move] = (),
    state: str = "",
    payload: bytes = b"",
) -> Command:
    """End a call: answers ``OK``, ``CLOSED``, ``GONE``, ``STALE`` or ``DUP``."""
    streams: list[str] = []
    packed = _pack(moves, streams, 3)
    return (
        "FCALL", _COMMIT, 2 + len(streams), stream, request, *streams,
        entry_id, request_id, attempt, step, state, payload, *packed,
    )  # fmt: skip


def postpone(
    stream: str, request: str, delayed: str, entry_id: bytes, wait_ms: int, tries: int, life_ms: int
) -> Command:
    """End one try of a call, which comes back after ``wait_ms``: answers ``OK`` or ``STALE``."""
    return ("FCALL", _POSTPONE, 3, stream, request, delayed, entry_id, wait_ms, tries, life_ms)


def wake(delayed: str, stream: str) -> Command:
    """Put calls whose wait is over back on their queue: answers how many."""
    return ("FCALL", _WAKE, 2, delayed, stream)


def watch(request: str, mailbox: str = "") -> Command:
    """Look at a request, and have ``mailbox`` told of its end when it is still open."""
    waiter = msgpack.packb({"mailbox": mailbox}, use_bin_type=False) if mailbox else b""
    return ("FCALL", _WATCH, 1, request, waiter)


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


def reclaim(
    stream: str, consumer: str, death_limit: int, failure: bytes, request_prefix: str, to: str | None = None
) -> Command:
    """Hand over what a dead consumer held, to the stream ``to`` (None: the same): answers the number of its calls."""
    return ("FCALL", _RECLAIM, 2, stream, to or stream, consumer, death_limit, failure, request_prefix)


def advertise(models: str, personal: str, consumer: str, life_ms: int, held: Iterable[str]) -> Command:
    """Say which models a replica holds; calls for them come to its own stream while it is free."""
    return ("FCALL", _ADVERTISE, 2, models, personal, consumer, life_ms, *held)


def disband(personal: str, stream: str, models: str, consumer: str, request_prefix: str) -> Command:
    """Move what waits for a replica that is gone to the common stream: answers the number of calls."""
    return ("FCALL", _DISBAND, 3, personal, stream, models, consumer, request_prefix)


def retire(streams: Sequence[str], force: bool, failure: bytes, request_prefix: str) -> Command:
    """Remove a version's queues when they are empty, or with ``force`` fail what is left: answers 1 when gone."""
    return ("FCALL", _RETIRE, len(streams), *streams, int(force), failure, request_prefix)
