"""The supervisor: compares the replicas that are wanted with those that are alive, and acts on the difference."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from qserve.exceptions import BrokerError, PayloadError
from qserve.keys import GROUP, Keys
from qserve.log import get_logger
from qserve.plane.connection import broker_errors, connect, create_group, load_functions
from qserve.pool import FAILED, RUNNING, Pool, ReplicaStatus
from qserve.registry import NO_CHANGE, ApplicationRecord, Registry
from qserve.settings import Settings
from qserve.wire.signing import Seal
from qserve_workers.boot import run_replica
from qserve_workers.restoring import Restorer
from qserve_workers.spec import ReplicaSpec
from qserve_workers.takeover import Takeover
from qserve_workers.wanted import Backoff, Scope

log = get_logger(__name__)
TICK_S = 0.1
SWEEP_S = 5.0


@dataclass
class Member:
    """A replica that this supervisor started."""

    pid: int
    spec: ReplicaSpec
    stream: str
    config: str = ""
    stop_at: float | None = None

    @property
    def retries(self) -> bool:
        """Whether calls of its deployment may wait for another try."""
        return self.spec.record.deployments[self.spec.deployment].max_retries > 0


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
        self._registry = Registry(self._client, self._keys, Seal(self.settings.keyring))
        self._takeover = Takeover(self._client, self._keys)
        self._restorer = Restorer(self._client, self._registry)
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
        pause_s = 0.0
        while not self._stopping:
            try:
                self.tick()
                # waiting for a change of the registry is the tick's pause
                self._registry.wait_for_change(self._change, TICK_S)
                pause_s = 0.0
            except BrokerError as error:
                if not pause_s:
                    log.warning("%s; trying again until it is back", error)
                pause_s = min(1.0, 2 * pause_s or 0.1)
                time.sleep(pause_s)
        self._stop_all()

    def _on_signal(self, number: int, frame: object) -> None:
        self._stopping = True

    def tick(self) -> None:
        """Bury the dead, hand over what they held, start what is missing, stop what is not wanted."""
        self._read_registry()
        self._bury()
        self._wake_retries()
        wanted = self._wanted()
        self._start_missing(wanted)
        self._stop_surplus(wanted)
        self._kill_overdue()
        self._sweep()

    def _wake_retries(self) -> None:
        retrying = {member.stream for member in self.members.values() if member.retries}
        for stream in retrying:
            self._takeover.wake(stream)

    # -- what is wanted ----------------------------------------------------------------------------

    def _read_registry(self) -> None:
        newest = self._registry.last_change()
        if newest == NO_CHANGE != (self._change or NO_CHANGE):
            self._change = NO_CHANGE
            if self._restorer.restore():
                newest = self._registry.last_change()
        if newest in (self._change, NO_CHANGE):
            return
        load_functions(self._client)
        names = self._registry.names() if self.scope.app is None else [self.scope.app]
        records = [record for name in names for record in self._versions(name)]
        self._records = {(record.name, record.version): record for record in records}
        self._restorer.remember(names)
        self._announce_configs()
        for record in records:
            if self.scope.deployment is not None and self.scope.deployment not in record.deployments:
                known = ", ".join(record.deployments)
                log.error("application %r has no deployment %r; it has: %s", record.name, self.scope.deployment, known)
        self._change = newest

    def _versions(self, app: str) -> list[ApplicationRecord]:
        try:
            return self._registry.versions(app)
        except PayloadError as error:
            log.error("application %r is not run: %s", app, error)
            return []

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
        state = next((one.state for one in pool.replicas() if one.name == spec.name), None)
        failed_start = state != RUNNING and not expected
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if failed_start and state is None:
            # it could not say why itself: killed, or ended by code that it imported
            why = f"its process ended with {how} while it was starting"
            pool.report(ReplicaStatus(spec.name, spec.deployment, spec.record.version, FAILED, message=why))
        elif not failed_start:
            pool.remove(spec.name)
        if not expected and state == RUNNING:
            log.warning("replica %s of %s died (%s); its calls are handed over", spec.name, spec.deployment, how)
        moved = self._takeover.hand_over(member.stream, spec.name)
        if moved:
            log.info("%d calls of replica %s were handed over", moved, spec.name)
        self._backoffs.setdefault(member.stream, Backoff()).note(failed_start, time.monotonic())

    def _sweep(self) -> None:
        """Find consumers that are frozen, or whose whole host is gone: no heartbeat at two looks in a row."""
        now = time.monotonic()
        if now - self._swept_at < SWEEP_S:
            return
        self._swept_at = now
        mine = {member.spec.name: member for member in self.members.values()}
        missing = set()
        for stream in self._wanted():
            with broker_errors():
                create_group(self._client, stream)  # heals a queue that the broker has lost
                consumers = self._client.xinfo_consumers(stream, GROUP)
            for name in (one["name"].decode() for one in consumers):
                if self._client.exists(self._keys.beat(name)):
                    continue
                if name in self._missing:
                    self._give_up(stream, name, mine.get(name))
                missing.add(name)
        self._missing = missing

    def _give_up(self, stream: str, name: str, member: Member | None) -> None:
        """Take a replica that has been silent at two looks in a row for lost; one of ours is killed, and buried."""
        if member is None:
            log.warning("replica %s is gone without a word; its calls are handed over", name)
            self._takeover.hand_over(stream, name)
        else:
            log.warning("replica %s is frozen; it is killed", name)
            os.kill(member.pid, signal.SIGKILL)

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
        return self._takeover.retire(record, force)

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
