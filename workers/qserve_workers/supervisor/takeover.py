"""The calls of replicas and versions that are gone: how they are found, and how they are handed over."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from functools import partial
from typing import Any

from qserve.base import failpoints
from qserve.base.keys import GROUP, app_in, deployment_in
from qserve.base.log import get_logger, of_request
from qserve.broker import functions
from qserve.broker.connection import broker_errors, create_group, if_there, is_gone, refusal, without_strangers
from qserve.broker.library import Command
from qserve.deploy.installation import Installation
from qserve.deploy.log_tail import about
from qserve.deploy.removal import queues_of
from qserve.exceptions import BrokerUnavailable, PayloadError
from qserve.wire import replies
from qserve.wire.application import ApplicationRecord
from qserve.wire.outcome import SESSION, CallField
from qserve.wire.sealing import DEATH_LIMIT, lost, open_header
from qserve_workers.process.connections import LOOK_S, Absences, Connections
from qserve_workers.process.heartbeat import Observer, read_beat

log = get_logger(__name__)
_CLOSED_AFTER_S = 0.3
"""By when a broker has closed the connections of a dead process."""
NAMED_CALLS = 20
"""So many calls of a dead replica have a line of their own."""
_LOOKED_AT = 250
"""So many replicas one look is about, chosen by chance where there are more: other supervisors look as well."""


class Takeover:
    """Hands calls over to the replicas that are left.

    From time to time it compares all heartbeats, and so finds replicas that are frozen, and those whose host is cut
    off. More often it asks the broker for the connections of replicas that other supervisors have started, and so finds
    those that were killed together with their supervisor.

    Parameters:
      count: Counts how many calls were handed over, as ``HostMetrics.count``.
    """

    def __init__(
        self, installation: Installation, count: Callable[[str, str, str, float], object] = lambda *counted: None
    ) -> None:
        self._count_metric = count
        self._installation = installation
        self._client = installation.client
        self._keys = installation.keys
        self._prefix = installation.keys.request("")
        self._seal = installation.seal
        self._settings = installation.settings
        self._observer = Observer(installation.settings.lease_s)
        self._swept_at = self._looked_at = time.monotonic()
        self._absences = Absences()
        self._consumers: dict[str, list[str]] = {}
        self._may_look, self._has_others = True, False
        self.delayed: set[str] = set()
        """The queues that have calls which wait for another try."""

    @broker_errors()
    def _count(self, command: Command, *keys: str) -> int:
        """Send a command and return the number in its reply; ``keys`` are those that it reads beside requests."""
        send = partial(self._client.execute_command, *command)
        return replies.number(without_strangers(self._client, send, *keys))

    def hand_over(self, stream: str, consumer: str, how: str) -> int:
        """Put what a dead replica held back on the queue, and return how many calls that were.

        Parameters:
          how: How it has ended, for the line of each call.

        Crash before the call: the entries stay pending, and the next sweep finds them. Crash after: they are on the
        queue as new entries.
        """
        if failpoints.ARMED:
            failpoints.hit("supervisor.before_handover")
        personal = self._keys.personal(stream, consumer)
        total = 0
        for source in (stream, personal):
            self._name_requests(source, consumer, how)
            moved = functions.RECLAIM_COUNT
            while moved >= functions.RECLAIM_COUNT:
                command = functions.reclaim(
                    source, stream, consumer, DEATH_LIMIT, lost(deployment_in(stream)), self._prefix
                )
                moved = self._count(command, source, stream)
                total += moved
        models = self._keys.models_of(stream)
        command = functions.disband(personal, stream, models, consumer, self._prefix)
        total += self._count(command, personal, stream, models)
        if total:
            self._count_metric("takeovers", app_in(stream), deployment_in(stream), total)
        return total

    @broker_errors()
    def _name_requests(self, source: str, consumer: str, how: str) -> None:
        """Log which requests a dead replica held, some at least; nothing is changed."""
        read = partial(self._client.xpending_range, source, GROUP, "-", "+", NAMED_CALLS, consumername=consumer)
        pending: Any = if_there(read) or ()
        with self._client.pipeline(transaction=False) as pipe:
            for one in pending:
                pipe.xrange(source, one["message_id"], one["message_id"])
            found = pipe.execute(raise_on_error=False) if pending else []
        for entries in found:
            with contextlib.suppress(PayloadError, TypeError, ValueError, IndexError):  # a dead letter says so
                fields = entries[0][1]
                header = open_header(self._seal, fields[CallField.HEADER])
                deaths = replies.number(fields.get(CallField.DEATHS, b"0")) + 1
                then = "it runs again" if deaths < DEATH_LIMIT else f"that was its replica no. {deaths}: it is given up"
                if fields.get(CallField.STEP) == SESSION.encode():
                    then = "its WebSocket is closed"
                of = of_request(header.trace_id) | about(header.app, deployment_in(source))
                log.warning("replica %s held the call when it ended (%s); %s", consumer, how, then, extra=of)

    def wake(self, stream: str) -> None:
        """Put the calls of a queue that have waited long enough for another try back on it."""
        delayed = self._keys.delayed_of(stream)
        self._count(functions.wake(delayed, stream), delayed, stream)
        if self._count(("ZCARD", delayed), delayed):
            self.delayed.add(stream)
        else:
            self.delayed.discard(stream)

    def due_in_s(self) -> float:
        """Return when ``sweep`` or ``look`` have something to do, in seconds."""
        due_at = self._swept_at + self._settings.sweep_s
        if self._may_look and self._has_others:
            due_at = min(due_at, self._looked_at + LOOK_S)
        return max(0.0, due_at - time.monotonic())

    @broker_errors()
    def readers_of(self, record: ApplicationRecord) -> int | None:
        """Return how many replicas read the queues of a version; None when it has no queues any more."""
        found = [if_there(partial(self._client.xinfo_groups, queue)) for queue in queues_of(self._installation, record)]
        return sum(map(replies.consumer_count, found)) if any(found) else None

    # -- replicas that are lost --------------------------------------------------------------------

    def note_death(self, name: str) -> None:
        """Note that a replica is dead: until the broker notices, it may still deliver to its connection."""
        self._observer.note_death(name)
        self._consumers.pop(name, None)
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
        queues = [*streams, *({*old} - {*streams})]
        for stream, found in zip(queues, self._readers(queues), strict=True):
            attempt(f"the replicas of {stream}", self._add_consumers, stream, found, stream in streams, consumers)
        self._consumers = consumers
        self._absences.keep(consumers.keys())
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

    def look(self, own: Collection[str], attempt: Callable[..., bool]) -> None:
        """Hand over the calls of replicas of others whose connections the broker has lost, when it is time to look.

        Crash at any line: nothing but the calls' hand-over is written, and the next look begins anew.
        """
        others, now = self._consumers.keys() - set(own), time.monotonic()
        self._has_others = bool(others)
        if not others or not self._may_look or now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        gone = self._without_connection(others)
        if not gone:
            return
        # meanwhile they may have ended as they should, or have said something else
        consumers: dict[str, list[str]] = {}
        queues = [*{stream for name in gone for stream in self._consumers[name]}]
        for stream, found in zip(queues, self._readers(queues), strict=True):
            attempt(f"the replicas of {stream}", self._add_consumers, stream, found, False, consumers)
        for name, words in self._said(gone).items():
            del self._consumers[name]  # until the next sweep
            if name in consumers and words == gone[name]:
                self._observer.note_loss(name, gone[name].count)
                attempt(
                    f"the loss of {name}", self._hand_over_all, name, consumers[name], "has no connections any more"
                )

    @broker_errors()
    def _without_connection(self, others: Set[str]) -> dict[str, Connections]:
        """Return whose connections are gone, with their last words."""
        suspects = others & self._absences.suspects
        rest = sorted(others - suspects)
        names = [*suspects, *random.sample(rest, min(len(rest), _LOOKED_AT))]
        said = self._said(names)
        own = replies.number(self._client.execute_command("CLIENT", "ID"))
        ids = {own, *(one for words in said.values() if words is not None for one in words.ids)}
        with self._client.pipeline(transaction=False) as pipe:
            pipe.execute_command("CLIENT", "LIST", "ID", *ids)
            listed, info = pipe.info("server").execute(raise_on_error=False)
        if isinstance(listed, Exception):
            error = refusal(listed)
            if isinstance(error, BrokerUnavailable):
                raise error
            self._may_look = False
            log.warning("killed workers are noticed by their lease of %g s only: %s", self._settings.lease_s, error)
            return {}
        is_open = replies.connection_ids(listed)
        if own not in is_open:  # another connection has asked, or this broker does not list all of them
            return {}
        return self._absences.update(said, replies.run_id(info), is_open)

    @broker_errors()
    def _said(self, names: Iterable[str]) -> dict[str, Connections | None]:
        names = [*names]
        found: list[bytes | None] = self._client.mget([self._keys.connections(name) for name in names])
        return {name: Connections.read(self._seal, name, data) for name, data in zip(names, found, strict=True)}

    def _hand_over_all(self, name: str, streams: list[str], why: str = "sends no heartbeats any more") -> None:
        moved = sum(self.hand_over(stream, name, why) for stream in streams)
        # one that was only cut off reports itself again
        self._installation.reports(app_in(streams[0])).remove(name)
        log.warning("replica %s %s; its %d calls are handed over", name, why, moved)

    @broker_errors()
    def _counters(self, names: list[str]) -> dict[str, int | None]:
        found: list[bytes | None] = self._client.mget([self._keys.beat(name) for name in names]) if names else []
        return {name: read_beat(self._seal, name, data) for name, data in zip(names, found, strict=True)}

    @broker_errors()
    def _readers(self, streams: Sequence[str]) -> list[Any]:
        """Return who reads each stream, or the error that it has instead, in one round trip."""
        with self._client.pipeline(transaction=False) as pipe:
            for stream in streams:
                pipe.xinfo_consumers(stream, GROUP)
            return pipe.execute(raise_on_error=False) if streams else []

    @broker_errors()
    def _add_consumers(self, stream: str, found: Any, is_run: bool, consumers: dict[str, list[str]]) -> None:
        """Add who reads a stream to ``consumers``.

        Parameters:
          found: The reply of the broker.
          is_run: Whether the stream is created if the broker has lost it; a queue of an old version must not be.
        """
        if isinstance(found, Exception):
            if is_run:
                create_group(self._client, stream)
            elif not is_gone(found):
                raise found
            return
        for raw in replies.consumer_names(found):
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
