"""One installation of qserve on a broker: what its replicas report, and the status that follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qserve.base.clock import clock
from qserve.base.keys import POOL_TTL_MS, Keys
from qserve.base.settings import Settings
from qserve.broker.connection import Client, broker_errors, connect, without_strangers
from qserve.broker.faults import Faults
from qserve.broker.load import BrokerStatus, broker_status, waiting_in
from qserve.broker.registry import NEXT, Registry
from qserve.exceptions import PayloadError, WrongType
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.replies import each, text, warn_once
from qserve.wire.sealing import Seal
from qserve.wire.status import FAILED, RUNNING, WAITING, ReplicaStatus, report_place

GIVEN_UP_AFTER = 3
"""Failed starts in a row after which requests are refused, as long as no replica runs; as many as end a deploy."""
_CAUSE_LIMIT = 500


class ReplicaReports:
    """The reports of an application's replicas, on all hosts.

    Parameters:
      faults: Which deployments cannot be started; read again with each report.
    """

    def __init__(self, client: Client, keys: Keys, seal: Seal, app: str, faults: Faults | None = None) -> None:
        self._client = client
        self._keys = keys
        self._seal = seal
        self._app = app
        self._key = keys.pool(app)
        self._faults = faults or Faults(client, keys, seal)
        self._sent: dict[str, set[bytes]] = {}

    def report(self, status: ReplicaStatus) -> None:
        """Store a report; if the last one from here was changed in the broker, that is logged once.

        A key that was overwritten with something else is replaced.
        """
        sealed = self._seal.seal(report_place(self._app, status.name), status.encode())
        is_first = status.name not in self._sent
        self._sent.setdefault(status.name, set()).add(sealed)  # before it is sent: the reply may be lost

        def store() -> bytes | None:
            pipe = self._client.pipeline(transaction=True)
            pipe.hget(self._key, status.name).hset(self._key, status.name, sealed).pexpire(self._key, POOL_TTL_MS)
            before, *_, faults = pipe.hgetall(self._faults.key).execute()
            self._faults.take_in(faults)
            return before  # type: ignore[no-any-return]

        with broker_errors():
            before = without_strangers(self._client, store, self._key, self._faults.key)
        if not is_first and before not in self._sent[status.name]:
            how = "removed" if before is None else "changed"
            warn_once(f"the report of replica {status.name} was {how} in the broker, and is sent again")
        self._sent[status.name] = {sealed}

    @broker_errors()
    def remove(self, name: str) -> None:
        self._client.hdel(self._key, name)

    @broker_errors()
    def take_turn(self, stream: str, name: str, for_s: float) -> bool:
        """Return whether this replica may leave now: one of a deployment at a time, until it has been replaced."""
        return bool(self._client.set(self._keys.leaving_of(stream), name, nx=True, px=int(for_s * 1000)))

    @broker_errors()
    def end_turn(self, stream: str) -> None:
        """Let the next replica leave: the one before has been replaced."""
        self._client.delete(self._keys.leaving_of(stream))

    def replicas(self) -> list[ReplicaStatus]:
        """Return the current reports; those that are not ours, or cannot be read, are skipped and logged once."""
        now_ms = clock.judge_ms()
        return [report for report in self._all() if not report.until_ms or report.until_ms > now_ms]

    def last(self, name: str) -> ReplicaStatus | None:
        """Return the last report of a replica, however old; None when there is none."""
        return next((report for report in self._all() if report.name == name), None)

    def _all(self) -> list[ReplicaStatus]:
        try:
            with broker_errors():
                found: Any = self._client.hgetall(self._key)
        except WrongType as error:
            warn_once(f"no replica's report can be read: {error}")
            return []
        return list(each(found.items(), self._read))

    def _read(self, item: tuple[bytes, bytes]) -> ReplicaStatus:
        name = text(item[0], "the name of a replica")
        try:
            status = ReplicaStatus.decode(self._seal.open(report_place(self._app, name), item[1]))
        except PayloadError as error:
            raise PayloadError(f"the report of replica {name!r} of application {self._app!r}: {error}") from error
        if status.name != name:
            raise PayloadError(
                f"the report of replica {name!r} of application {self._app!r} belongs to another replica"
            )
        return status


@dataclass(frozen=True)
class DeploymentStatus:
    """The status of a deployment.

    Parameters:
      status: HEALTHY if all its replicas run, UPDATING while they start, UNHEALTHY if one has failed or no worker has
        any.
      replica_states: The number of replicas in each state.
      waiting_calls: How many calls no replica has fetched yet.
      oldest_call_s: For how many seconds the oldest of them has waited.
      message: Why it is not healthy: the traceback of a constructor that failed, or which code the workers have that
        wait for another version.
    """

    name: str
    status: str
    replica_states: dict[str, int]
    message: str
    waiting_calls: int = 0
    oldest_call_s: float = 0.0


@dataclass(frozen=True)
class ApplicationStatus:
    """The status of an application.

    Parameters:
      status: RUNNING, DEPLOYING or UNHEALTHY.
    """

    name: str
    status: str
    route_prefix: str | None
    version: str
    message: str
    deployments: dict[str, DeploymentStatus]


@dataclass(frozen=True)
class ServeStatus:
    """The status of all applications on a broker, and of the broker."""

    applications: dict[str, ApplicationStatus]
    broker: BrokerStatus = field(default_factory=BrokerStatus)


class Installation:
    """A client of the broker, the key names and signatures of the installation, and its registry.

    Parameters:
      settings: Name the broker, the namespace and the secret key.
      client: An open client of that broker; by default a new one, which connects when it is first used.

    Raises:
      QserveException: No broker is set, or its address is not valid.
    """

    def __init__(self, settings: Settings, client: Client | None = None) -> None:
        self.settings = settings
        self.client = connect(settings.named_broker) if client is None else client
        self.keys = Keys(settings.namespace)
        self.seal = Seal(settings.keyring)
        self.registry = Registry(self.client, self.keys, self.seal)

    def reports(self, app: str) -> ReplicaReports:
        """Return what the replicas of an application report."""
        return ReplicaReports(self.client, self.keys, self.seal, app, self.registry.faults)

    def status(self) -> ServeStatus:
        """Read the status of every application.

        Raises:
          BrokerUnavailable: The broker does not reply.
        """
        found = {name: self.registry.readable(name, "active", "next") for name in sorted(self.registry.names())}
        applications = {name: self._status_of(versions[0]) for name, versions in found.items() if versions}
        return ServeStatus(applications, broker_status(self.client, [self.keys.pool(name) for name in found]))

    def _status_of(self, record: ApplicationRecord) -> ApplicationStatus:
        current = [replica for replica in self.reports(record.name).replicas() if replica.version == record.version]
        wanted = [deployment for deployment in record.deployments.values() if deployment.replicated]
        waiting = waiting_in(self.client, [record.stream(self.keys, deployment.name) for deployment in wanted])
        deployments = {
            deployment.name: replace(
                _deployment_status(deployment, current, is_active=record.place != NEXT),
                waiting_calls=calls,
                oldest_call_s=oldest_s,
            )
            for deployment, (calls, oldest_s) in zip(wanted, waiting, strict=True)
        }
        found = {status.status for status in deployments.values()}
        status = "UNHEALTHY" if "UNHEALTHY" in found else "DEPLOYING" if "UPDATING" in found else "RUNNING"
        message = next((status.message for status in deployments.values() if status.message), "")
        return ApplicationStatus(record.name, status, record.route_prefix, record.version, message, deployments)


def _deployment_status(
    wanted: DeploymentRecord, reported: Sequence[ReplicaStatus], is_active: bool
) -> DeploymentStatus:
    replicas = [replica for replica in reported if replica.deployment == wanted.name]
    states = Counter(replica.state for replica in replicas)
    failed = [replica for replica in replicas if replica.state == FAILED]
    waiting = waiting_workers(replicas)
    if not failed and states[RUNNING] >= wanted.num_replicas:
        return DeploymentStatus(wanted.name, "HEALTHY", dict(states), waiting)
    if not replicas:
        status = "UNHEALTHY" if is_active else "UPDATING"
        return DeploymentStatus(wanted.name, status, {}, "no worker runs a replica of it: start `qserve worker`")
    message = f"{states[RUNNING]} of {wanted.num_replicas} run{_words_of(failed)}" + (f"\n{waiting}" if waiting else "")
    return DeploymentStatus(wanted.name, "UNHEALTHY" if failed else "UPDATING", dict(states), message)


def _words_of(failed: Sequence[ReplicaStatus]) -> str:
    """Say how often starts have failed, when the next is tried, and why the last has failed."""
    if not failed:
        return ""
    failures = sum(replica.failures for replica in failed)
    next_ms = min(replica.next_try_ms for replica in failed)
    tried = f", tried {failures} time{'' if failures == 1 else 's'}" if failures else ""
    left_s = (next_ms - clock.judge_ms()) / 1000
    return f"{tried}{f', next in {left_s:.0f} s' if left_s > 0 else ''}: {failed[0].message}"


def fault_in(record: ApplicationRecord, reported: Sequence[ReplicaStatus]) -> ReplicaStatus | None:
    """Return the error for calls of a deployment of which no replica runs, because starts fail again and again."""
    for name, wanted in record.deployments.items():
        mine = [replica for replica in reported if (replica.deployment, replica.version) == (name, record.version)]
        failed = [replica for replica in mine if replica.state == FAILED]
        failures = sum(replica.failures for replica in failed)
        if wanted.replicated and failures >= GIVEN_UP_AFTER and not any(replica.state == RUNNING for replica in mine):
            latest = max(failed, key=lambda replica: replica.until_ms)
            cause = _on_one_line(latest.message)
            return ReplicaStatus("", name, record.version, FAILED, message=cause, until_ms=latest.until_ms)
    return None


def _on_one_line(message: str) -> str:
    """Return what failed and the error, without its traceback."""
    first, *rest = message.splitlines() or [""]
    frames = [number for number, line in enumerate(rest) if line.startswith("  File ")]
    after = rest[frames[-1] + 1 :] if frames else rest
    error = next((line for line in after if line and line[0] != " "), "")
    return f"{first} {error}".strip()[:_CAUSE_LIMIT]


def waiting_workers(reported: Sequence[ReplicaStatus]) -> str:
    """Say which workers do not have a version's code, a line for each."""
    found = [
        f"the worker on {worker.host} (process {worker.pid}) waits: {worker.message}"
        for worker in reported
        if worker.state == WAITING
    ]
    return "\n".join(dict.fromkeys(found))
