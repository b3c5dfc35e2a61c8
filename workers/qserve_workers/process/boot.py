"""A replica's process from fork to exit."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import signal
from typing import Any

from celery import signals

from qserve.base.context import ReplicaContext, enter_replica
from qserve.base.keys import Keys
from qserve.base.log import log_to_terminal
from qserve.base.process import die_with_parent
from qserve.base.tracebacks import user_traceback
from qserve.broker.connection import connect
from qserve.broker.registry import Registry
from qserve.calls.ref import current
from qserve.deploy.registration import DeploymentCode, import_code, unpack_code
from qserve.deploy.status import FAILED, ReplicaReports
from qserve.engine.invoke import Servable
from qserve.engine.step import Stepper
from qserve.exceptions import QserveException
from qserve.wire.application import ApplicationRecord
from qserve.wire.codec import Codec
from qserve.wire.sealing import Seal
from qserve_workers.celery.app import make_celery
from qserve_workers.celery.worker import ReplicaWorker
from qserve_workers.process.heartbeat import Heartbeat
from qserve_workers.process.lifecycle import Lifecycle, report
from qserve_workers.process.orphan import end_with
from qserve_workers.process.spec import ReplicaSpec
from qserve_workers.replica.exit_codes import Exit
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.replica import Replica
from qserve_workers.replica.watchdog import Watchdog


def run_replica(spec: ReplicaSpec) -> int:
    """Be that replica until told to stop; answers the exit code."""
    _end_with_parent(spec.parent)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log_to_terminal(spec.deployment, spec.settings)
    assert spec.settings.broker_url is not None
    keys = Keys(spec.settings.namespace)
    client = connect(spec.settings.broker_url)
    reports = ReplicaReports(client, keys, spec.record.name)
    registry = Registry(client, keys, Seal(spec.settings.keyring))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        plane, servable, replica = loop.run_until_complete(_construct(spec, keys, registry))
    except BaseException as error:
        report(
            reports,
            spec,
            FAILED,
            str(error) if isinstance(error, QserveException) else user_traceback(error),
        )
        return 1
    gc.freeze()  # what is here now stays: the collector need not look at it again
    limit_s = spec.record.deployments[spec.deployment].max_execution_s
    watchdog = Watchdog(replica, connect(spec.settings.broker_url), limit_s, spec.settings.stall_limit_s)
    lifecycle = Lifecycle(spec, servable, reports, registry, stop=replica.stop)
    beats = connect(spec.settings.broker_url)
    Heartbeat(beats, spec.settings, spec.name, lambda: not watchdog.is_stalled(), lifecycle.report_again).start()
    worker = ReplicaWorker(make_celery(spec.settings), replica, spec.record.name)

    def begin(**_: Any) -> None:
        watchdog.start()
        lifecycle.begin(loop)

    signals.worker_ready.connect(begin, weak=False)
    worker.start()
    watchdog.stop()
    plane.close()
    loop.run_until_complete(lifecycle.end())
    return int(worker.exitcode or 0)


def _end_with_parent(parent: int) -> None:
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before the kernel was told
        os._exit(Exit.ORPHANED)
    end_with(parent, Exit.ORPHANED)


async def _construct(spec: ReplicaSpec, keys: Keys, registry: Registry) -> tuple[LoopPlane, Servable, Replica]:
    settings, record = spec.settings, spec.record
    codec = Codec(settings.keyring)
    plane = LoopPlane(settings, keys, codec, _Catalog(record, registry).find)
    await plane.open()
    current.install(plane, replica=True)
    code = _load_code(spec, registry)
    servable = Servable(code.func_or_class, code.init_args, code.init_kwargs or {})
    enter_replica(ReplicaContext(record.name, spec.deployment, spec.name))
    await servable.construct()
    enter_replica(ReplicaContext(record.name, spec.deployment, spec.name, servable.instance))
    settings_json = record.deployments[spec.deployment].user_config
    if settings_json:
        await servable.reconfigure(json.loads(settings_json))
    replica = Replica(
        name=spec.name,
        deployment=spec.deployment,
        servable=servable,
        stepper=Stepper(record, keys, codec),
        plane=plane,
        keys=keys,
        settings=settings,
        record=record,
    )
    return plane, servable, replica


def _load_code(spec: ReplicaSpec, registry: Registry) -> DeploymentCode:
    target = spec.target or spec.record.target
    if not target:
        data = registry.code(spec.record.name, spec.record.version)
        return unpack_code(data, spec.settings.keyring, spec.deployment)
    code = import_code(target, spec.record.name)
    if spec.deployment not in code:
        raise QserveException(f"{target} has no deployment {spec.deployment!r}; it has: {', '.join(code)}")
    return code[spec.deployment]


class _Catalog:
    """Applications as a replica knows them: its own as it was at the start, others as they are now."""

    def __init__(self, own: ApplicationRecord, registry: Registry) -> None:
        self._own = own
        self._registry = registry

    def find(self, app: str) -> ApplicationRecord:
        """An application's record. A call to another application blocks for one look-up at the broker."""
        return self._own if app == self._own.name else self._registry.get(app)
