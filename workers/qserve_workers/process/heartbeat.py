"""Heartbeats: how a replica shows that it lives, and how a supervisor judges that by its own clock alone.

A heartbeat counts upwards. Whoever watches it compares what it sees with what it saw before, and measures
the time between by its own monotonic clock, so neither a clock that is set nor the broker's idea of time
makes a living replica look dead, or a dead one alive.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from qserve.base import failpoints
from qserve.base.keys import BEAT_TTL_MS, Keys
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.broker.connection import Client, broker_errors, measure_clock
from qserve.exceptions import BrokerError

log = get_logger(__name__)
_REMEMBERED = 1000
"""How many lost replicas a supervisor remembers; their names never come again."""


class Heartbeat:
    """The heart of one replica, in a thread: user code that holds the loop must not look like a lost host.

    Parameters:
      client: A connection of its own.
      replica: The consumer's name.
      may_beat: False while the replica is stalled, so that code which holds its loop for ever does not hold
        its calls for ever.
      on_loss: Called when the broker has forgotten this heart, and so has lost its data.
    """

    def __init__(
        self, client: Client, settings: Settings, replica: str, may_beat: Callable[[], bool],
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._client = client
        self._key = Keys(settings.namespace).beat(replica)
        self._every_s = settings.beat_s
        # long past the moment when silence has been noticed: a key that ends must never be what decides
        self._life_ms = BEAT_TTL_MS + int(4000 * settings.lease_s)
        self._may_beat = may_beat
        self._on_loss = on_loss
        self._has_beaten = False
        self._pause = threading.Event()

    def start(self) -> None:
        """Beat until the process ends."""
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def _run(self) -> None:
        while True:
            if failpoints.ARMED:
                failpoints.hit("beat.before")
            if self._may_beat():
                try:
                    self.beat()
                except BrokerError as error:
                    log.debug("the heartbeat was not taken: %s", error)
                except Exception:
                    log.exception("the heartbeat goes on after an error")
            self._pause.wait(self._every_s)

    def beat(self) -> None:
        """Beat once; raises BrokerError. A beat that is sent and not answered only counts once more."""
        with broker_errors():
            pipe = self._client.pipeline(transaction=True)
            count, _ = pipe.incr(self._key).pexpire(self._key, self._life_ms).execute()
            measure_clock(self._client)
        if count == 1 and self._has_beaten:
            self._on_loss()
        self._has_beaten = True


class Observer:
    """What a supervisor knows of the hearts it watches.

    Parameters:
      lease_s: How long a heart may stand still before its replica is lost.
      clock: Seconds, monotonic; replaced in tests.
    """

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._seen: dict[str, tuple[bytes | None, float]] = {}
        self._looked_at: float | None = None
        self._lost: OrderedDict[str, bytes | None] = OrderedDict()
        self._buried: OrderedDict[str, None] = OrderedDict()

    def bury(self, name: str) -> None:
        """Take a replica for lost whenever it shows up again: its process is known to be dead."""
        _remember(self._buried, name, None)

    def look(self, counters: Mapping[str, bytes | None]) -> set[str]:
        """Compare counters with those of the look before; names that are not among them are forgotten.

        Parameters:
          counters: The replicas' names and counters; None where there is none.

        Returns:
          The names of those that are lost.
        """
        now = self._clock()
        # while this process itself stood still, or the broker did, nobody was watching: that time accuses nobody
        gap_s = 0.0 if self._looked_at is None else min(now - self._looked_at, self._lease_s / 4)
        self._looked_at = now
        seen = {}
        for name, counter in counters.items():
            before, silent_s = self._seen.get(name, (counter, -gap_s))
            seen[name] = (counter, silent_s + gap_s if counter == before else 0.0)
        self._seen = seen
        lost = {name for name, (_, silent_s) in seen.items() if silent_s >= self._lease_s or self._is_known(name)}
        for name in lost:
            _remember(self._lost, name, counters[name])
        return lost

    def _is_known(self, name: str) -> bool:
        """Whether it was lost before and has not beaten since: the broker gave something to its old connection."""
        return name in self._buried or (name in self._lost and self._lost[name] == self._seen[name][0])


def _remember(names: OrderedDict[str, Any], name: str, value: Any) -> None:
    names[name] = value
    if len(names) > _REMEMBERED:
        names.popitem(last=False)


def read_counters(client: Client, keys: Keys, replicas: Iterable[str]) -> dict[str, bytes | None]:
    """The counters of these replicas as the broker has them; raises BrokerError."""
    names = list(replicas)
    if not names:
        return {}
    with broker_errors():
        found: list[bytes | None] = client.mget([keys.beat(name) for name in names])
    return dict(zip(names, found, strict=True))
