"""Heartbeats: how a replica shows that it is alive, and how a supervisor decides that it is not.

A heartbeat is a sealed counter. A supervisor compares its value with the highest that it has read, and measures the
time between them by its own monotonic clock. So neither a clock that is set, nor the broker's time, nor somebody who
writes to the broker without the key, makes a dead replica look alive.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qserve.base import failpoints
from qserve.base.clock import clock
from qserve.base.keys import BEAT_TTL_MS, Keys
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.base.turns import Turns
from qserve.broker.connection import LONGEST_PAUSE_S, Client, broker_errors, without_strangers
from qserve.broker.library import Command
from qserve.broker.link import ThreadLink
from qserve.deploy.installation import Send
from qserve.exceptions import PayloadError
from qserve.wire.replies import number, run_id, time_s, warn_once
from qserve.wire.sealing import Seal
from qserve_workers.process.connections import Connections
from qserve_workers.replica.lasting_link import SHORTEST_PAUSE_S

log = get_logger(__name__)
SILENT_BEAT_S = 3.0
"""How long the broker may take to answer a beat; with the time between two of them less than ``SILENT_FOR_S``."""
_REMEMBERED = 1000
"""How many lost replicas a supervisor remembers; a name is never used twice."""


@dataclass
class Heartbeat:
    """Sends the heartbeats of one replica from a thread: code that holds the loop must not look like a lost host.

    Parameters:
      client: Its own connection.
      replica: The consumer's name.
      may_beat: Returns False while the replica is stalled: code that blocks the loop must not keep its calls.
      report: Called with each beat: reports the replica again, by what sends its commands together with the beat.
      on_silence: Called when the broker has not answered a beat: other connections may wait for much longer.
      others: Returns the broker's ids of this replica's other connections; 0 for one that was not opened yet.
    """

    client: Client
    settings: Settings
    replica: str
    may_beat: Callable[[], bool]
    report: Callable[[Send], None]
    others: Callable[[], Sequence[int]] = tuple
    on_silence: Callable[[], object] = bool

    def __post_init__(self) -> None:
        self._seal = Seal(self.settings.keyring)
        self._link = ThreadLink(self.client)
        keys = Keys(self.settings.namespace)
        self._key, self._connections_key = keys.beat(self.replica), keys.connections(self.replica)
        # much longer than it takes to notice that a counter stands still: the end of a key must not decide anything
        self._life_ms = BEAT_TTL_MS + int(4000 * self.settings.lease_s)
        self._count, self._own, self._run_id = 0, 0, ""
        self._sent: set[bytes | None] = {None}

    def start(self) -> None:
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def _run(self) -> None:
        turns = Turns("sending heartbeats", log, longest_s=min(self.settings.beat_s, LONGEST_PAUSE_S), is_quiet=True)
        while True:
            with turns:
                if failpoints.ARMED:
                    failpoints.hit("beat.before")
                if self.may_beat():
                    self.beat()
            if turns.failures:
                if turns.failures == 1:
                    self.on_silence()
                time.sleep(turns.pause_s)
                continue
            self._link.wait_for_loss(self.settings.beat_s)
            if not self._link.is_open:  # lost: the next beat comes at once, see `Absences`
                time.sleep(SHORTEST_PAUSE_S)

    def beat(self) -> None:
        """Beat once; raises BrokerError. One that was changed in the broker since is named once in the log."""
        self._count += 1
        data = self._seal.seal(_place(self.replica), b"%d" % self._count)
        self._sent.add(data)  # before it is sent: the reply may be lost
        before: list[Any] = []

        def send(commands: Sequence[Command]) -> list[Any]:
            """Send the heartbeat and some commands in one write: an idle replica wakes the broker once for all."""
            exchange = partial(self._exchange, data, commands)
            before[:], replies = without_strangers(self.client, exchange, self._key, self._connections_key)
            return replies

        with broker_errors():
            self.report(send)
            if not before:  # there was nothing to report
                send(())
        # one that is gone went with the report, which says so
        if before[0] is not None and before[0] not in self._sent:
            warn_once(f"the heartbeat of replica {self.replica} was changed in the broker, and is sent again")
        self._sent = {data}

    def _exchange(self, data: bytes, commands: Sequence[Command]) -> tuple[list[Any], list[Any]]:
        """Return the reply to the heartbeat, and those to the commands.

        Crash before it: the former connections are named, and they are closed as well.
        """
        if not self._link.is_open:
            own, info = self._link.exchange([("CLIENT", "ID"), ("INFO", "server")])
            # an error: the broker does not tell, and the lease decides alone
            self._own, self._run_id = (own, run_id(info)) if type(own) is int else (0, "")
        said = Connections(self._count)
        if self._own and self._run_id:
            said = Connections(self._count, self._run_id, frozenset((self._own, *filter(None, self.others()))))
        own_commands: list[Command] = [
            ("SET", self._key, data, "PX", self._life_ms, "GET"),
            ("SET", self._connections_key, said.sealed(self._seal, self.replica), "PX", self._life_ms),
        ]
        is_time_due, asked_at = clock.is_due(), time.monotonic()
        if is_time_due:
            own_commands.append(("TIME",))
        replies = self._link.exchange([*own_commands, *commands])
        mine, others = replies[: len(own_commands)], replies[len(own_commands) :]
        if is_time_due and not isinstance(time_reply := mine.pop(), Exception):  # an old ACL forbids the question
            clock.observe(time_s(time_reply), asked_at)
        for reply in (*mine, *others):
            if isinstance(reply, Exception):
                raise reply
        return mine, others


def read_beat(seal: Seal, replica: str, data: bytes | None) -> int | None:
    """Return the count of a replica's heartbeat; None for one that is missing or not ours, which is named once."""
    try:
        return None if data is None else number(seal.open(_place(replica), data), "a heartbeat")
    except PayloadError as error:
        warn_once(f"the heartbeat of replica {replica} is ignored: {error}")
        return None


def _place(replica: str) -> bytes:
    return b"beat|" + replica.encode()


_DEAD = -1
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
        self._seen: dict[str, tuple[int, float]] = {}
        self._updated_at: float | None = None
        self._lost: OrderedDict[str, int] = OrderedDict()

    def note_loss(self, name: str, counter: int) -> None:
        """Count a replica as lost until its counter is higher than this."""
        self._remember(name, counter)

    def note_death(self, name: str) -> None:
        """Count a replica as lost whenever it appears again: its process is known to be dead."""
        self._remember(name, _DEAD)

    def update(self, counters: Mapping[str, int | None]) -> set[str]:
        """Compare the replicas' counters (None without any) with the highest ones, and return who is lost.

        Replicas that are not among them are forgotten.
        """
        now = self._clock()
        # the time in which this process itself stood still, or the broker did, counts against no replica
        gap_s = 0.0 if self._updated_at is None else min(now - self._updated_at, self._lease_s / 4)
        self._updated_at = now
        seen = {}
        for name, counter in counters.items():
            highest, silent_s = self._seen.get(name, (counter or 0, -gap_s))
            is_alive = (counter or 0) > highest
            seen[name] = (counter or 0, 0.0) if is_alive else (highest, silent_s + gap_s)
        self._seen = seen
        lost = {name for name, (_, silent_s) in seen.items() if silent_s >= self._lease_s or self._is_known(name)}
        for name in lost:
            if self._lost.get(name) != _DEAD:
                self._remember(name, seen[name][0])
        return lost

    def _is_known(self, name: str) -> bool:
        """Return whether it was lost before and has not beaten since: the broker delivered to its old connection."""
        count = self._lost.get(name)
        return count is not None and (count == _DEAD or self._seen[name][0] <= count)

    def _remember(self, name: str, counter: int) -> None:
        self._lost[name] = counter
        if len(self._lost) > _REMEMBERED:
            self._lost.popitem(last=False)
