"""The load of the broker: its memory, its clients, and the calls that wait in its queues."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import redis

from qserve.base.keys import POOL_TTL_MS
from qserve.broker import functions
from qserve.broker.connection import MEMORY_SETTING, Client, broker_errors, is_forbidden, is_unknown_function
from qserve.wire.replies import backlogs, count_of


@dataclass(frozen=True)
class BrokerStatus:
    """The state of the broker; a number is 0 where an ACL forbids INFO.

    Parameters:
      used_bytes: The memory that it uses.
      limit_bytes: The memory that it may use; 0 for no limit.
      clients: How many connections it has.
      refuses: Why it refuses new requests; "" when it takes them.
      refuses_for_s: For how many seconds it has, as far as that is known, else 0. Where only the last report of a
        replica shows it, up to a quarter of a lease too many.
    """

    used_bytes: int = 0
    limit_bytes: int = 0
    clients: int = 0
    refuses: str = ""
    refuses_for_s: float = 0.0

    @property
    def is_full(self) -> bool:
        """Whether it refuses new requests, because it uses all the memory that it may."""
        return 0 < self.limit_bytes <= self.used_bytes


@broker_errors()
def broker_status(client: Client, reports: Sequence[str] = ()) -> BrokerStatus:
    """Ask for memory and clients, and whether it takes what is new.

    Parameters:
      reports: Keys that replicas write with each heartbeat.
    """
    try:
        info = client.info()
    except redis.exceptions.NoPermissionError:
        return BrokerStatus()
    used, limit, clients = (count_of(info, name) for name in ("used_memory", "maxmemory", "connected_clients"))
    found = BrokerStatus(used, limit, clients)
    if found.is_full:
        why, for_s = f"its memory is full ({MEMORY_SETTING})", count_of(info, "current_eviction_exceeded_time") / 1000
    elif info.get("role") == "slave":
        why, for_s = "it is read-only, a replica of another server", count_of(info, "master_link_down_since_seconds")
        if info.get("master_link_status") == "up":
            reports = ()  # they come from that server
    elif info.get("aof_last_write_status", "ok") != "ok":
        why, for_s = "its disk is full, or cannot be written", 0.0
    else:
        return found
    return replace(found, refuses=why, refuses_for_s=max(0.0, for_s) or _last_written_s(client, reports))


def _last_written_s(client: Client, reports: Sequence[str]) -> float:
    """Return how long ago a replica could report; 0 when none has for a day, or an ACL forbids to ask."""
    with suppress(redis.exceptions.NoPermissionError):
        left_ms = max((client.pttl(key) for key in reports), default=-1)
        return (POOL_TTL_MS - left_ms) / 1000 if 0 < left_ms <= POOL_TTL_MS else 0.0
    return 0.0


class QueueLoad(NamedTuple):
    """What is in the queue of a deployment.

    Parameters:
      waiting: Calls that no replica has fetched.
      running: Calls that replicas hold.
      oldest_s: For how many seconds the oldest of those that wait has waited.
    """

    waiting: int = 0
    running: int = 0
    oldest_s: float = 0.0


def read_queues(client: Client, queues: Sequence[str]) -> list[QueueLoad]:
    """Return what is in each queue, read in one command; errors pass through."""
    reply = client.execute_command(*functions.backlog(queues))
    return [QueueLoad(waiting, running, ms / 1000) for waiting, running, ms in backlogs(reply, len(queues))]


@broker_errors()
def loads_of(client: Client, queues: Sequence[str]) -> list[QueueLoad]:
    """Return what is in each queue; zeros where an ACL forbids it."""
    try:
        return read_queues(client, queues)
    except redis.exceptions.ResponseError as error:
        # an older version of qserve may have been the last to load its functions
        if not (is_forbidden(error) or is_unknown_function(error)):
            raise
        return [QueueLoad()] * len(queues)


@broker_errors()
def delayed_in(client: Client, delayed: Sequence[str]) -> list[int]:
    """Return how many calls are in each set of delayed ones; zeros where an ACL forbids it."""
    pipe = client.pipeline(transaction=False)
    for key in delayed:
        pipe.zcard(key)
    return [count_of({"": reply}, "") for reply in pipe.execute(raise_on_error=False)]
