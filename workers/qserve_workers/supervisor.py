"""The supervisor: compares the replicas that are wanted with those that are alive, and acts on the difference."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from qserve.exceptions import AppNotFound, BrokerError, ReplicaLost
from qserve.keys import GROUP, Keys
from qserve.log import get_logger
from qserve.plane import functions
from qserve.plane.connection import broker_errors, connect, create_group, load_functions
from qserve.pool import FAILED, Pool
from qserve.registry import ApplicationRecord, Registry
from qserve.settings import Settings
from qserve.wire.failure import Failure
from qserve_workers.boot import run_replica
from qserve_workers.spec import ReplicaSpec
from qserve_workers.wanted import Backoff, Scope

log = get_logger(__name__)
TICK_S = 0.1
SWEEP_S = 5.0
_DELETED = Failure.of(AppNotFound("the application was deleted before this call was finished")).encode()
DEATH_LIMIT = 3
"""Deaths of a call's replica (the later ones while it ran alone) after which the call fails."""


@dataclass
class Member:
    """A replica that this supervisor started."""

    pid: int
    spec: ReplicaSpec
    stream: str
    config: str = ""
    stop_at: float | None = None


@dataclass
class Supervisor:
    """Keeps the replicas of one host alive.

    Parameters:
      settings: Names the broker.
      scope: What is to run here.
      fork: Starts a replica and answers its process id; replaced in tests.
    """

    settings: Settings
    scope: Scope = field(default_factory=Scope)
    fork: Callable[[ReplicaSpec], int] | None = None
    members: dict[int, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.settings.broker_url is not None
        self._keys = Keys(self.settings.namespace)
        self._client = connect(self.settings.broker_url)
        self._registry = Registry(self._client, self._keys)
        self._records: dict[tuple[str, str], ApplicationRecord] = {}
        self._change = ""
        self._backoffs: dict[str, Backoff] = {}
        self._retiring: dict[str, float] = {}
        self._stopping = False
        self._swept_at = time.monotonic()
        self._missing: set[str] = set()

    def run(self) -> None:
        """Tick until told to stop, then stop every replica."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        while not self._stopping:
            try:
                self.tick()
                # waiting for a change of the registry is the tick's pause
                self._registry.wait_for_change(self._change, TICK_S)
            except BrokerError as error:
                log.warning("%s", error)
                time.sleep(0.2)
        self._stop_all()

    def _on_signal(self, number: int, frame: object) -> None:
        self._stopping = True

    def tick(self) -> None:
        """Bury the dead, hand over what they held, start what is missing, stop what is not wanted."""
        self._read_registry()
        self._bury()
        wanted = self._wanted()
        self._start_missing(wanted)
        self._stop_surplus(wanted)
        self._kill_overdue()
        self._sweep()

    # -- what is wanted ----------------------------------------------------------------------------

    def _read_registry(self) -> None:
        newest = self._registry.last_change()
        if newest == self._change:
            return
        load_functions(self._client)
        names = self._registry.names() if self.scope.app is None else [self.scope.app]
        records = [record for name in names for record in self._registry.versions(name)]
        self._records = {(record.name, record.version): record for record in records}
        self._announce_configs()
        for record in records:
            if self.scope.deployment is not None and self.scope.deployment not in record.deployments:
                known = ", ".join(record.deployments)
                log.error("application %r has no deployment %r; it has: %s", record.name, self.scope.deployment, known)
        self._change = newest

    def _announce_configs(self) -> None:
        """Have replicas whose user_config has changed read it: the same version goes on with other settings."""
        for member in self.members.values():
            spec = member.spec
            record = self._records.get((spec.record.name, spec.record.version))
            if record is None or member.stop_at is not None:
                continue
            config = record.deployments[spec.deployment].config
            if config != member.config:
                member.config = config
                os.kill(member.pid, signal.SIGHUP)

    def _wanted(self) -> dict[str, tuple[ApplicationRecord, str, int]]:
        return {
            record.stream(self._keys, deployment): (record, deployment, count)
            for record in self._records.values()
            for deployment, count in self.scope.wanted(record)
        }

    # -- the dead ----------------------------------------------------------------------------------

    def _bury(self) -> None:
        while self.members:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            member = self.members.pop(pid, None)
            if member is not None:
                self._on_death(member, os.waitstatus_to_exitcode(status))

    def _on_death(self, member: Member, code: int) -> None:
        spec = member.spec
        expected = member.stop_at is not None
        pool = Pool(self._client, self._keys, spec.record.name)
        failed_start = code == 1 and any(one.name == spec.name and one.state == FAILED for one in pool.replicas())
        if not expected and not failed_start:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            log.warning(
                "replica %s of %s died (%s); its calls are handed over",
                spec.name,
                spec.deployment,
                how,
            )
        moved = self.hand_over(member.stream, spec.name)
        if moved:
            log.info("%d calls of replica %s were handed over", moved, spec.name)
        if not failed_start:
            pool.remove(spec.name)
        backoff = self._backoffs.setdefault(member.stream, Backoff())
        backoff.note(failed_start, time.monotonic())

    def hand_over(self, stream: str, consumer: str) -> int:
        """Put what a dead replica held back on the queue; answers how many calls that were.

        Crash before the call: the entries stay pending and the next sweep finds them. Crash after: they are
        on the queue as new entries.
        """
        lost = Failure.of(ReplicaLost(f"its replica died {DEATH_LIMIT} times while running this call")).encode()
        prefix, personal = self._keys.request(""), self._keys.personal(stream, consumer)
        total = 0
        for source in (stream, personal):
            while True:
                with broker_errors():
                    command = functions.reclaim(source, consumer, DEATH_LIMIT, lost, prefix, to=stream)
                    moved = int(self._client.execute_command(*command))
                total += moved
                if moved < 1000:
                    break
        with broker_errors():
            command = functions.disband(personal, stream, self._keys.models_of(stream), consumer, prefix)
            return total + int(self._client.execute_command(*command))

    def _sweep(self) -> None:
        """Find consumers whose whole host is gone: no heartbeat at two looks in a row."""
        now = time.monotonic()
        if now - self._swept_at < SWEEP_S:
            return
        self._swept_at = now
        mine = {member.spec.name for member in self.members.values()}
        missing = set()
        for stream in self._wanted():
            with broker_errors():
                create_group(self._client, stream)  # heals a queue that the broker has lost
                consumers = self._client.xinfo_consumers(stream, GROUP)
            for name in (one["name"].decode() for one in consumers):
                if name in mine or self._client.exists(self._keys.beat(name)):
                    continue
                if name in self._missing:
                    log.warning("replica %s is gone without a word; its calls are handed over", name)
                    self.hand_over(stream, name)
                missing.add(name)
        self._missing = missing

    # -- the living --------------------------------------------------------------------------------

    def _start_missing(self, wanted: dict[str, tuple[ApplicationRecord, str, int]]) -> None:
        now = time.monotonic()
        for stream, (record, deployment, count) in wanted.items():
            backoff = self._backoffs.setdefault(stream, Backoff())
            alive = sum(1 for one in self.members.values() if one.stream == stream and one.stop_at is None)
            if now < backoff.next_try:
                continue
            for _ in range(count - alive):
                self._start(record, deployment, stream)

    def _start(self, record: ApplicationRecord, deployment: str, stream: str) -> None:
        name = f"{deployment}-{socket.gethostname()}-{os.urandom(4).hex()}"
        spec = ReplicaSpec(name, record, deployment, self.settings, self.scope.target)
        pid = (self.fork or fork_replica)(spec)
        self.members[pid] = Member(pid, spec, stream, record.deployments[deployment].config)

    def _stop_surplus(self, wanted: dict[str, tuple[ApplicationRecord, str, int]]) -> None:
        by_stream: dict[str, list[Member]] = {}
        for member in self.members.values():
            if member.stop_at is None:
                by_stream.setdefault(member.stream, []).append(member)
        for stream, members in by_stream.items():
            keep = wanted[stream][2] if stream in wanted else 0
            if stream not in wanted and not self._is_retired(members[0].spec.record):
                continue
            for member in members[keep:]:
                self._stop(member)

    def _is_retired(self, record: ApplicationRecord) -> bool:
        """Whether a version that is no longer wanted has finished what was accepted, or has had its time for it."""
        if record.version not in self._retiring:
            grace_s = max(one.grace_s for one in record.deployments.values())
            self._retiring[record.version] = time.monotonic() + grace_s
        force = time.monotonic() > self._retiring[record.version]
        streams = [record.stream(self._keys, name) for name, one in record.deployments.items() if one.replicated]
        with broker_errors():
            for stream in streams[:]:
                held = self._client.hgetall(self._keys.models_of(stream))
                streams += [own.decode() for field, own in held.items() if field.startswith(b"s:")]
            command = functions.retire(streams, force, _DELETED, self._keys.request(""))
            return int(self._client.execute_command(*command)) == 1

    def _grace_s(self, member: Member) -> float:
        return member.spec.record.deployments[member.spec.deployment].grace_s

    def _stop(self, member: Member) -> None:
        member.stop_at = time.monotonic() + self._grace_s(member) + 3.0
        os.kill(member.pid, signal.SIGTERM)

    def _kill_overdue(self) -> None:
        for member in self.members.values():
            if member.stop_at is not None and time.monotonic() > member.stop_at:
                os.kill(member.pid, signal.SIGKILL)

    def _stop_all(self) -> None:
        for member in self.members.values():
            if member.stop_at is None:
                self._stop(member)
        while self.members:
            try:
                self._bury()
                self._kill_overdue()
            except BrokerError as error:
                log.warning("%s", error)
            time.sleep(0.02)


def fork_replica(spec: ReplicaSpec) -> int:
    """Start a replica in a child of this process, which has imported the framework and no user code."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = run_replica(spec)
    except BaseException:
        log.exception("replica %s ended with an error", spec.name)
    finally:
        sys.stderr.flush()
        # no interpreter shutdown: the supervisor's own exit handlers must not run here (reliability.md, 0.17)
        os._exit(code)
