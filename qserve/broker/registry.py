"""The registry of applications in the broker: for those who call, run or serve them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from redis import Redis

from qserve.base.keys import CHANGES_KEPT, RETIRED_TTL_MS, Keys
from qserve.broker.connection import broker_errors, create_group
from qserve.exceptions import AppNotFound
from qserve.wire.application import ApplicationRecord
from qserve.wire.sealing import Seal

NO_CHANGE = "0-0"
"""The newest change of a registry in which nothing was ever registered."""


class Registry:
    """The applications in one broker.

    A new version is staged first: supervisors start its replicas beside those of the active version, and
    callers do not see it until it is promoted.

    Parameters:
      client: A connection to the broker.
      keys: The installation's key names.
      seal: Records are sealed: they name the modules that replicas import.
    """

    def __init__(self, client: Redis, keys: Keys, seal: Seal) -> None:
        self._client = client
        self._keys = keys
        self._seal = seal

    @broker_errors()
    def stage(self, record: ApplicationRecord, code: bytes = b"") -> str:
        """Register a version that is to be started; return the id of the change."""
        self._prepare(record)
        pipe = self._client.pipeline()
        if code:
            pipe.set(self._keys.code(record.name, record.version), code)
        pipe.hset(self._keys.application(record.name), "next", self._sealed(record))
        pipe.hset(self._keys.applications, record.name, record.version)
        return self._announce(pipe, record.name)

    def _prepare(self, record: ApplicationRecord) -> None:
        """Create the queues and the epoch; harmless when they exist.

        The queues come first: a submission to a queue that is missing is taken for one to an old version.
        """
        for name, one in record.deployments.items():
            if one.replicated:
                create_group(self._client, record.stream(self._keys, name))
        self._client.set(self._keys.epoch, os.urandom(8).hex(), nx=True)

    @broker_errors()
    def restore(self, record: ApplicationRecord, code: bytes = b"") -> str:
        """Register an active version again in a broker that has lost it; return the id of the change.

        Crash on the way: part of it is there, and the next call adds the rest. Several processes may do it at once; a
        deployment at the same time wins.
        """
        pipe = self._client.pipeline()
        if code:
            pipe.set(self._keys.code(record.name, record.version), code, nx=True)
        pipe.hsetnx(self._keys.application(record.name), "active", self._sealed(record))
        pipe.hsetnx(self._keys.applications, record.name, record.version)
        pipe.execute()
        # the epoch last: once it is there, submissions are accepted and must find queues and application
        self._prepare(record)
        return self._announce(self._client.pipeline(), record.name)

    @broker_errors()
    def promote(self, record: ApplicationRecord) -> str:
        """Make a staged version the active one; return the id of the change.

        One transaction: a reader sees the old version or the new one, and learns of the change after it.
        """
        retired = self.find(record.name)
        pipe = self._client.pipeline()
        pipe.hset(self._keys.application(record.name), "active", self._sealed(record))
        pipe.hdel(self._keys.application(record.name), "next")
        if retired is not None and retired.version != record.version:
            self._retire(pipe, retired)
        return self._announce(pipe, record.name)

    @broker_errors()
    def withdraw(self, record: ApplicationRecord) -> str:
        """Drop a staged version; the active one stays as it is."""
        active = self.find(record.name)
        pipe = self._client.pipeline()
        pipe.hdel(self._keys.application(record.name), "next")
        self._retire(pipe, record)
        if active is None:
            pipe.hdel(self._keys.applications, record.name)
        return self._announce(pipe, record.name)

    @broker_errors()
    def delete(self, app: str) -> str:
        """Remove an application; its supervisors stop its replicas."""
        records = self.versions(app)
        pipe = self._client.pipeline()
        pipe.delete(self._keys.application(app))
        pipe.hdel(self._keys.applications, app)
        for record in records:
            self._retire(pipe, record)
        return self._announce(pipe, app)

    def _retire(self, pipe: Any, record: ApplicationRecord) -> None:
        pipe.pexpire(self._keys.code(record.name, record.version), RETIRED_TTL_MS)
        for name in record.deployments:
            pipe.pexpire(record.stream(self._keys, name), RETIRED_TTL_MS)

    def _announce(self, pipe: Any, app: str) -> str:
        pipe.xadd(self._keys.changes, {"app": app}, maxlen=CHANGES_KEPT, approximate=False)
        return pipe.execute()[-1].decode()  # type: ignore[no-any-return]

    def _sealed(self, record: ApplicationRecord) -> bytes:
        return self._seal.seal(b"application|" + record.name.encode(), record.encode())

    def find(self, app: str) -> ApplicationRecord | None:
        """Return the active version of an application; None when there is none."""
        return next(self._read(app, "active"), None)

    def versions(self, app: str) -> list[ApplicationRecord]:
        """Return the active and the staged version of an application, those that exist."""
        return list(self._read(app, "active", "next"))

    def _read(self, app: str, *names: str) -> Iterator[ApplicationRecord]:
        with broker_errors():
            found: Any = self._client.hmget(self._keys.application(app), names)
        for data in found:
            if data is not None:
                yield ApplicationRecord.decode(self._seal.open(b"application|" + app.encode(), data))

    def get(self, app: str) -> ApplicationRecord:
        """Return the active version of an application.

        Raises:
          AppNotFound: No application of that name is deployed; the message names those that are.
        """
        found = self.find(app)
        if found is None:
            known = ", ".join(sorted(record.name for record in self.all())) or "none"
            raise AppNotFound(f"no application named {app!r} is deployed; deployed are: {known}")
        return found

    @broker_errors()
    def names(self) -> list[str]:
        """Return the names of all applications, staged ones included."""
        found: Any = self._client.hkeys(self._keys.applications)
        return [name.decode() for name in found]

    def all(self) -> Iterator[ApplicationRecord]:
        """Yield the active version of every application."""
        for name in self.names():
            yield from self._read(name, "active")

    @broker_errors()
    def code(self, app: str, version: str) -> bytes:
        """Return the signed code that travels with a version; empty when replicas import it."""
        found: Any = self._client.get(self._keys.code(app, version))
        return found or b""

    @broker_errors()
    def last_change(self) -> str:
        """Return the id of the newest change."""
        found: Any = self._client.xrevrange(self._keys.changes, count=1)
        return found[0][0].decode() if found else NO_CHANGE

    @broker_errors()
    def wait_for_change(self, after: str, timeout_s: float) -> str:
        """Block until there is a change after ``after``; return the newest id, or ``after``."""
        found: Any = self._client.xread({self._keys.changes: after}, block=max(1, int(timeout_s * 1000)))
        return found[0][1][-1][0].decode() if found else after
