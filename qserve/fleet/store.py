"""Stores in the broker what workers, the leader and operators tell one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from qserve.base.keys import BEAT_TTL_MS, ROLLOUT_TTL_MS, Keys
from qserve.broker import functions
from qserve.broker.connection import Client, broker_errors, refusal, without_strangers
from qserve.broker.functions import Reply
from qserve.exceptions import PayloadError, WrongType
from qserve.wire.fleet import Assignment, Drain, HostRecord, Rollout, Scaled, Slot, Wish
from qserve.wire.replies import each, number, text, warn_once
from qserve.wire.sealing import Seal


@dataclass(frozen=True)
class Fleet:
    """Everything that a leader reads in one round.

    Parameters:
      hosts, plan, beats: By worker. A worker's counter is None when it has none.
      drains: By host.
      scaled, wishes: By application and deployment.
      rollouts: By application.
    """

    hosts: dict[str, HostRecord]
    plan: dict[str, Assignment]
    drains: dict[str, Drain]
    beats: dict[str, int | None]
    scaled: dict[str, dict[str, Scaled]]
    wishes: dict[str, dict[str, Wish]]
    rollouts: dict[str, Rollout]


T = TypeVar("T", HostRecord, Assignment, Scaled, Wish, Drain, Rollout)
Fields = Callable[[str], bytes]


class FleetStore:
    """The stored offers of an installation's workers, and their assignments.

    A value that was put back is refused by every process that has read a newer one.

    Parameters:
      client: A connection to the broker.
      keys: The installation's key names.
      seal: Every value is sealed for its place.
    """

    def __init__(self, client: Client, keys: Keys, seal: Seal) -> None:
        self._client = client
        self._keys = keys
        self._seal = seal
        self._count: int | None = None
        self._seen: dict[bytes, tuple[bytes, Any]] = {}
        """The newest value of each place, and the bytes that it was read from."""

    # -- workers -----------------------------------------------------------------------------------

    def hosts(self) -> dict[str, HostRecord]:
        """Return what each worker offers."""
        return self._read(self._keys.hosts, HostRecord, _host)

    def offer(self, record: HostRecord) -> None:
        """Say what a worker offers."""
        self._write(self._keys.hosts, record.worker, _host(record.worker), record)

    def withdraw(self, worker: str) -> None:
        """Remove a worker and its assignments."""
        for key in (self._keys.hosts, self._keys.plan):
            self._remove(key, worker)

    def plan(self) -> dict[str, Assignment]:
        """Return the assignments of each worker."""
        return self._read(self._keys.plan, Assignment, _assignment)

    def assign(self, mine: bytes, plan: Mapping[str, tuple[Slot, ...]]) -> bool:
        """Say what workers are to run; return False, and change nothing, when ``mine`` does not lead any more."""
        made = {
            _assignment(worker): self._sealed(_assignment(worker), Assignment(slots)) for worker, slots in plan.items()
        }
        key = self._keys.plan
        command = functions.assign(self._keys.lead, key, mine, [*plan], [data for data, _ in made.values()])
        with broker_errors():
            reply: Any = without_strangers(self._client, lambda: self._client.execute_command(*command), key)
        if reply != Reply.OK:
            return False
        self._seen |= made
        return True

    def beat(self, worker: str) -> None:
        """Raise the worker's counter, which goes on from the value of the worker before it."""
        key = self._keys.beat(worker)
        with broker_errors():
            if self._count is None:
                self._count = self._beat_of(worker, without_strangers(self._client, lambda: self._client.get(key), key))
            # not from 1 where the key has expired: who remembers this worker as gone would take it for gone
            self._count = max(time.time_ns() // 1000, 1 + (self._count or 0))
            data = self._seal.seal(_beat(worker), b"%d" % self._count)
            without_strangers(self._client, lambda: self._client.set(key, data, px=BEAT_TTL_MS), key)

    def _beat_of(self, worker: str, data: bytes | None) -> int | None:
        try:
            return None if data is None else number(self._seal.open(_beat(worker), data), "a worker's counter")
        except PayloadError as error:
            warn_once(f"the counter of worker {worker} is ignored: {error}")
            return None

    def read(self, apps: Sequence[str], workers: Collection[str]) -> Fleet:
        """Return everything about these applications, and the counters of these workers, in one round trip."""
        keys, names = self._keys, [*workers]
        with broker_errors(), self._client.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.hosts).hgetall(keys.plan).hgetall(keys.drains)
            for app in apps:
                pipe.hgetall(keys.scaled(app)).hgetall(keys.wishes(app)).get(keys.rollout(app))
            pipe.mget([keys.beat(name) for name in names or ("",)])
            found = iter(pipe.execute(raise_on_error=False))
        hosts = self._values(keys.hosts, HostRecord, _host, next(found))
        plan = self._values(keys.plan, Assignment, _assignment, next(found))
        drains = self._values(keys.drains, Drain, _drain, next(found))
        scaled, wishes, rollouts = {}, {}, {}
        for app in apps:
            scaled[app] = self._values(keys.scaled(app), Scaled, partial(_scaled, app), next(found))
            wishes[app] = self._values(keys.wishes(app), Wish, partial(_wish, app), next(found))
            rollouts[app] = next(found)
        counters = next(found)
        if isinstance(counters, Exception):
            raise refusal(counters)
        beats = {name: self._beat_of(name, data) for name, data in zip(names, counters, strict=False)}
        under_way = each(((app, data) for app, data in rollouts.items() if type(data) is bytes), self._open_rollout)
        return Fleet(hosts, plan, drains, beats, scaled, wishes, dict(under_way))

    def _open_rollout(self, item: tuple[str, bytes]) -> tuple[str, Rollout]:
        app, data = item
        return app, self._open(Rollout, _rollout(app), data)

    def slots_of(self, worker: str) -> tuple[Slot, ...] | None:
        """Return the assignments of a worker; None if they are unknown."""
        key = self._keys.plan
        with broker_errors():
            data: Any = without_strangers(self._client, lambda: self._client.hget(key, worker), key)
        place = _assignment(worker)
        found = each(() if data is None else (data,), lambda data: self._open(Assignment, place, data))
        return next((one.slots for one in found), None)

    def put_back(self, worker: str, slots: tuple[Slot, ...]) -> None:
        """Store a worker's assignments again, which the broker has lost, unless others were made meanwhile."""
        place, key = _assignment(worker), self._keys.plan
        made = self._sealed(place, Assignment(slots))
        with broker_errors():
            if without_strangers(self._client, lambda: self._client.hsetnx(key, worker, made[0]), key):
                self._seen[place] = made

    # -- deployments -------------------------------------------------------------------------------

    def scaled(self, app: str) -> dict[str, Scaled]:
        """Return the numbers of replicas that were decided for an application's deployments."""
        return self._read(self._keys.scaled(app), Scaled, partial(_scaled, app))

    def note(self, app: str, deployment: str, scaled: Scaled) -> None:
        """Store how many replicas a deployment should have, and why."""
        self._write(self._keys.scaled(app), deployment, _scaled(app, deployment), scaled)

    def forget(self, app: str) -> None:
        """Forget how many replicas the deployments of an application are to have: it is not there any more."""
        with broker_errors():
            self._client.delete(self._keys.scaled(app))

    def wishes(self, app: str) -> dict[str, Wish]:
        """Return what operators want of an application's deployments."""
        return self._read(self._keys.wishes(app), Wish, partial(_wish, app))

    def wish(self, app: str, deployment: str, wish: Wish) -> None:
        """Store what an operator wants of a deployment."""
        self._write(self._keys.wishes(app), deployment, _wish(app, deployment), wish)

    def rollout(self, app: str) -> tuple[bytes, Rollout | None]:
        """Return the deploy of an application that is under way or was the last, as it is stored and as it was read."""
        key = self._keys.rollout(app)
        with broker_errors():
            data: Any = without_strangers(self._client, lambda: self._client.get(key), key)
        found = dict(each(((app, data),) if data else (), self._open_rollout))
        return data or b"", found.get(app)

    def swap_rollout(self, app: str, was: bytes, rollout: Rollout) -> bytes:
        """Say how a deploy goes, if ``was`` is stored of it; return what is stored then, and b"" if it is not."""
        key, place = self._keys.rollout(app), _rollout(app)
        data, value = self._sealed(place, rollout)

        def write(pipe: Any) -> None:
            is_same = (pipe.get(key) or b"") == was
            pipe.multi()
            if is_same:
                pipe.set(key, data, px=ROLLOUT_TTL_MS)

        with broker_errors():
            if not self._client.transaction(write, key):
                return b""
        self._seen[place] = data, value
        return data

    # -- hosts -------------------------------------------------------------------------------------

    def drains(self) -> dict[str, Drain]:
        """Return the hosts that are drained."""
        return self._read(self._keys.drains, Drain, _drain)

    def drain(self, drain: Drain) -> None:
        """Drain a host: nothing is assigned to it any more."""
        self._write(self._keys.drains, drain.host, _drain(drain.host), drain)

    def undrain(self, host: str) -> None:
        """End the draining of a host."""
        self._remove(self._keys.drains, host)

    # -- values in their places --------------------------------------------------------------------

    def _read(self, key: str, kind: type[T], place: Fields) -> dict[str, T]:
        with broker_errors(), self._client.pipeline(transaction=False) as pipe:
            return self._values(key, kind, place, pipe.hgetall(key).execute(raise_on_error=False)[0])

    def _values(self, key: str, kind: type[T], place: Fields, found: Any) -> dict[str, T]:
        """Return the values in a reply to HGETALL by their names; none if the key holds something else.

        Raises:
          BrokerError: The reply is another error.
        """

        def read(item: tuple[bytes, bytes]) -> tuple[str, T]:
            name = text(item[0])
            return name, self._open(kind, place(name), item[1])

        if isinstance(found, Exception):
            error = refusal(found)
            if not isinstance(error, WrongType):
                raise error from found
            warn_once(f"{key} cannot be read: {error}")  # who may write there removes it
            return {}
        return dict(each(found.items(), read))

    def _open(self, kind: type[T], place: bytes, data: bytes) -> T:
        before, seen = self._seen.get(place, (b"", None))
        if seen is not None and data == before:
            return seen  # type: ignore[no-any-return]
        value = kind.decode(self._seal.open(place, data))
        if seen is not None and value.number <= seen.number:
            raise PayloadError(f"a {kind.__name__} in {place!r} is older than one that was read before")
        self._seen[place] = data, value
        return value

    def _sealed(self, place: bytes, value: T) -> tuple[bytes, T]:
        """Return a value sealed, with a number that is higher than all before it, even if the broker has lost those."""
        _, seen = self._seen.get(place, (b"", None))
        number = max(time.time_ns() // 1000, 0 if seen is None else seen.number + 1)
        value = replace(value, number=number)
        return self._seal.seal(place, value.encode()), value

    def _write(self, key: str, field: str, place: bytes, value: T) -> None:
        """Store a value; whoever reads it meanwhile has the one before. Readers see one that is whole."""
        made = self._sealed(place, value)
        with broker_errors():
            without_strangers(self._client, lambda: self._client.hset(key, field, made[0]), key)
        self._seen[place] = made

    def _remove(self, key: str, field: str) -> None:
        with broker_errors():
            without_strangers(self._client, lambda: self._client.hdel(key, field), key)


def _host(worker: str) -> bytes:
    return f"host|{worker}".encode()


def _assignment(worker: str) -> bytes:
    return f"plan|{worker}".encode()


def _scaled(app: str, deployment: str) -> bytes:
    return f"scaled|{app}|{deployment}".encode()


def _wish(app: str, deployment: str) -> bytes:
    return f"wish|{app}|{deployment}".encode()


def _rollout(app: str) -> bytes:
    return f"rollout|{app}".encode()


def _beat(worker: str) -> bytes:
    return f"beat|{worker}".encode()


def _drain(host: str) -> bytes:
    return f"drain|{host}".encode()
