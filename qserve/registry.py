"""Applications as they are registered in the broker, for everybody who calls, runs or serves them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import msgpack
from redis import Redis

from qserve.exceptions import AppNotFound, PayloadError
from qserve.graph.plan import Plan
from qserve.keys import CHANGES_KEPT, RETIRED_TTL_MS, Keys
from qserve.plane.connection import broker_errors, create_group
from qserve.wire.plan import Template, load_plan
from qserve.wire.signing import Seal

NO_CHANGE = "0-0"
"""The newest change of a registry in which nothing was ever registered."""


@dataclass(frozen=True)
class DeploymentRecord:
    """What callers and supervisors must know of one deployment.

    Parameters:
      num_replicas: Wanted replicas over all hosts.
      max_ongoing: Calls that run in one replica at the same time.
      max_queued: Calls that may wait; -1 for no limit.
      grace_s: How long a stopping replica may finish what it runs.
      health_period_s, health_timeout_s: When ``check_health`` is called, and how long it may take.
      user_config: Passed to ``reconfigure``, as JSON; "" when there is none.
      max_execution_s: How long one call may run; None for as long as its deadline.
      max_retries, retry_on, retry_backoff_s: Which errors are worth another try, how often, and after what wait.
      replicated: False for a driver whose work the gateway does.
    """

    name: str
    num_replicas: int = 1
    max_ongoing: int = 100
    max_queued: int = -1
    grace_s: float = 20.0
    health_period_s: float = 10.0
    health_timeout_s: float = 30.0
    user_config: str = ""
    max_execution_s: float | None = None
    max_retries: int = 0
    retry_on: list[str] | None = None
    retry_backoff_s: float = 0.1
    replicated: bool = True

    @property
    def config(self) -> str:
        """Names the user_config: replicas report which one they have taken."""
        return hashlib.sha256(self.user_config.encode()).hexdigest()[:12] if self.user_config else ""


@dataclass(frozen=True)
class DriverRecord:
    """How the gateway acts as the application's DAGDriver.

    Parameters:
      adapter: Name of a built-in adapter, or "" when user code adapts on a replica of the driver.
      routes: The graphs' names in their order; None when there is a single graph.
      direct: Graphs that are one deployment, with its name: a call by handle passes all its arguments on.
    """

    adapter: str = ""
    routes: tuple[str, ...] | None = None
    direct: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ApplicationRecord:
    """One application: routes, plans and options; no user code.

    Parameters:
      version: Changes with every deploy.
      target: ``module:node`` that replicas import; "" when code travels by value.
      code_digest: Of all that a change of ``user_config`` or ``num_replicas`` leaves as it is.
      route_prefix: None when it has no HTTP.
      graphs: Plans by name, as ``wire.plan`` writes them.
    """

    name: str
    version: str
    ingress: str
    route_prefix: str | None = "/"
    target: str = ""
    code_digest: str = ""
    timeout_s: float | None = None
    deployments: dict[str, DeploymentRecord] = field(default_factory=dict)
    graphs: dict[str, Any] = field(default_factory=dict)
    driver: DriverRecord | None = None

    def stream(self, keys: Keys, deployment: str) -> str:
        """The queue of one deployment; each version has its own, so that versions never mix."""
        return keys.stream(self.name, self.version, deployment)

    def encode(self) -> bytes:
        """The record as msgpack."""
        return msgpack.packb(asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> ApplicationRecord:
        """Read what ``encode`` wrote; raises PayloadError for anything else."""
        try:
            parts = msgpack.unpackb(data)
            driver = parts.pop("driver")
            deployments = {name: DeploymentRecord(**one) for name, one in parts.pop("deployments").items()}
            if driver:
                routes = driver.pop("routes")
                driver = DriverRecord(**driver, routes=None if routes is None else tuple(routes))
            graphs = dict(parts.pop("graphs"))
            return cls(**parts, graphs=graphs, deployments=deployments, driver=driver or None)
        except Exception as error:
            raise PayloadError(f"an application's record cannot be read: {type(error).__name__}: {error}") from error

    @cached_property
    def plans(self) -> dict[str, tuple[Plan, tuple[Template, ...]]]:
        """The graphs, ready to run: plan and argument templates by name."""
        return {name: load_plan(parts) for name, parts in self.graphs.items()}


class Registry:
    """The applications in one broker.

    A new version is staged first: supervisors start its replicas beside those of the active version, and
    callers know nothing of it until it is promoted.

    Parameters:
      client: A connection to the broker.
      keys: The installation's key names.
      seal: Records are sealed: they name the modules that replicas import.
    """

    def __init__(self, client: Redis, keys: Keys, seal: Seal) -> None:
        self._client = client
        self._keys = keys
        self._seal = seal

    def stage(self, record: ApplicationRecord, code: bytes = b"") -> str:
        """Register a version that is to be started; answers the change's id."""
        keys = self._keys
        with broker_errors():
            self._prepare(record)
            pipe = self._client.pipeline(transaction=True)
            if code:
                pipe.set(keys.code(record.name, record.version), code)
            pipe.hset(keys.application(record.name), "next", self._sealed(record))
            pipe.hset(keys.applications, record.name, record.version)
            return self._announce(pipe, record.name)

    def _prepare(self, record: ApplicationRecord) -> None:
        """Make the queues, and name the broker's state; harmless when both are there.

        The queues come first: a submission to a queue that is not there is taken for one to an old version.
        """
        for name, one in record.deployments.items():
            if one.replicated:
                create_group(self._client, record.stream(self._keys, name))
        self._client.set(self._keys.epoch, os.urandom(8).hex(), nx=True)

    def restore(self, record: ApplicationRecord, code: bytes = b"") -> str:
        """Register an active version again in a broker that has lost it; answers the change's id.

        Crash on the way: part of it is there, and whoever restores next adds the rest. Several may do it at
        once; whoever deploys meanwhile wins.
        """
        keys = self._keys
        with broker_errors():
            pipe = self._client.pipeline(transaction=True)
            if code:
                pipe.set(keys.code(record.name, record.version), code, nx=True)
            pipe.hsetnx(keys.application(record.name), "active", self._sealed(record))
            pipe.hsetnx(keys.applications, record.name, record.version)
            pipe.execute()
            # the epoch last: what it lets in finds queues and application
            self._prepare(record)
            return self._announce(self._client.pipeline(transaction=True), record.name)

    def promote(self, record: ApplicationRecord) -> str:
        """Make a staged version the active one; answers the change's id.

        One transaction: a reader sees the old version or the new one, and hears of the change after it.
        """
        retired = self.find(record.name)
        with broker_errors():
            pipe = self._client.pipeline(transaction=True)
            pipe.hset(self._keys.application(record.name), "active", self._sealed(record))
            pipe.hdel(self._keys.application(record.name), "next")
            if retired is not None and retired.version != record.version:
                self._retire(pipe, retired)
            return self._announce(pipe, record.name)

    def withdraw(self, record: ApplicationRecord) -> str:
        """Drop a staged version; the active one stays as it is."""
        active = self.find(record.name)
        with broker_errors():
            pipe = self._client.pipeline(transaction=True)
            pipe.hdel(self._keys.application(record.name), "next")
            self._retire(pipe, record)
            if active is None:
                pipe.hdel(self._keys.applications, record.name)
            return self._announce(pipe, record.name)

    def delete(self, app: str) -> str:
        """Remove an application; its supervisors stop its replicas."""
        records = self.versions(app)
        with broker_errors():
            pipe = self._client.pipeline(transaction=True)
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

    def _opened(self, app: str, data: bytes) -> ApplicationRecord:
        return ApplicationRecord.decode(self._seal.open(b"application|" + app.encode(), data))

    def find(self, app: str) -> ApplicationRecord | None:
        """The active version of an application; None when there is none."""
        with broker_errors():
            data: Any = self._client.hget(self._keys.application(app), "active")
        return None if data is None else self._opened(app, data)

    def get(self, app: str) -> ApplicationRecord:
        """The active version of an application.

        Raises:
          AppNotFound: No application of that name is deployed; the message names those that are.
        """
        found = self.find(app)
        if found is None:
            known = ", ".join(sorted(record.name for record in self.all())) or "none"
            raise AppNotFound(f"no application named {app!r} is deployed; deployed are: {known}")
        return found

    def names(self) -> list[str]:
        """The names of all applications, staged ones included."""
        with broker_errors():
            found: Any = self._client.hkeys(self._keys.applications)
        return [name.decode() for name in found]

    def all(self) -> Iterator[ApplicationRecord]:
        """The active version of every application."""
        for name in self.names():
            found = self.find(name)
            if found is not None:
                yield found

    def versions(self, app: str) -> list[ApplicationRecord]:
        """The active and the staged version of an application, as far as there are any."""
        with broker_errors():
            found: Any = self._client.hmget(self._keys.application(app), "active", "next")
        return [self._opened(app, data) for data in found if data is not None]

    def code(self, app: str, version: str) -> bytes:
        """The signed code that travels with a version; empty when replicas import it."""
        with broker_errors():
            found: Any = self._client.get(self._keys.code(app, version))
        return found or b""

    def last_change(self) -> str:
        """The id of the newest change."""
        with broker_errors():
            found: Any = self._client.xrevrange(self._keys.changes, count=1)
        return found[0][0].decode() if found else NO_CHANGE

    def wait_for_change(self, after: str, timeout_s: float) -> str:
        """Block until something changed after the change ``after``; answers the newest id, or ``after``."""
        with broker_errors():
            found: Any = self._client.xread({self._keys.changes: after}, block=max(1, int(timeout_s * 1000)))
        return found[0][1][-1][0].decode() if found else after
