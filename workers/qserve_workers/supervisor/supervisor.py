"""The supervisor: compares the replicas that are wanted with those that are alive, and acts on the difference."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from qserve.base import failpoints
from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.broker.connection import connect, load_functions
from qserve.broker.registry import NO_CHANGE, Registry
from qserve.deploy.status import FAILED, RUNNING, ReplicaReports, ReplicaStatus
from qserve.exceptions import BrokerError, PayloadError
from qserve.wire.application import ApplicationRecord
from qserve.wire.sealing import Seal
from qserve_workers.process.spec import ReplicaSpec
from qserve_workers.supervisor.death import MemoryWatch, describe
from qserve_workers.supervisor.member import Member, fork_replica
from qserve_workers.supervisor.restoring import Restorer
from qserve_workers.supervisor.sweep import Sweeper
from qserve_workers.supervisor.takeover import Takeover
from qserve_workers.supervisor.wanted import Backoff, Scope

log = get_logger(__name__)
TICK_S = 0.1
HUNG_S = 30
"""How long one look at everything may take; each question to the broker is given up after 2 s."""


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
        self._client = connect(self.settings.broker_url, silent_for_s=2.0)  # a clock set back: else it reads on for 7 s
        self._registry = Registry(self._client, self._keys, Seal(self.settings.keyring))
        self._takeover = Takeover(self._client, self._keys)
        self._restorer = Restorer(self._client, self._registry)
        self._records: dict[tuple[str, str], ApplicationRecord] = {}
        self._change = ""
        self._backoffs: dict[str, Backoff] = {}
        self._retiring: dict[str, float] = {}
        self._stopping = False
        self._dead: deque[tuple[Member, str]] = deque()
        self._faults: set[str] = set()
        self._memory = MemoryWatch()
        self._sweeper = Sweeper(self._client, self._keys, self._takeover, self.settings)

    def run(self) -> None:
        """Tick until told to stop, then stop every replica."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # One that hangs would leave the dead unburied. The kernel ends it, whatever holds the interpreter: it says
        # where it stands, its replicas finish what they run, and whoever keeps the supervisor starts another.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, chain=True)
        pause_s = 0.0
        while not self._stopping:
            signal.alarm(HUNG_S)
            try:
                self.tick()
                self._registry.wait_for_change(self._change or NO_CHANGE, TICK_S)  # this is the tick's pause
                pause_s = 0.0
            except BrokerError as error:
                if not pause_s:
                    log.warning("%s; trying again until it is back", error)
                pause_s = min(1.0, 2 * pause_s or 0.1)
                time.sleep(pause_s)
        signal.alarm(0)
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
        self._sweeper.sweep(wanted, self.members.values())

    def _wake_retries(self) -> None:
        for stream in {member.stream for member in self.members.values() if member.retries}:
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
            if record is None or member.stopping:
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
                break
            if pid == 0:
                break
            member = self.members.pop(pid, None)
            if member is not None:
                how = describe(os.waitstatus_to_exitcode(status), member.killed_because, self._memory)
                self._dead.append((member, how))
        while self._dead:
            # struck off when all of it is done: the broker may be away in the middle of it
            self._on_death(*self._dead[0])
            self._dead.popleft()

    def _on_death(self, member: Member, how: str) -> None:
        """Hand over what a dead replica held, and say how it died.

        Crash at any point: what it held stays pending, until a supervisor misses its heartbeat.
        """
        spec = member.spec
        moved = self._takeover.hand_over(member.stream, spec.name)
        self._sweeper.bury(spec.name)
        pool = ReplicaReports(self._client, self._keys, spec.record.name)
        state = self._state_of(spec)
        failed_start = state != RUNNING and not member.stopping
        if failed_start and state is None:
            # it could not say why itself: killed, or ended by code that it imported
            why = f"its process ended while it was starting: {how}"
            log.warning("replica %s of %s: %s", spec.name, spec.deployment, why)
            pool.report(ReplicaStatus(spec.name, spec.deployment, spec.record.version, FAILED, message=why))
        elif not failed_start:
            pool.remove(spec.name)
        if not member.stopping and state == RUNNING:
            log.warning("replica %s of %s died (%s); its calls are handed over", spec.name, spec.deployment, how)
        if moved:
            log.info("%d calls of replica %s were handed over", moved, spec.name)
        self._backoffs.setdefault(member.stream, Backoff()).note(failed_start, time.monotonic())

    # -- the living --------------------------------------------------------------------------------

    def _start_missing(self, wanted: dict[str, tuple[ApplicationRecord, str, int]]) -> None:
        now = time.monotonic()
        for stream, (record, deployment, count) in wanted.items():
            backoff = self._backoffs.setdefault(stream, Backoff())
            alive = sum(1 for one in self.members.values() if one.stream == stream and not one.stopping)
            if now < backoff.next_try:
                continue
            for _ in range(count - alive):
                if not self._start(record, deployment, stream):
                    backoff.note(True, now)
                    break

    def _start(self, record: ApplicationRecord, deployment: str, stream: str) -> bool:
        """Start one replica; answers False when the system gives no process for it."""
        host = socket.gethostname()
        # one report for all that cannot be started here, so that it is counted as one failure and goes by itself
        pool, fault = ReplicaReports(self._client, self._keys, record.name), f"{deployment}-{host}"
        spec = ReplicaSpec(f"{fault}-{os.urandom(4).hex()}", record, deployment, self.settings, self.scope.target)
        try:
            pid = (self.fork or fork_replica)(spec)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "")
            why = f"cannot_start: {name}: {os.strerror(error.errno or 0)}"
            log.error("no replica of %s can be started: %s", deployment, why)
            pool.report(ReplicaStatus(fault, deployment, record.version, FAILED, host=host, message=why))
            self._faults.add(fault)
            return False
        if failpoints.ARMED:
            failpoints.hit("supervisor.after_fork")
        self.members[pid] = Member(pid, spec, stream, record.deployments[deployment].config)
        if fault in self._faults:
            self._faults.discard(fault)
            pool.remove(fault)
        return True

    def _stop_surplus(self, wanted: dict[str, tuple[ApplicationRecord, str, int]]) -> None:
        by_stream: dict[str, list[Member]] = {}
        for member in self.members.values():
            if not member.stopping:
                by_stream.setdefault(member.stream, []).append(member)
        for stream, members in by_stream.items():
            keep = wanted[stream][2] if stream in wanted else 0
            if stream not in wanted and not self._is_retired(members[0].spec.record):
                continue
            for member in members[keep:]:
                member.stop()

    def _is_retired(self, record: ApplicationRecord) -> bool:
        """Whether a version that is no longer wanted has finished what was accepted, or has had its time for it."""
        if record.version not in self._retiring:
            grace_s = max(one.grace_s for one in record.deployments.values())
            self._retiring[record.version] = time.monotonic() + grace_s
        force = time.monotonic() > self._retiring[record.version]
        return self._takeover.retire(record, force)

    def _kill_overdue(self) -> None:
        for member in self.members.values():
            self._look_at_start(member)
            member.kill_if_due()

    def _look_at_start(self, member: Member) -> None:
        """Kill a replica whose constructor takes too long, and report it as one that has failed."""
        limit_s, spec = self.settings.start_timeout_s, member.spec
        if member.is_ready or member.stopping or time.monotonic() - member.started_at < limit_s:
            return
        member.is_ready = self._state_of(spec) == RUNNING
        if not member.is_ready:
            why = f"start_timeout: it was not constructed within {limit_s:g} s (QSERVE_START_TIMEOUT_S)"
            member.kill(why)

    def _state_of(self, spec: ReplicaSpec) -> str | None:
        replicas = ReplicaReports(self._client, self._keys, spec.record.name).replicas()
        return next((one.state for one in replicas if one.name == spec.name), None)

    def _stop_all(self) -> None:
        for member in self.members.values():
            member.stop()
        while self.members:
            try:
                self._bury()
                self._kill_overdue()
            except BrokerError as error:
                log.warning("%s", error)
            time.sleep(0.02)
