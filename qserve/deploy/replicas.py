"""What replicas report of themselves, for those who wait for them or show them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from qserve.base.keys import POOL_TTL_MS, Keys
from qserve.broker.connection import Client, broker_errors

RUNNING, FAILED = "RUNNING", "FAILED"


@dataclass(frozen=True)
class ReplicaStatus:
    """One replica's state.

    Parameters:
      state: RUNNING, or FAILED with ``message`` saying why (user code's traceback).
      config: Names the user_config that it has taken.
    """

    name: str
    deployment: str
    version: str
    state: str
    pid: int = 0
    host: str = ""
    message: str = ""
    config: str = ""


class Pool:
    """The replicas of one application, on all hosts."""

    def __init__(self, client: Client, keys: Keys, app: str) -> None:
        self._client = client
        self._keys = keys
        self._key = keys.pool(app)

    def report(self, status: ReplicaStatus) -> None:
        """Write one replica's state."""
        with broker_errors():
            pipe = self._client.pipeline(transaction=True)
            pipe.hset(self._key, status.name, json.dumps(asdict(status)))
            pipe.pexpire(self._key, POOL_TTL_MS)
            pipe.execute()

    def remove(self, name: str) -> None:
        """Forget a replica that is gone."""
        with broker_errors():
            self._client.hdel(self._key, name)

    def take_turn(self, stream: str, name: str, for_s: float) -> bool:
        """Whether this replica may leave its deployment now: one at a time, until another has taken its place."""
        with broker_errors():
            return bool(self._client.set(self._keys.turn_of(stream), name, nx=True, px=int(for_s * 1000)))

    def end_turn(self, stream: str) -> None:
        """Another replica is there: the next may leave."""
        with broker_errors():
            self._client.delete(self._keys.turn_of(stream))

    def replicas(self) -> list[ReplicaStatus]:
        """All replicas' states."""
        with broker_errors():
            found: Any = self._client.hvals(self._key)
        return [ReplicaStatus(**json.loads(one)) for one in found]
