"""Reads and writes what workers, the leader and operators leave for one another in the broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from qserve.base.keys import Keys
from qserve.broker.connection import Client, broker_errors, without_strangers
from qserve.exceptions import PayloadError, WrongType
from qserve.wire.fleet import Assignment, Drain, HostRecord, Rollout, Scaled, Wish
from qserve.wire.replies import each, text, warn_once
from qserve.wire.sealing import Seal

T = TypeVar("T", HostRecord, Assignment, Scaled, Wish, Drain, Rollout)
Fields = Callable[[str], bytes]


class FleetStore:
    """What is stored of an installation's workers, and what is wanted of them.

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
        """Forget a worker, and what it was to run."""
        for key in (self._keys.hosts, self._keys.plan):
            self._remove(key, worker)

    def plan(self) -> dict[str, Assignment]:
        """Return what each worker is to run."""
        return self._read(self._keys.plan, Assignment, _assignment)

    # -- deployments -------------------------------------------------------------------------------

    def scaled(self, app: str) -> dict[str, Scaled]:
        """Return how many replicas the deployments of an application are to have, so far as that was decided."""
        return self._read(self._keys.scaled(app), Scaled, partial(_scaled, app))

    def note(self, app: str, deployment: str, scaled: Scaled) -> None:
        """Note how many replicas a deployment is to have, and why."""
        self._write(self._keys.scaled(app), deployment, _scaled(app, deployment), scaled)

    def wishes(self, app: str) -> dict[str, Wish]:
        """Return what operators want of an application's deployments."""
        return self._read(self._keys.wishes(app), Wish, partial(_wish, app))

    def wish(self, app: str, deployment: str, wish: Wish) -> None:
        """Say what an operator wants of a deployment."""
        self._write(self._keys.wishes(app), deployment, _wish(app, deployment), wish)

    # -- hosts -------------------------------------------------------------------------------------

    def drains(self) -> dict[str, Drain]:
        """Return the hosts that are to run nothing."""
        return self._read(self._keys.drains, Drain, _drain)

    def drain(self, drain: Drain) -> None:
        """Say that a host is to run nothing."""
        self._write(self._keys.drains, drain.host, _drain(drain.host), drain)

    def undrain(self, host: str) -> None:
        """Let a host run what is placed there again."""
        self._remove(self._keys.drains, host)

    # -- values in their places --------------------------------------------------------------------

    def _read(self, key: str, kind: type[T], place: Fields) -> dict[str, T]:
        def read(item: tuple[bytes, bytes]) -> tuple[str, T]:
            name = text(item[0])
            return name, self._open(kind, place(name), item[1])

        try:
            with broker_errors():
                found: Any = self._client.hgetall(key)
        except WrongType as error:  # who may write there removes it
            warn_once(f"{key} cannot be read: {error}")
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

    def _sealed(self, place: bytes, value: T) -> bytes:
        """Seal a value with a number that is higher than all before it, even if the broker has lost those."""
        _, seen = self._seen.get(place, (b"", None))
        number = max(time.time_ns() // 1000, 0 if seen is None else seen.number + 1)
        value = replace(value, number=number)
        data = self._seal.seal(place, value.encode())
        self._seen[place] = data, value
        return data

    def _write(self, key: str, field: str, place: bytes, value: T) -> None:
        """Store a value; whoever reads it meanwhile has the one before. Readers see one that is whole."""
        data = self._sealed(place, value)
        with broker_errors():
            without_strangers(self._client, lambda: self._client.hset(key, field, data), key)

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


def _drain(host: str) -> bytes:
    return f"drain|{host}".encode()
