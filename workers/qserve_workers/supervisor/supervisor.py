"""The supervisor: compares the replicas that should run with those that do, and acts on the difference."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import os
import signal
import socket
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from qserve.base import failpoints
from qserve.base.clock import clock
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.base.turns import Turns
from qserve.broker.connection import connect
from qserve.deploy.installation import Installation, fault_in
from qserve.deploy.log_tail import LogTail, about
from qserve.deploy.removal import queues_of, retire
from qserve.exceptions import BrokerError
from qserve.wire.application import ApplicationRecord
from qserve.wire.replies import warn_once
from qserve.wire.status import FAILED, RUNNING, STARTING, ReplicaStatus
from qserve.wire.totals import Labels
from qserve_workers.replica.spec import ReplicaSpec
from qserve_workers.supervisor.memory import MemoryLimits, Over
from qserve_workers.supervisor.metrics import HostMetrics
from qserve_workers.supervisor.offer import Capacity, Offer, explain_refusal
from qserve_workers.supervisor.policies import PolicyHost
from qserve_workers.supervisor.preloads import CAN_PRELOAD, PreloadFailed, Preloads
from qserve_workers.supervisor.recycling import Recycling
from qserve_workers.supervisor.replica_process import MemoryWatch, ReplicaProcess, describe_end, fork_replica
from qserve_workers.supervisor.scope import Applications, Scope, Target
from qserve_workers.supervisor.signals import Signals
from qserve_workers.supervisor.strays import Strays
from qserve_workers.supervisor.takeover import NAMED_CALLS, Takeover
from qserve_workers.supervisor.trouble import CANNOT_START, LONGEST_BACKOFF_S, Trouble
from qserve_workers.supervisor.values import ValueSweep

log = get_logger(__name__)
TICK_S, QUIET_S, ALONE_S = 0.1, 0.5, 1.0
"""How often the supervisor looks around: while something is under way, while nothing is, and where it is the only one.

A change of the registry, the end of a child and a signal wake it at once."""
HUNG_S = 30
"""How long one tick may take; each command to the broker is given up after 2 s."""
_SILENT_FOR_S = 2.0
_REPORTED_AFTER_S = 5.0
"""By when a replica whose start took too long is dead, and reported as failed."""
_CHECK_AGAIN_S = 0.5
"""How often replicas are looked for that run after others have failed to start."""
_REPORT_HOLDS_S = 60.0
_SHARE_ENDS_MS = 1000.0
"""How much earlier than here the share of a version may seem to have ended to another worker."""
_ENDS = "its worker ends"


@dataclass
class Supervisor:
    """Keeps the replicas of one host running.

    Parameters:
      metrics_page: A socket that listens, on which Prometheus is answered.
      fork: Starts a replica and returns its process id; replaced in tests.
    """

    settings: Settings
    scope: Scope = field(default_factory=Scope)
    capacity: Capacity = field(default_factory=Capacity)
    metrics_page: socket.socket | None = None
    fork: Callable[[ReplicaSpec], int] = fork_replica
    processes: dict[int, ReplicaProcess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # a clock that is set back could make a command wait for 7 s otherwise
        client = connect(self.settings.named_broker, silent_for_s=_SILENT_FOR_S)
        self._installation = Installation(self.settings, client)
        self._turns = Turns("the supervisor's round", log, longest_s=1.0)
        self._applications = Applications(self._installation, self.scope, self._turns, self.capacity.gpus)
        self._preloads = Preloads()
        self._policies = PolicyHost(self._applications.code, self.settings.keyring)
        self._values = ValueSweep(self._installation)
        self._offer = Offer(
            self._installation,
            self.capacity,
            self.scope.app,
            self.scope.is_pinned,
            self._applications.registered,
            self._policies,
            self._values.memory,
        )
        self._offered_of: object = None
        self._metrics: HostMetrics | None = None
        self._takeover = Takeover(self._installation, self._count)
        self._memory = MemoryWatch()
        self._log_tail = LogTail(self._installation, socket.gethostname())
        self._limits = MemoryLimits()
        self._recycling = Recycling(
            self._is_ready,
            lambda app, deployment, why: self._count("replica_recycles", app, deployment, reason=why),
        )
        self._troubles: dict[str, Trouble] = {}
        """The failures by queue; empty while there are none."""
        self._checked_at = 0.0
        self._retire_by: dict[str, float] = {}
        self._dead: deque[tuple[ReplicaProcess, str]] = deque()
        self._is_stopping = False
        self._strays = Strays()
        self._served: dict[str, str] = {}

    def run(self) -> None:
        """Tick until stopped, then stop every replica."""
        signals = Signals(self._on_stop)
        self._strays.begin()
        if self.settings.metrics:
            self._metrics = HostMetrics(self.settings, self._installation, self._offer.worker, self.metrics_page)
        if self.settings.log_tail:
            logging.getLogger().addHandler(self._log_tail)
        # A supervisor that hangs would hand nothing over. The kernel ends it, even if the interpreter is blocked: it
        # writes its stack, its replicas finish what they run, and the process that keeps it starts another.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, chain=True)
        while not self._is_stopping or self._offer.is_needed():
            signal.alarm(HUNG_S)
            if self._metrics is not None:  # also while the broker is away
                self._metrics.turn(self._running())
            with self._turns:
                self.tick()
                self._wait(signals)
            time.sleep(self._turns.pause_s)
        signal.alarm(0)
        log.info("the worker ends; %d replicas finish what they run", len(self.processes))
        self._policies.keep(())
        self._preloads.keep(())
        self._offer.withdraw()
        if self._metrics is not None:
            self._metrics.end()
        with contextlib.suppress(BrokerError):  # a deploy may have returned just now
            self._applications.refresh()
        self._stop_all()
        logging.getLogger().removeHandler(self._log_tail)
        self._applications.close()
        log.info("the worker has ended")

    def _on_stop(self) -> None:
        self._is_stopping = True

    def _wait(self, signals: Signals) -> None:
        """Wait until there is something to do."""
        metrics, until = self._metrics, time.monotonic() + self._rest_s()
        others = [
            signals.fileno(),
            *self._preloads.awaited,
            *(() if metrics is None else (metrics.heard, *metrics.asked)),
        ]
        while not self._is_stopping:
            ready = self._applications.wait_for_change(max(0.0, until - time.monotonic()), others)
            if metrics is not None and ready == {metrics.heard}:  # replicas under load tell something all the while
                metrics.receive()
                ready = set()
            if ready != set() or time.monotonic() >= until:
                break
        signals.clear()

    def _rest_s(self) -> float:
        """Return how long nothing has to be done unless something happens."""
        is_busy = (
            not self._applications.is_settled
            or self._offer.may_change
            or self._applications.scales_by_load()
            or self._troubles
            or self._dead
            or self._strays.are_there
            or self._log_tail.has_lines
            or (self._metrics is not None and self._metrics.is_busy)
            or any(self._is_under_way(process) for process in self.processes.values())
        )
        if is_busy:
            return TICK_S
        return min(ALONE_S if self._offer.is_alone else QUIET_S, self._takeover.due_in_s())

    def _is_under_way(self, process: ReplicaProcess) -> bool:
        """Return whether a replica ends, or its queue has calls that are to be tried again at some moment."""
        options, spec = process.spec.options, process.spec
        is_eager = options.max_retries > 0 and (
            options.retry_backoff_s < 2 * ALONE_S or spec.stream in self._takeover.delayed
        )
        return is_eager or process.is_stopping or process.is_replaced or bool(process.killed_because)

    def tick(self) -> None:
        """Hand over the calls of the dead, start what is missing, and stop what should not run.

        Raises:
          BrokerUnavailable: The broker is away. Any other error holds up only the part in which it occurred.
        """
        attempt = self._turns.attempt
        attempt("what is deployed", self._read_applications)
        attempt("what this worker offers, and has to run", self._offer_places)
        attempt("replicas that died", self._reap)
        for stream in {process.spec.stream for process in self.processes.values() if process.spec.options.max_retries}:
            attempt(f"retries of {stream}", self._takeover.wake, stream)
        targets = self._applications.targets(self._offer.slots)
        attempt("replacing replicas", self._recycling.tick, [*self.processes.values()], targets)
        running = self._by_stream()
        for stream, target in targets.items():
            attempt(f"starting {stream}", self._start_missing, stream, target, running[stream])
        self._preloads.keep([stream for stream, target in targets.items() if target.replicas.total()])
        self._stop_surplus(targets)
        self._check_faults(targets)
        for stream in list(self._troubles):
            attempt(f"reporting on {stream}", self._report_trouble, stream, targets.get(stream))
        for record in self._applications.old():
            attempt(f"what is left of version {record.version}", self._finish_old, record)
        self._kill_overdue()
        for over in self._limits.over([*self.processes.values()]):
            attempt(f"the memory of {over.process.spec.name}", self._replace, over)
        attempt("looking for lost replicas", self._sweep, targets)
        own = [process.spec.name for process in self.processes.values()]
        attempt("looking for lost connections", self._takeover.look, own, attempt)
        attempt("looking for stored values that nobody holds", self._sweep_values)
        attempt("keeping log lines", self._log_tail.send_if_due)
        if self._metrics is not None:
            attempt("keeping metrics", self._metrics.publish_if_due)

    def _count(self, name: str, app: str, deployment: str, value: float = 1, **labels: str) -> None:
        """Add to a counter of this host."""
        if self._metrics is not None:
            self._metrics.count(name, app, deployment, value, **labels)

    def _running(self) -> dict[Labels, int]:
        """Return how many replicas this host has, by application and deployment."""
        return Counter((process.spec.record.name, process.spec.deployment) for process in self.processes.values())

    def _read_applications(self) -> None:
        """Read what is deployed, and have replicas read what has changed for them: options, and whether to pause.

        The same version then goes on with other settings.

        The plan is read first. So whatever made the leader plan it is known here too: replicas of a version for which
        nothing is planned any more, because it was replaced, are seen as such, and finish what was accepted.
        """
        planned = self._offer.planned()
        self._applications.refresh()
        self._say_versions()
        self._offer.take(planned)
        for process in self.processes.values():
            spec = process.spec
            record = self._applications.find(spec.record.name, spec.record.version)
            options = spec.options if record is None else record.deployments[spec.deployment]
            process.reconfigure(options, self._applications.is_paused(spec.record.name, spec.deployment))

    def _say_versions(self) -> None:
        """Log which version of each application is served since a moment ago."""
        before, served = self._served, self._applications.served()
        if served != before:
            for name in before.keys() | served.keys():
                old, new = before.get(name), served.get(name)
                if new is None:
                    log.info("application %r is not served any more", name)
                elif new != old:
                    log.info(
                        "application %r: version %s is served%s", name, new, f", after version {old}" if old else ""
                    )
            self._served = served

    def _offer_places(self) -> None:
        """Offer places and read what was planned."""
        state = self._applications.state
        has = self._applications.having()
        pins = {
            ":".join((record.name, record.version, name)): count
            for record in has
            for name, count in self.scope.counts(record)
            if count
        }
        try:
            self._offer.tick([f"{record.name}:{record.version}" for record in has], pins, state != self._offered_of)
        except BrokerError as error:
            why = explain_refusal(error)
            if not why:
                raise
            if not self.scope.is_pinned:
                log.error("%s", why)
                raise SystemExit(1) from error
            warn_once(f"others do not know what this worker runs: {why}")
        self._applications.devices = self._offer.devices
        self._offered_of = state

    def _sweep(self, targets: dict[str, Target]) -> None:
        names = [process.spec.name for process in self.processes.values()]
        old = [queue for record in self._applications.old() for queue in queues_of(self._installation, record)]
        self._takeover.sweep(targets, old, names, self._kill, self._turns.attempt)

    def _sweep_values(self) -> None:
        stats = self._values.sweep_if_due()
        if stats is not None and self._metrics is not None:
            self._metrics.note_values(stats)

    def _kill(self, name: str, because: str) -> None:
        next(process for process in self.processes.values() if process.spec.name == name).kill(because)

    # -- the dead ----------------------------------------------------------------------------------

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):  # there is none
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = ended
                process = self.processes.pop(pid, None)
                if process is None:
                    self._policies.note_end(pid)
                    self._values.note_end(pid)
                    if pid in self._preloads.pids:
                        self._preloads.note_end(pid, status)
                        self._strays.note_death()  # of what it has started nothing shows whose it is
                else:
                    self._strays.note_death()
                    code = os.waitstatus_to_exitcode(status)
                    killed = self._limits.why_killed(pid)
                    how = describe_end(code, process.killed_because or killed, self._memory, process.spec.note)
                    self._dead.append((process, how))
        self._strays.end(self.processes, self._policies.pids | self._preloads.pids | self._values.pids)
        for process, how in list(self._dead):
            # removed when all of it is done: the broker may be away in the middle of it
            if self._turns.attempt(f"the death of {process.spec.name}", self._on_death, process, how):
                self._dead.remove((process, how))

    def _on_death(self, process: ReplicaProcess, how: str) -> None:
        """Hand over what a dead replica held, and report how it died.

        Crash at any point: what it held stays pending, until a supervisor misses its heartbeat.
        """
        spec, now = process.spec, time.monotonic()
        extra = about(spec.record.name, spec.deployment)
        moved = self._takeover.hand_over(spec.stream, spec.name, how)
        self._takeover.note_death(spec.name)
        reports = self._installation.reports(spec.record.name)
        last = reports.last(spec.name)
        reports.remove(spec.name)
        if self._metrics is not None:
            self._metrics.forget(spec.name)
        if not process.is_stopping:
            self._count("replica_deaths", spec.record.name, spec.deployment)
        if process.is_stopping:
            why = f"{process.stopped_because}; {how}" if process.killed_because else process.stopped_because
            log.info("replica %s of %s has ended (%s)", spec.name, spec.deployment, why, extra=extra)
        elif last is not None and last.state == RUNNING:
            text = "replica %s of %s died (%s); its calls are handed over"
            log.warning(text, spec.name, spec.deployment, how, extra=extra)
            self._trouble(spec.stream).note_death(how, now)
        else:
            # without a report it could not say why itself: it was killed, or code that it imported ended the process
            has_report = last is not None and last.state == FAILED
            why = last.message if last and has_report else f"its process ended while it was starting: {how}"
            self._note_failed_starts(spec, why, process.started_at, has_report)
        if moved > NAMED_CALLS:  # the others have a line each
            log.info("%d calls of replica %s were handed over", moved, spec.name, extra=extra)

    def _report_trouble(self, stream: str, target: Target | None) -> None:
        """Report what goes wrong with a deployment as long as it does, and no longer."""
        trouble = self._troubles[stream]
        if target is not None and trouble.words(time.monotonic()) != trouble.reported:
            self._report(target.record, target.deployment, trouble)
        if target is None or trouble.is_over:  # what is reported of a version that is gone ends with it
            del self._troubles[stream]

    def _trouble(self, stream: str) -> Trouble:
        return self._troubles.setdefault(stream, Trouble())

    def _note_failed_starts(
        self, spec: ReplicaSpec, why: str, started_at: float, is_certain: bool, count: int = 1
    ) -> None:
        trouble, now = self._trouble(spec.stream), time.monotonic()
        is_known = trouble.failures and trouble.cause == why
        for _ in range(count):
            trouble.note_failed_start(why, now, started_at)
        active = self._applications.active(spec.record.name)
        is_active = active is not None and active.version == spec.record.version
        if is_known and is_active:
            why = f"{trouble.failures} times, as before"
        elif not is_active:
            why = f"{why.splitlines()[0].rstrip(':')}; see the output of qserve deploy"
        if is_active or not is_known:
            # a call that kills its replica may do so before that has reported that it takes calls
            level = logging.ERROR if is_certain or trouble.failures > 1 else logging.WARNING
            extra = about(spec.record.name, spec.deployment)
            log.log(level, "no replica of %s can be started (%s)", spec.deployment, why, extra=extra)

    def _check_faults(self, targets: dict[str, Target]) -> None:
        """Read what replicas report, while some have failed here, or callers get the error that some cannot start."""
        failing = {
            targets[stream].record.name
            for stream, trouble in self._troubles.items()
            if trouble.failures and stream in targets
        }
        apps, now = failing | self._installation.registry.faults.known.keys(), time.monotonic()
        if apps and now - self._checked_at > _CHECK_AGAIN_S:
            self._checked_at = now
            for app in apps:
                self._turns.attempt(f"what the replicas of {app} report", self._check_fault, app, targets)

    def _check_fault(self, app: str, targets: dict[str, Target]) -> None:
        """Forget failures where replicas run again, and tell callers of the deployment that cannot be started.

        A replica that has been running for long does not show that another one can start. Every supervisor of an
        application does the same with the same reports.
        """
        replicas = self._installation.reports(app).replicas()
        running = {replica.name for replica in replicas if replica.state == RUNNING}
        mine = [process for process in self.processes.values() if process.spec.name in running]
        for stream, trouble in self._troubles.items():
            there = [process.started_at for process in mine if process.spec.stream == stream]
            is_all = stream in targets and 0 < targets[stream].replicas.total() <= len(there)
            if is_all or any(started_at > trouble.failed_at for started_at in there):
                trouble.note_running()
        faults, active = self._installation.registry.faults, self._applications.active(app)
        known = faults.known.get(app)
        fault = None if active is None else fault_in(active, replicas)
        # of an application that is not run from here others know more, as long as it holds
        if fault != known and (active is not None or (known and known.until_ms < clock.judge_ms())):
            faults.note(app, fault)

    def _report(self, record: ApplicationRecord, deployment: str, trouble: Trouble) -> None:
        """Report how often replicas have failed here, as one report, which is replaced by the next and then removed."""
        reports, host = self._installation.reports(record.name), socket.gethostname()
        now = time.monotonic()
        name, words = f"{deployment}-{host}-{os.getpid()}", trouble.words(now)
        if words:
            now_ms, holds_s = clock.judge_ms(), LONGEST_BACKOFF_S + self.settings.start_timeout_s + _REPORT_HOLDS_S
            next_try_ms = now_ms + 1000 * (trouble.next_try - now) if trouble.failures else 0
            status = ReplicaStatus(name, deployment, record.version, FAILED, os.getpid(), host, words)
            reports.report(
                replace(status, until_ms=now_ms + 1000 * holds_s, failures=trouble.counted, next_try_ms=next_try_ms)
            )
        else:
            reports.remove(name)
        trouble.reported = words

    def _state_of(self, spec: ReplicaSpec) -> str | None:
        last = self._installation.reports(spec.record.name).last(spec.name)
        return None if last is None else last.state

    # -- the living --------------------------------------------------------------------------------

    def _by_stream(self) -> defaultdict[str, list[ReplicaProcess]]:
        """Return the processes by the queue that they read, without those that end."""
        found: defaultdict[str, list[ReplicaProcess]] = defaultdict(list)
        for process in self.processes.values():
            if not process.is_stopping:
                found[process.spec.stream].append(process)
        return found

    def _start_missing(self, stream: str, target: Target, running: Sequence[ReplicaProcess]) -> None:
        trouble = self._troubles.get(stream)
        if trouble and time.monotonic() < trouble.next_try:
            return
        alive = Counter(process.spec.devices for process in running if not process.is_replaced)
        missing = target.replicas - alive
        fork = self._fork_of(stream, target, missing.total()) if missing else None
        for devices in missing.elements():
            if fork is None or not self._start(stream, target, devices, fork):
                break

    def _fork_of(self, stream: str, target: Target, missing: int) -> Callable[[ReplicaSpec], int] | None:
        """Return what starts replicas of a deployment; None while its ``preload`` runs, or when that has failed."""
        record = target.record
        if not (CAN_PRELOAD and record.deployments[target.deployment].preload):
            return self.fork
        spec = self._spec_of(target, f"{target.deployment}-{socket.gethostname()}-preload")
        reports, is_new = self._installation.reports(record.name), stream not in self._preloads
        found = None if spec.is_imported or not is_new else self._applications.code(record)
        try:
            process = self._preloads.get(spec, b"" if found is None else found[1])
        except (PreloadFailed, OSError) as error:
            reports.remove(spec.name)
            began_at = getattr(error, "began_at", time.monotonic())
            self._note_failed_starts(spec, str(error), began_at, is_certain=True, count=missing)
            return None
        if process is None:
            if is_new:
                reports.report(self._starting(spec))
            return None
        reports.remove(spec.name)
        return process.fork

    def _spec_of(self, target: Target, name: str, devices: tuple[str, ...] = ()) -> ReplicaSpec:
        return ReplicaSpec(
            name,
            target.record,
            target.deployment,
            self.settings,
            self.scope.target,
            target.sources,
            self._applications.is_paused(target.record.name, target.deployment),
            worker=self._offer.worker,
            devices=devices,
            told=None if self._metrics is None else self._metrics.told,
        )

    def _starting(self, spec: ReplicaSpec) -> ReplicaStatus:
        """Return the report of a replica before it can report anything itself."""
        until_ms = clock.stamp_ms() + 1000 * (self.settings.start_timeout_s + _REPORTED_AFTER_S)
        host, worker = socket.gethostname(), spec.worker
        return ReplicaStatus(
            spec.name, spec.deployment, spec.record.version, STARTING, host=host, until_ms=until_ms, worker=worker
        )

    def _start(self, stream: str, target: Target, devices: tuple[str, ...], fork: Callable[[ReplicaSpec], int]) -> bool:
        """Start one replica, and return whether the system provided a process for it."""
        record, deployment, host = target.record, target.deployment, socket.gethostname()
        reports, name = self._installation.reports(record.name), f"{deployment}-{host}-{os.urandom(4).hex()}"
        spec = self._spec_of(target, name, devices)
        reports.report(
            self._starting(spec)
        )  # what can fail comes first: a replica that is not in our table would live on
        try:
            pid = fork(spec)
        except OSError as error:
            reports.remove(name)
            self._preloads.drop(stream)
            why = f"{CANNOT_START}: {errno.errorcode.get(error.errno or 0, '')}: {os.strerror(error.errno or 0)}"
            extra = about(record.name, deployment)
            log.error("no replica of %s can be started: %s", deployment, why, extra=extra)
            now = time.monotonic()
            self._trouble(stream).note_failed_start(why, now, now)
            return False
        self.processes[pid] = ReplicaProcess(pid, spec, spec.options.config, spec.is_paused)
        self._limits.enter(pid, spec)
        self._count("serve_deployment_replica_starts", record.name, deployment)
        if failpoints.ARMED:
            failpoints.hit("supervisor.after_fork")
        trouble = self._troubles.get(stream)
        if trouble and trouble.cause.startswith(CANNOT_START):
            trouble.note_running()
        return True

    def _stop_surplus(self, targets: dict[str, Target]) -> None:
        for stream, processes in self._by_stream().items():
            self._turns.attempt(f"stopping {stream}", self._stop_some, processes, targets.get(stream))

    def _stop_some(self, processes: list[ReplicaProcess], target: Target | None) -> None:
        if target is not None and (target.replicas.total() or not self._has_share_ended(target.record)):
            wanted, surplus = Counter(target.replicas), []
            for process in processes:
                if process.is_replaced:
                    continue
                wanted[process.spec.devices] -= 1
                surplus += [process] if wanted[process.spec.devices] < 0 else []
        else:
            surplus = processes if self._is_retired(processes[0].spec.record) else []
        record = processes[0].spec.record
        active = self._applications.active(record.name)
        is_served = active is not None and active.version == record.version
        for process in surplus:
            process.stop("fewer are wanted here" if is_served else f"version {record.version} has ended")

    def _has_share_ended(self, record: ApplicationRecord) -> bool:
        """Return whether a version got requests and gets none any more, which the worker that plans knows first."""
        return 0 < record.share_until_ms < clock.judge_ms() + _SHARE_ENDS_MS

    def _is_retired(self, record: ApplicationRecord) -> bool:
        """Return whether a version that should not run any more has finished its requests, or its time is over."""
        grace_s = max(deployment.grace_s for deployment in record.deployments.values())
        retire_by = self._retire_by.setdefault(record.version, time.monotonic() + grace_s)
        active = self._applications.active(record.name)
        return retire(self._installation, record, time.monotonic() > retire_by, active)

    def _finish_old(self, record: ApplicationRecord) -> None:
        """Have the active version take over what a replaced one has left behind, when that has no replica any more.

        Crash before the command: another supervisor, or the next one, does it. Crash after: it has moved on.
        """
        if any(process.spec.record.version == record.version for process in self.processes.values()):
            return  # they finish it, see `_is_retired`
        readers = self._takeover.readers_of(record)
        if readers is None:
            self._applications.forget(record)
        elif not readers:
            retire(self._installation, record, True, self._applications.active(record.name))

    def _kill_overdue(self) -> None:
        for process in self.processes.values():
            process.kill_if_due()
            self._turns.attempt(f"the start of {process.spec.name}", self._kill_late, process)

    def _kill_late(self, process: ReplicaProcess) -> None:
        limit_s = self.settings.start_timeout_s
        if process.is_late(limit_s) and not self._is_ready(process):
            process.kill(f"start_timeout: it was not constructed within {limit_s:g} s (QSERVE_START_TIMEOUT_S)")

    def _is_ready(self, process: ReplicaProcess) -> bool:
        """Return whether a replica has reported that it takes calls."""
        if not process.is_ready and self._state_of(process.spec) == RUNNING:
            process.is_ready, process.ready_at = True, time.monotonic()
        return process.is_ready

    def _replace(self, over: Over) -> None:
        """Have a replica that uses too much memory finish what it runs, and start another; kill it if it cannot."""
        process, spec = over.process, over.process.spec
        if over.is_far or not (process.is_stopping or self._state_of(spec) == RUNNING):
            process.kill(over.why)
        elif not process.is_stopping:
            of = about(spec.record.name, spec.deployment)
            log.warning("replica %s of %s is replaced (%s)", spec.name, spec.deployment, over.why, extra=of)
            self._trouble(spec.stream).note_death(over.why, time.monotonic())
            process.stop(over.why)

    def _stop_all(self) -> None:
        """Stop every replica, those of a version that was replaced once nothing of it is left to do.

        This may be the only worker with its code, and so the only one that can finish what it has accepted.
        """
        while self.processes or self._strays.end({}):
            with self._turns:
                for process in self.processes.values():
                    record = process.spec.record
                    is_registered = self._applications.find(record.name, record.version) is not None
                    if not process.is_stopping and (is_registered or self._is_retired(record)):
                        process.stop(_ENDS)
                self._reap()
                self._kill_overdue()
            if self._turns.failures:
                for process in self.processes.values():
                    process.stop(_ENDS)
            time.sleep(0.02)
