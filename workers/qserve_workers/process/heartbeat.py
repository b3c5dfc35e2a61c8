"""Heartbeats: how a replica shows that it is alive, and how a supervisor decides that it is not.

A heartbeat is a counter. A supervisor compares its value with the one that it read before, and measures the time
between them by its own monotonic clock. So neither a clock that is set, nor the broker's time, makes a living replica
look dead or a dead one alive.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qserve.base import failpoints
from qserve.base.keys import BEAT_TTL_MS, Keys
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.base.turns import Turns
from qserve.broker.connection import Client, broker_errors, measure_clock, without_strangers

log = get_logger(__name__)
_REMEMBERED = 1000
"""How many lost replicas a supervisor remembers; a name is never used twice."""


@dataclass
class Heartbeat:
    """Sends the heartbeats of one replica from a thread: code that holds the loop must not look like a lost host.

    Parameters:
      client: Its own connection.
      replica: The consumer's name.
      may_beat: Returns False while the replica is stalled: code that holds its loop for ever must not hold its calls
        for ever.
      on_loss: Called when the broker has forgotten this counter, and so has lost its data.
    """

    client: Client
    settings: Settings
    replica: str
    may_beat: Callable[[], bool]
    on_loss: Callable[[], None]
    _has_beaten: bool = False
    _is_forgotten: bool = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def _run(self) -> None:
        turns = Turns("sending heartbeats", log, is_quiet=True)
        while True:
            with turns:
                if failpoints.ARMED:
                    failpoints.hit("beat.before")
                if self.may_beat():
                    self.beat()
            time.sleep(self.settings.beat_s)

    def beat(self) -> None:
        """Beat once; raises BrokerError. A beat that is sent again counts twice, which does no harm."""
        key = Keys(self.settings.namespace).beat(self.replica)
        # much longer than it takes to notice that a counter stands still: the end of a key must not decide anything
        life_ms = BEAT_TTL_MS + int(4000 * self.settings.lease_s)
        with broker_errors():
            count, _ = without_strangers(
                self.client,
                lambda: self.client.pipeline(transaction=True).incr(key).pexpire(key, life_ms).execute(),
                key,
            )
            measure_clock(self.client)
        self._is_forgotten |= count == 1 and self._has_beaten
        self._has_beaten = True
        if self._is_forgotten:
            self.on_loss()
            self._is_forgotten = False


_DEAD = object()
"""In the place of the counter of a replica whose process is known to be dead."""


class Observer:
    """Decides which of the replicas that a supervisor observes are lost.

    Parameters:
      lease_s: How long a counter may stand still before its replica is lost.
      clock: Seconds, monotonic; replaced in tests.
    """

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._seen: dict[str, tuple[bytes | None, float]] = {}
        self._updated_at: float | None = None
        self._lost: OrderedDict[str, object] = OrderedDict()

    def note_death(self, name: str) -> None:
        """Count a replica as lost whenever it appears again: its process is known to be dead."""
        self._remember(name, _DEAD)

    def update(self, counters: Mapping[str, bytes | None]) -> set[str]:
        """Compare the replicas' counters (None without any) with the last ones, and return who is lost.

        Replicas that are not among them are forgotten.
        """
        now = self._clock()
        # the time in which this process itself stood still, or the broker did, counts against no replica
        gap_s = 0.0 if self._updated_at is None else min(now - self._updated_at, self._lease_s / 4)
        self._updated_at = now
        seen = {}
        for name, counter in counters.items():
            before, silent_s = self._seen.get(name, (counter, -gap_s))
            seen[name] = (counter, silent_s + gap_s if counter == before else 0.0)
        self._seen = seen
        lost = {name for name, (_, silent_s) in seen.items() if silent_s >= self._lease_s or self._is_known(name)}
        for name in lost:
            if self._lost.get(name) is not _DEAD:
                self._remember(name, counters[name])
        return lost

    def _is_known(self, name: str) -> bool:
        """Whether it was lost before and has not beaten since: the broker delivered to its old connection."""
        return name in self._lost and self._lost[name] in (_DEAD, self._seen[name][0])

    def _remember(self, name: str, counter: object) -> None:
        self._lost[name] = counter
        if len(self._lost) > _REMEMBERED:
            self._lost.popitem(last=False)
