"""The functions that supervisors and operators call: one builder for each, giving the command to send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qserve.broker.library import Command, function_name

_RECLAIM, _DISBAND, _RETIRE = (function_name(name) for name in ("reclaim", "disband", "retire"))
_ADVERTISE, _WAKE = (function_name(name) for name in ("advertise", "wake"))
_REPLAY, _PURGE = (function_name(name) for name in ("replay", "purge"))


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
