"""One installation of qserve on a broker: what its replicas report, and which gateways serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from qserve.base.clock import clock
from qserve.base.keys import POOL_TTL_MS, Keys
from qserve.base.settings import Settings
from qserve.broker.connection import Client, broker_errors, connect, without_strangers
from qserve.broker.faults import Faults
from qserve.broker.library import Command
from qserve.broker.registry import Registry
from qserve.exceptions import PayloadError, WrongType
from qserve.fleet.store import FleetStore
from qserve.wire.application import ApplicationRecord
from qserve.wire.replies import each, field_values, position, shown, text, warn_once
from qserve.wire.sealing import Seal
from qserve.wire.status import FAILED, RUNNING, WAITING, ReplicaStatus, report_place

Send = Callable[[Sequence[Command]], list[Any]]
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

    def report(self, status: ReplicaStatus, send: Send | None = None) -> None:
        """Store a report; if the last one from here was changed in the broker, that is logged once.

        A key that was overwritten with something else is replaced.

        Parameters:
          send: Sends commands and returns their replies, none of which is an error; by default over ``client``.
        """
        sealed = self._seal.seal(report_place(self._app, status.name), status.encode())
        is_first = status.name not in self._sent
        self._sent.setdefault(status.name, set()).add(sealed)  # before it is sent: the reply may be lost

        def store() -> bytes | None:
            before, *_, faults = (send or self._send)([
                ("HGET", self._key, status.name),
                ("HSET", self._key, status.name, sealed),
                ("PEXPIRE", self._key, POOL_TTL_MS),
                ("HGETALL", self._faults.key),
            ])  # fmt: skip
            self._faults.take_in(field_values(faults))
            return before  # type: ignore[no-any-return]

        with broker_errors():
            before = without_strangers(self._client, store, self._key, self._faults.key)
        if not is_first and before not in self._sent[status.name]:
            how = "removed" if before is None else "changed"
            warn_once(f"the report of replica {status.name} was {how} in the broker, and is sent again")
        self._sent[status.name] = {sealed}

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return pipe.execute()  # type: ignore[no-any-return]

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
        found = self._ask(lambda: self._client.hget(self._key, name))
        return next(each([] if found is None else [(name.encode(), found)], self._read), None)

    def _all(self) -> list[ReplicaStatus]:
        return list(each((self._ask(lambda: self._client.hgetall(self._key)) or {}).items(), self._read))

    def _ask(self, ask: Callable[[], Any]) -> Any:
        try:
            with broker_errors():
                return ask()
        except WrongType as error:
            warn_once(f"no replica's report can be read: {error}")
            return None

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


class Installation:
    """A client of the broker, the key names and signatures of the installation, its registry and its fleet.

    Parameters:
      settings: Name the broker, the namespace and the secret key.
      client: An open client of that broker; by default a new one, which connects when it is first used.

    Raises:
      QserveException: No broker is set, or its address is not valid.
    """

    def __init__(self, settings: Settings, client: Client | None = None) -> None:
        self.settings = settings
        self.client: Client = connect(settings.named_broker) if client is None else client
        self.keys: Final = Keys(settings.namespace)
        self.seal: Final = Seal(settings.keyring)
        self.registry: Final = Registry(self.client, self.keys, self.seal)
        self.fleet: Final = FleetStore(self.client, self.keys, self.seal)

    def reports(self, app: str) -> ReplicaReports:
        """Return what the replicas of an application report."""
        return ReplicaReports(self.client, self.keys, self.seal, app, self.registry.faults)

    def gateways(self) -> dict[str, str]:
        """Return the processes of gateways that live, and which change of the registry each of them serves.

        Raises:
          BrokerUnavailable: The broker does not reply.
        """
        prefix = self.keys.gateway("")
        with broker_errors():
            beats = list(self.client.scan_iter(prefix.replace("[", "\\[") + "*", count=1000))
        served = each(beats, lambda beat: (text(beat).removeprefix(prefix), self._served_by(beat)))
        return {process: change for process, change in served if change}

    def _served_by(self, beat: bytes) -> str:
        """Return the change that the gateway of a beat serves; "" when it has just ended."""
        try:
            with broker_errors():
                found: Any = self.client.get(beat)
        except WrongType as error:
            raise PayloadError(f"{shown(beat)} is not a gateway's: {error}") from error
        return "" if found is None else position(self.seal.open(beat, found))


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
