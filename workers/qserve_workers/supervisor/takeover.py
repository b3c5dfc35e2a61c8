"""The calls of replicas and versions that are gone: how they are found, and how they are handed over."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial

from qserve.base import failpoints
from qserve.base.keys import GROUP, deployment_in
from qserve.base.log import get_logger
from qserve.broker import functions
from qserve.broker.connection import broker_errors, create_group, if_there, without_strangers
from qserve.broker.library import Command
from qserve.deploy.installation import Installation
from qserve.deploy.removal import queues_of
from qserve.exceptions import PayloadError
from qserve.wire import replies
from qserve.wire.application import ApplicationRecord
from qserve.wire.sealing import DEATH_LIMIT, lost
from qserve_workers.process.heartbeat import Observer, read_beat

log = get_logger(__name__)
_CLOSED_AFTER_S = 0.3
"""By when a broker has closed the connections of a dead process."""


class Takeover:
    """Hands calls over to the replicas that are left.

    From time to time it compares all heartbeats, and so finds replicas that are frozen, and those whose host is gone.
    """

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._client = installation.client
        self._keys = installation.keys
        self._prefix = installation.keys.request("")
        self._seal = installation.seal
        self._settings = installation.settings
        self._observer = Observer(installation.settings.lease_s)
        self._swept_at = time.monotonic()

    @broker_errors()
    def _count(self, command: Command, *keys: str) -> int:
        """Send a command and return the number in its reply; ``keys`` are those that it reads beside requests."""
        send = partial(self._client.execute_command, *command)
        return replies.number(without_strangers(self._client, send, *keys))

    def hand_over(self, stream: str, consumer: str) -> int:
        """Put what a dead replica held back on the queue, and return how many calls that were.

        Crash before the call: the entries stay pending, and the next sweep finds them. Crash after: they are on the
        queue as new entries.
        """
        if failpoints.ARMED:
            failpoints.hit("supervisor.before_handover")
        personal = self._keys.personal(stream, consumer)
        total = 0
        for source in (stream, personal):
            moved = functions.RECLAIM_COUNT
            while moved >= functions.RECLAIM_COUNT:
                command = functions.reclaim(
                    source, stream, consumer, DEATH_LIMIT, lost(deployment_in(stream)), self._prefix
                )
                moved = self._count(command, source, stream)
                total += moved
        models = self._keys.models_of(stream)
        command = functions.disband(personal, stream, models, consumer, self._prefix)
        return total + self._count(command, personal, stream, models)

    def wake(self, stream: str) -> None:
        """Put the calls of a queue that have waited long enough for another try back on it."""
        delayed = self._keys.delayed_of(stream)
        self._count(functions.wake(delayed, stream), delayed, stream)

    @broker_errors()
    def readers_of(self, record: ApplicationRecord) -> int | None:
        """Return how many replicas read the queues of a version; None when it has no queues any more."""
        found = [if_there(partial(self._client.xinfo_groups, queue)) for queue in queues_of(self._installation, record)]
        return sum(map(replies.consumer_count, found)) if any(found) else None

    # -- replicas that are lost --------------------------------------------------------------------

    def note_death(self, name: str) -> None:
        """Note that a replica is dead: until the broker notices, it may still deliver to its connection."""
        self._observer.note_death(name)
        self._swept_at = min(self._swept_at, time.monotonic() + _CLOSED_AFTER_S - self._settings.sweep_s)

    def sweep(
        self,
        streams: Collection[str],
        old: Collection[str],
        own: Collection[str],
        kill: Callable[[str, str], None],
        attempt: Callable[..., bool],
    ) -> None:
        """Find lost replicas, when it is time: ``kill`` our ``own`` for a reason, hand over the calls of others.

        Parameters:
          streams, old: The queues of versions that are run here, and of those that were replaced.
          attempt: Does a part that must not hold up the others, as ``Turns.attempt``.
        """
        now = time.monotonic()
        if now - self._swept_at < self._settings.sweep_s:
            return
        self._swept_at = now
        consumers: dict[str, list[str]] = {}
        for stream in streams:
            attempt(f"the replicas of {stream}", self._add_consumers, stream, consumers)
        for stream in {*old} - {*streams}:
            attempt(f"the replicas of {stream}", self._add_old_consumers, stream, consumers)
        if failpoints.ARMED:
            failpoints.hit("sweep.mid")
        # our own even when another supervisor has handed their calls over before
        counters = self._counters([*{*consumers, *own}])
        observed = {name: one for name, one in counters.items() if one is not None or name in consumers}
        for name in self._observer.update(observed):
            if name in own:
                kill(name, f"frozen: no heartbeat for {self._settings.lease_s:g} s")
            else:
                attempt(f"the loss of {name}", self._hand_over_all, name, consumers[name])

    def _hand_over_all(self, name: str, streams: list[str]) -> None:
        moved = sum(self.hand_over(stream, name) for stream in streams)
        log.warning("replica %s sends no heartbeats any more; its %d calls are handed over", name, moved)

    @broker_errors()
    def _counters(self, names: list[str]) -> dict[str, int | None]:
        found: list[bytes | None] = self._client.mget([self._keys.beat(name) for name in names]) if names else []
        return {name: read_beat(self._seal, name, data) for name, data in zip(names, found, strict=True)}

    @broker_errors()
    def _add_consumers(self, stream: str, consumers: dict[str, list[str]]) -> None:
        """Add who reads a stream to ``consumers``; create the stream if the broker has lost it."""
        create_group(self._client, stream)
        self._add_readers(stream, consumers)

    @broker_errors()
    def _add_old_consumers(self, stream: str, consumers: dict[str, list[str]]) -> None:
        """Do the same for a queue that must not be created again."""
        self._add_readers(stream, consumers)

    def _add_readers(self, stream: str, consumers: dict[str, list[str]]) -> None:
        for raw in replies.consumer_names(if_there(partial(self._client.xinfo_consumers, stream, GROUP))):
            try:
                consumers.setdefault(replies.text(raw, "the name of a replica"), []).append(stream)
            except PayloadError as error:
                self._hand_over_from_stranger(stream, raw, error)

    def _hand_over_from_stranger(self, stream: str, consumer: bytes, error: PayloadError) -> None:
        """Hand over what was delivered to a name that no replica has, and so is lost for sure."""
        replies.warn_once(f"its calls are handed over: {error}")
        self._count(
            functions.reclaim(stream, stream, consumer, DEATH_LIMIT, lost(deployment_in(stream)), self._prefix), stream
        )
