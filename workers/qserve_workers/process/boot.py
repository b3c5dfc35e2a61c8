"""A replica's process from fork to exit."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import faulthandler
import gc
import importlib
import logging
import os
import select
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from typing import Any

from celery import signals

import qserve
from qserve.base import context, entry
from qserve.base.context import ReplicaContext
from qserve.base.forks import Loop, Setup, end_if_child
from qserve.base.log import enable_logging, get_logger, set_level
from qserve.base.process import REPLICA, die_with_parent, set_title
from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.broker.registry import Registry
from qserve.calls.ref import current
from qserve.define.multiplexing import loaded_models
from qserve.deploy.installation import Installation
from qserve.deploy.log_tail import LogTail
from qserve.deploy.registration import DeploymentCode
from qserve.engine.servable import Servable
from qserve.engine.step import Stepper
from qserve.exceptions import BrokerError
from qserve.metrics import recorder, totals
from qserve.metrics.measures import observe, timed
from qserve.metrics.table import TABLE
from qserve.tracing.start import close as close_tracing
from qserve.tracing.start import start as start_tracing
from qserve.wire.application import ApplicationRecord
from qserve.wire.status import FAILED
from qserve_workers.celery.app import prepared_celery
from qserve_workers.celery.worker import ReplicaWorker
from qserve_workers.process import resources
from qserve_workers.process.heartbeat import SILENT_BEAT_S, Heartbeat
from qserve_workers.process.lifecycle import Lifecycle, status_of
from qserve_workers.process.loading import Loaded, Loading
from qserve_workers.replica.commit import access_log
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.replica import Replica
from qserve_workers.replica.spec import Exit, ReplicaSpec
from qserve_workers.replica.watchdog import Watchdog

log = get_logger(__name__)
PRELOADED = (
    "celery.app.amqp",
    "celery.app.control",
    "celery.app.routes",
    "celery.backends.base",
    "celery.concurrency.solo",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.autoscale",
    "celery.worker.components",
    "encodings.idna",
    "kombu.matcher",
    "kombu.pidbox",
    "qserve.dag",
    "qserve.http.builtin_adapters",
)
"""Modules that every replica imports sooner or later. The supervisor imports them before it forks, because a copy of
their own would cost each replica 3 MB and 20 ms."""
for _name in PRELOADED:
    importlib.import_module(_name)
qserve.import_all()  # and no file of the user may take the place of a module that these need

POLL_INTERVAL_S = 0.25
FINISH_FOR_S = 1.5
"""How long a replica whose supervisor is gone may finish what it runs; the kernel has sent it SIGTERM by then."""
_FAILED_FOR_MS = 60_000
"""How long a failed start is reported: its supervisor counts it soon, or is gone."""
END_WITHIN_S = 3.0
"""How much longer than its deployment's grace the user's ``__del__`` may take."""


def prepare(settings: Settings) -> None:
    """Do in the process that forks replicas what each of them would do by itself, in memory of its own."""
    prepared_celery(settings)
    set_level(access_log, logging.CRITICAL)
    gc.collect()
    gc.freeze()  # the collector writes to what it looks at


def run_replica(spec: ReplicaSpec, loaded: Loaded | None = None) -> int:
    """Run a replica until it is stopped, and return the exit code.

    Parameters:
      loaded: What the process has loaded that it was forked from; None if that has no user code.
    """
    began = time.monotonic()
    _end_with(spec)
    set_title(f"qserve replica {spec.record.name}:{spec.deployment} {spec.name}")
    resources.apply(spec)
    os.environ[REPLICA] = spec.name
    faulthandler.enable()
    signal.signal(signal.SIGINT, _ignore)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    hangups: list[int] = []  # the user_config may change before there is an object to take it
    signal.signal(signal.SIGHUP, lambda number, frame: hangups.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # see `fork_replica`
    resources.log_as_told(spec)
    _count_for(spec)
    url = spec.settings.named_broker
    installation = Installation(spec.settings)
    installation.registry.remember(spec.record)
    if spec.settings.log_tail:
        LogTail(installation, spec.name, spec.record.name, spec.deployment).start()
    start_tracing(spec.settings, spec.name)
    loop, _setup = Loop(), Setup(spec.name)
    asyncio.set_event_loop(loop)
    start = _Start(spec, installation.registry, loop, loaded)
    try:
        plane, servable, replica = start.run()
    except BaseException as error:
        end_if_child(error)
        why = start.loading.why(error)
        try:
            installation.reports(spec.record.name).report(status_of(spec, FAILED, why, for_ms=_FAILED_FOR_MS))
        except BrokerError as unreported:
            log.error("this replica has not started (%s), and cannot report that: %s", why, unreported)
            return Exit.NO_BROKER
        return Exit.FAILED
    gc.freeze()  # what exists now stays: the collector need not look at it again
    watchdog = Watchdog(replica, connect(url))
    lifecycle = Lifecycle(spec, servable, installation, stop=replica.stop, pause=replica.pause)
    Heartbeat(
        connect(url, SILENT_BEAT_S), spec.settings, spec.name, may_beat=watchdog.is_loop_alive,
        report=lifecycle.report_running, others=lambda: [replica.reader.connection_id],
        on_silence=lambda: loop.call_soon_threadsafe(replica.renew_connections),
    ).start()  # fmt: skip
    worker = ReplicaWorker(prepared_celery(spec.settings), replica, spec.record.name)

    def begin(**_: Any) -> None:
        watchdog.start()
        took_s, version = time.monotonic() - began, spec.record.version
        observe("serve_replica_startup_latency_ms", 1000 * took_s)
        log.info(
            "replica %s takes calls, of version %s, started in %.1f s (process %d)",
            spec.name,
            version,
            took_s,
            os.getpid(),
        )
        lifecycle.begin(loop, lambda: bool(hangups))

    signals.worker_ready.connect(begin, weak=False)
    worker.start()
    code = worker.exitcode or 0
    # the supervisor sets a limit only for replicas that it has stopped itself
    limit_s = spec.options.grace_s + END_WITHIN_S
    threading.Thread(target=_exit_after, args=(limit_s, spec, code), name="exit-limit", daemon=True).start()
    watchdog.stop()
    plane.close()
    loop.run_until_complete(lifecycle.end())
    close_tracing()
    return code


def _count_for(spec: ReplicaSpec) -> None:
    """Count in this process, and tell the supervisor, if that wants to know."""
    if spec.told is not None:
        labels = {"application": spec.record.name, "deployment": spec.deployment, "replica": spec.name}
        counter = recorder.Recorder(labels)
        counter.before_each(partial(_note_models, counter))
        recorder.install(counter)
        totals.install(totals.Reporter(counter, spec.name, spec.told))


def _note_models(counter: recorder.Recorder) -> None:
    models, place = loaded_models(), tuple(counter.labels.values())
    counter.replace(TABLE["serve_num_multiplexed_models"], {place: len(models)} if models else {})
    counter.replace(TABLE["serve_registered_multiplexed_model_id"], {(*place, name): 1 for name in models})


def _ignore(number: int, frame: object) -> None:
    """Take a signal; programs that user code starts would ignore it as well if this were SIG_IGN."""


def _exit_after(limit_s: float, spec: ReplicaSpec, code: int) -> None:
    """End this process even if the user's ``__del__`` never returns."""
    time.sleep(limit_s)
    log.error("shutdown took longer than %g s; killing the process", limit_s)
    spec.end_process(code)


class _Start:
    """The start of a replica, until there is an object that can be called. User code runs while the loop does not."""

    def __init__(
        self, spec: ReplicaSpec, registry: Registry, loop: asyncio.AbstractEventLoop, loaded: Loaded | None
    ) -> None:
        self._spec = spec
        self._registry = registry
        self._loop = loop
        self._loaded = loaded
        self.loading = Loading(spec)

    def run(self) -> tuple[LoopPlane, Servable, Replica]:
        spec, record = self._spec, self._spec.record

        def find(app: str) -> ApplicationRecord:
            # our own application as it was at the start; for another one this blocks for one look-up at the broker
            return record if app == record.name else self._registry.pick(app)

        async def connected() -> LoopPlane:
            plane = LoopPlane(spec.settings, find, spec.name)
            plane.faults = self._registry.faults.known
            await plane.open()
            return plane

        plane = current.installed = self._loop.run_until_complete(connected())
        entry.start = contextvars.copy_context()
        code, preloaded = entry.start.run(self._load)  # what modules set when they are imported holds for all calls
        end_if_child(None)
        self.loading.doing = "its constructor failed"
        servable = Servable(*code)
        context.replica = ReplicaContext(record.name, spec.deployment, spec.name, preloaded=preloaded)
        try:
            with timed("serve_replica_initialization_latency_ms"):
                servable.construct_on(self._loop)
        finally:
            self.loading.doing = f"its {servable.part} failed"
        context.replica = replace(context.replica, servable_object=servable.instance)
        if spec.options.user_config:
            self.loading.doing = "its reconfigure failed"
            with timed("serve_replica_reconfigure_latency_ms"):
                self._loop.run_until_complete(servable.reconfigure(spec.options.user_config_value))
        self.loading.doing = ""
        enable_logging()
        return plane, servable, Replica(spec, servable, Stepper(record, spec.keys, plane.codec), plane)

    def _load(self) -> tuple[DeploymentCode, Any]:
        loaded, record = self._loaded, self._spec.record
        data = b"" if self._spec.is_imported else self._registry.code(record.name, record.version)
        code = loaded.code if loaded and loaded.code else self.loading.code(data)
        return code, loaded.preloaded if loaded else self.loading.preload(data)


# -- a supervisor that is gone ---------------------------------------------------------------------


def _end_with(spec: ReplicaSpec) -> None:
    """End this process when its supervisor is gone, which would hand its calls over and replace it.

    What it runs until then stays pending at the broker, where another supervisor finds it.
    """
    parent = spec.parent
    die_with_parent()
    if os.getppid() != parent:  # it had ended before this
        os._exit(Exit.ORPHANED)  # no process is left to read the exit code

    def watch() -> None:
        _wait_for_end(parent)
        log.warning("the supervisor has ended; this replica stops")
        time.sleep(FINISH_FOR_S)
        spec.end_process(Exit.ORPHANED)  # even if the main thread is blocked

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def _wait_for_end(parent: int) -> None:
    # not by polling alone: that wakes every idle replica
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or a sandbox forbids it
        process = os.pidfd_open(parent)
        if os.getppid() == parent:  # otherwise it has ended, and its id may be another process's now
            end = select.poll()
            end.register(process, select.POLLIN)
            end.poll()
    while os.getppid() == parent:
        time.sleep(POLL_INTERVAL_S)
