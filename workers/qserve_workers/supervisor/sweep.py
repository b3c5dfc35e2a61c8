"""The sweep: a look at all heartbeats, which finds replicas that are frozen, and those whose whole host is gone."""

from __future__ import annotations

import time
from collections.abc import Iterable

from qserve.base import failpoints
from qserve.base.keys import GROUP, Keys
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.broker.connection import Client, broker_errors, create_group
from qserve_workers.process.heartbeat import Observer, read_counters
from qserve_workers.supervisor.member import Member
from qserve_workers.supervisor.takeover import Takeover

log = get_logger(__name__)
_NOTICED_S = 0.3
"""By when a broker has noticed that the connections of a dead process are closed."""


class Sweeper:
    """Sweeps the queues that one supervisor serves."""

    def __init__(self, client: Client, keys: Keys, takeover: Takeover, settings: Settings) -> None:
        self._client = client
        self._keys = keys
        self._takeover = takeover
        self._lease_s = settings.lease_s
        self._every_s = settings.sweep_s
        self._observer = Observer(settings.lease_s)
        self._swept_at = time.monotonic()

    def bury(self, name: str) -> None:
        """Take note that a replica is dead: the broker may still give to its connection, until it notices."""
        self._observer.bury(name)
        self._swept_at = min(self._swept_at, time.monotonic() + _NOTICED_S - self._every_s)

    def sweep(self, streams: Iterable[str], members: Iterable[Member]) -> None:
        """Look, when it is time: a frozen replica of ours is killed, and what a lost one held is handed over."""
        now = time.monotonic()
        if now - self._swept_at < self._every_s:
            return
        self._swept_at = now
        mine = {member.spec.name: member for member in members}
        consumers: dict[str, list[str]] = {}
        for stream in streams:
            with broker_errors():
                create_group(self._client, stream)  # heals a queue that the broker has lost
                found = self._client.xinfo_consumers(stream, GROUP)
            for one in found:
                consumers.setdefault(one["name"].decode(), []).append(stream)
        if failpoints.ARMED:
            failpoints.hit("sweep.mid")
        # ours even when another supervisor has handed their calls over before
        counters = read_counters(self._client, self._keys, consumers.keys() | mine.keys())
        beating = {name: one for name, one in counters.items() if one is not None or name in consumers}
        for name in self._observer.look(beating):
            if name in mine:
                mine[name].kill(f"frozen: no heartbeat for {self._lease_s:g} s")
            else:
                self._hand_over(name, consumers[name])

    def _hand_over(self, name: str, streams: list[str]) -> None:
        moved = sum(self._takeover.hand_over(stream, name) for stream in streams)
        log.warning("replica %s is gone without a word; its %d calls are handed over", name, moved)
