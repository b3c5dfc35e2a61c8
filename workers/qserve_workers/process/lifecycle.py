"""What a replica does beside its calls: it reports its state, checks its health and takes a changed user_config."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from qserve.base.log import get_logger
from qserve.broker.registry import Registry
from qserve.define.multiplexing import unload_models
from qserve.deploy.installation import RUNNING, ReplicaReports, ReplicaStatus
from qserve.engine.servable import Servable
from qserve.exceptions import BrokerError
from qserve_workers.replica.spec import Exit, ReplicaSpec

log = get_logger(__name__)
# what user code may raise outside of calls; CancelledError is how the loop ends a task
_RAISED = (Exception, SystemExit, KeyboardInterrupt, GeneratorExit)
HEALTH_FAILURES = 3
"""Failures of ``check_health`` in a row after which a replica is replaced."""


class Lifecycle:
    """What happens to a replica between its first call and its last.

    Parameters:
      spec: Which replica it is.
      servable: The user's object.
      reports: Takes its state.
      registry: Has a changed user_config.
      stop: Ends the replica with an exit code, once it has finished what runs.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        servable: Servable,
        reports: ReplicaReports,
        registry: Registry,
        stop: Callable[[int], None],
    ) -> None:
        self._has_begun = False
        self._spec = spec
        self._servable = servable
        self._reports = reports
        self._registry = registry
        self._stop = stop
        self._options = spec.options
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report that calls are taken, and check the object's health from now on."""
        report(self._reports, self._spec, RUNNING, config=self._options.config)
        self._has_begun = True
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(loop, self._reconfigure()))
        if self._servable.has_health_check:
            self._reports.end_turn(self._spec.stream)
            self._spawn(loop, self._watch_health())

    def report_again(self) -> None:
        """Report again, because the broker has lost its data; from any thread."""
        if self._has_begun:
            report(self._reports, self._spec, RUNNING, config=self._options.config)

    def _spawn(self, loop: asyncio.AbstractEventLoop, work: Any) -> None:
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reconfigure(self) -> None:
        """Take the user_config that is registered now; when user code refuses it, the old one stays reported."""
        for record in self._registry.versions(self._spec.record.name):
            if record.version == self._spec.record.version:
                self._options = record.deployments[self._spec.deployment]
        try:
            await self._servable.reconfigure(json.loads(self._options.user_config or "null"))
        except _RAISED:
            log.exception("reconfigure failed")
            return
        report(self._reports, self._spec, RUNNING, config=self._options.config)

    async def _watch_health(self) -> None:
        failures = 0
        while failures < HEALTH_FAILURES or not self._may_leave():
            await asyncio.sleep(self._options.health_period_s)
            try:
                await asyncio.wait_for(self._servable.check_health(), self._options.health_timeout_s)
                failures = 0
            except Exception as error:
                failures += 1
                log.warning("check_health failed (%d of %d): %r", failures, HEALTH_FAILURES, error)
        self._stop(Exit.UNHEALTHY)

    def _may_leave(self) -> bool:
        """Whether no other replica is being replaced; until then this one stays, and may recover."""
        for_s = self._options.grace_s + self._spec.settings.start_timeout_s
        try:
            return self._reports.take_turn(self._spec.stream, self._spec.name, for_s)
        except BrokerError as error:
            log.warning("an unhealthy replica stays for now: %s", error)
            return False

    async def end(self) -> None:
        """Call the ``__del__`` of the user's object; what it raises is logged."""
        for task in list(self._tasks):
            task.cancel()
        try:
            await unload_models()
            await self._servable.destroy()
        except _RAISED as error:
            log.warning("__del__ failed: %r", error)


def report(reports: ReplicaReports, spec: ReplicaSpec, state: str, message: str = "", config: str = "") -> None:
    """Report a replica's state; a deploy waits for it."""
    version = spec.record.version
    status = ReplicaStatus(
        spec.name, spec.deployment, version, state, os.getpid(), socket.gethostname(), message, config
    )
    try:
        reports.report(status)
    except BrokerError as error:
        log.error("replica %s cannot report that it is %s: %s", spec.name, state, error)
