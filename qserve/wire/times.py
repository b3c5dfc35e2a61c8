"""How long each step of a request has waited and run: this travels in front of the values that a step gives to others.

So it comes from the try of a step that was committed, as its values do, and a join has the times of all its branches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgpack

from qserve.exceptions import PayloadError
from qserve.wire.codec import unpack

STEPS_LIMIT = 64
"""The most steps whose times travel; those of later steps are left out."""
_MARK = b"\xc1T"  # no value begins with this byte, which msgpack never writes
_LENGTH_BYTES = 4
_BEGIN = len(_MARK) + _LENGTH_BYTES
_NAME_CHARS = 128
_LONGEST_MS = 10.0**10
_NOT_TOKEN = re.compile(r"[^A-Za-z0-9_.-]+")


class StepTime(NamedTuple):
    """A step by its name: the milliseconds that it waited, for a replica and for its turn there, and that it ran."""

    name: str
    queued_ms: float
    run_ms: float


Times = dict[str, StepTime]
"""Times by their steps, as messages name these."""


def with_times(value: bytes, times: Times) -> bytes:
    """Return an encoded value with times in front of it."""
    packed = msgpack.packb([[step, *time] for step, time in times.items()][:STEPS_LIMIT])
    return b"%b%b%b%b" % (_MARK, len(packed).to_bytes(_LENGTH_BYTES, "big"), packed, value)


def split_times(data: bytes) -> tuple[Times, bytes]:
    """Return the times in front of an encoded value, and that; PayloadError if they cannot be read."""
    if not data.startswith(_MARK):
        return {}, data
    end = _BEGIN + int.from_bytes(data[len(_MARK) : _BEGIN], "big")
    found = unpack(data[_BEGIN:end], "the times of steps", depth=3)
    if type(found) is not list or len(found) > STEPS_LIMIT or end > len(data):
        raise PayloadError("the times of steps are malformed")
    return dict(map(_read, found)), data[end:]


def _read(entry: Any) -> tuple[str, StepTime]:
    if type(entry) is list and len(entry) == 4 and all(type(part) is str for part in entry[:2]):
        step, name, *times = entry
        if all(type(time) is float and 0 <= time < _LONGEST_MS for time in times):
            return step, StepTime(name, *times)
    raise PayloadError("the times of steps are malformed")


def step_time(deployment: str, method: str, queued_ms: float, run_ms: float) -> StepTime:
    """Return the times of a step, by a name that may stand in a header."""
    name = deployment if method == "__call__" else f"{deployment}.{method}"
    within = [round(min(max(0.0, time), _LONGEST_MS / 10), 3) for time in (queued_ms, run_ms)]
    return StepTime(_NOT_TOKEN.sub("_", name)[:_NAME_CHARS] or "_", *within)


def server_timing(times: Iterable[StepTime]) -> str:
    """Return the value of the header ``Server-Timing``: an entry for each step, with both of its times."""
    return ", ".join(
        f'{_NOT_TOKEN.sub("_", name)};dur={queued_ms + run_ms:.3f};desc="queued {queued_ms:.3f}, run {run_ms:.3f}"'
        for name, queued_ms, run_ms in times
    )
