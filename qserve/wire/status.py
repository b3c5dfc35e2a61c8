"""The report of a replica on its own state, as the broker stores it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import isfinite
from typing import Any

from qserve.exceptions import PayloadError
from qserve.wire.codec import known

RUNNING, STARTING, FAILED, WAITING = "RUNNING", "STARTING", "FAILED", "WAITING"
DIED = "died"
"""Begins the message of a supervisor whose replicas keep dying while they take calls."""
_STATES = (RUNNING, STARTING, FAILED, WAITING)
_NUMBERS = {"pid": (int,), "until_ms": (int, float), "failures": (int,), "next_try_ms": (int, float)}
_LIMIT = 512 * 1024
_CONTAINERS = 64  # one, and what a later version may add
STATS_LIMIT = 4096
"""The longest that the numbers of one replica may be: each report carries them."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True)
class ReplicaStatus:
    """The state that a replica reports.

    Parameters:
      state: RUNNING, or FAILED for the reason in ``message`` (the traceback of user code). Its supervisor reports it as
        STARTING before that, and WAITING instead of replicas while it does not have the version's code; ``message``
        says what it has.
      config: The digest of the options that it has adopted.
      refused: That of the options which user code has refused, for the reason in ``message``.
      until_ms: Until when it holds, by the broker's clock, if it is not repeated; 0 for as long as it is stored.
      failures: How many starts in a row have failed, in the report of a supervisor.
      next_try_ms: When it tries again, by the broker's clock; 0 when it does not wait.
      worker: The id of the worker that runs it, as it offers places; "" when it does not say.
      leaving: The option because of which it is replaced, while it still takes calls; "" if it is not.
      stats: What its ``record_autoscaling_stats`` has returned, by ``encode_stats``; "" for nothing.
    """

    name: str
    deployment: str
    version: str
    state: str
    pid: int = 0
    host: str = ""
    message: str = ""
    config: str = ""
    until_ms: float = 0.0
    failures: int = 0
    next_try_ms: float = 0.0
    worker: str = ""
    refused: str = ""
    stats: str = ""
    leaving: str = ""

    def encode(self) -> bytes:
        """Return the report as JSON."""
        return json.dumps(vars(self)).encode()  # not by asdict: each replica does it with each heartbeat

    @classmethod
    def decode(cls, data: bytes) -> ReplicaStatus:
        """Read what ``encode`` wrote; raise PayloadError for anything else."""
        found = read_json(data, "a replica's report", containers=_CONTAINERS)
        if type(found) is not dict:
            raise PayloadError(f"{len(data)} bytes are not a replica's report")
        given = known(cls, found)
        texts = [value for name, value in given.items() if name not in _NUMBERS]
        is_whole = {"name", "deployment", "version", "state"} <= given.keys()
        is_whole = is_whole and all(type(given.get(name, 0)) in kinds for name, kinds in _NUMBERS.items())
        if not is_whole or not all(map(_is_text, texts)) or given["state"] not in _STATES:
            raise PayloadError(f"{len(data)} bytes are not a replica's report")
        return cls(**given)


def encode_stats(found: Any) -> str:
    """Return the numbers that a replica reports for a scaling policy, as JSON.

    Raises:
      TypeError: It is not a dict of numbers by their names.
      ValueError: A number is not finite, or there are too many.
    """
    if type(found) is not dict or not all(
        type(name) is str and hasattr(one, "__float__") for name, one in found.items()
    ):
        raise TypeError(f"record_autoscaling_stats must return a dict of numbers by their names, not {found!r:.200}")
    stats = json.dumps({name: float(value) for name, value in found.items()}, allow_nan=False)
    if len(stats) > STATS_LIMIT:
        raise ValueError(
            f"what record_autoscaling_stats returns has {len(stats):,} bytes; the limit is {STATS_LIMIT:,}"
        )
    return stats


def decode_stats(stats: str) -> dict[str, float]:
    """Read what ``encode_stats`` wrote; raise PayloadError for anything else."""
    found = read_json(stats.encode(), "a replica's numbers", containers=1) if stats else {}
    if type(found) is not dict or not all(type(one) is float and isfinite(one) for one in found.values()):
        raise PayloadError("a replica's numbers are not numbers")
    return found


def report_place(app: str, name: str) -> bytes:
    """Return what the report of a replica is sealed for."""
    return f"report|{app}|{name}".encode()


def _is_text(value: Any) -> bool:
    return type(value) is str and _SURROGATE.search(value) is None


def read_json(data: Any, what: str, *, containers: int) -> Any:
    """Return the JSON in ``data``, whose size and lists and objects are counted first.

    Raises:
      PayloadError: It is not JSON, is longer than half a megabyte, or has more than so many ``containers``.
    """
    if type(data) is not bytes or len(data) > _LIMIT:
        raise PayloadError(f"{what} is not JSON, or is too long")
    marks = _TEXTS.sub(b"", data)
    if marks.count(b"[") + marks.count(b"{") > containers:
        raise PayloadError(f"{what} has too many parts")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"{what} cannot be read: {type(error).__name__}") from error
