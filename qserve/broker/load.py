"""The load of the broker: its memory, its clients, and the calls that wait in its queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import redis

from qserve.broker import functions
from qserve.broker.connection import Client, broker_errors, is_unknown_function
from qserve.wire.replies import backlogs, count_of


@dataclass(frozen=True)
class BrokerStatus:
    """The state of the broker; a number is 0 where an ACL forbids INFO.

    Parameters:
      used_bytes: The memory that it uses.
      limit_bytes: The memory that it may use; 0 for no limit.
      clients: How many connections it has.
    """

    used_bytes: int = 0
    limit_bytes: int = 0
    clients: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it refuses new requests, because it uses all the memory that it may."""
        return 0 < self.limit_bytes <= self.used_bytes


@broker_errors()
def broker_status(client: Client) -> BrokerStatus:
    """Ask for memory and clients."""
    try:
        info = client.info()
    except redis.exceptions.NoPermissionError:
        return BrokerStatus()
    return BrokerStatus(*(count_of(info, name) for name in ("used_memory", "maxmemory", "connected_clients")))


@broker_errors()
def waiting_in(client: Client, queues: Sequence[str]) -> list[tuple[int, float]]:
    """Return for each queue how many calls wait, and for how many seconds the oldest has; 0 where an ACL forbids it."""
    try:
        reply = client.execute_command(*functions.backlog(queues))
    except redis.exceptions.ResponseError as error:
        # an older version of qserve may have been the last to load its functions
        if not (isinstance(error, redis.exceptions.NoPermissionError) or is_unknown_function(error)):
            raise
        return [(0, 0.0)] * len(queues)
    return [(waiting, oldest_ms / 1000) for waiting, oldest_ms in backlogs(reply, len(queues))]
