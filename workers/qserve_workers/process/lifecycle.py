"""What a replica does beside its calls: it reports its state, checks its health and takes a changed user_config."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qserve.base.log import get_logger
from qserve.define.multiplexing import unload_models
from qserve.deploy.installation import Installation
from qserve.engine.servable import Servable
from qserve.exceptions import BrokerError
from qserve.wire.status import RUNNING, ReplicaStatus
from qserve_workers.replica.spec import Exit, ReplicaSpec

log = get_logger(__name__)
# what user code may raise outside of calls; CancelledError is how the loop ends a task
_RAISED = (Exception, SystemExit, KeyboardInterrupt, GeneratorExit)
HEALTH_FAILURES = 3
"""Failures of ``check_health`` in a row after which a replica is replaced."""


@dataclass
class Lifecycle:
    """What happens to a replica between its first call and its last.

    Parameters:
      stop: Ends the replica with an exit code, once it has finished what runs.
    """

    spec: ReplicaSpec
    servable: Servable
    installation: Installation
    stop: Callable[[int], None]

    def __post_init__(self) -> None:
        self._has_begun = False
        self._options = self.spec.options
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report that calls are taken, and check the object's health from now on."""
        self._has_begun = True
        self.report_running()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(loop, self._reconfigure()))
        if self.servable.has_health_check:
            self.installation.reports(self.spec.record.name).end_turn(self.spec.stream)
            self._spawn(loop, self._watch_health())

    def report_running(self) -> None:
        """Report once more when the broker has lost its data, unless calls are not taken yet; from any thread."""
        if self._has_begun:
            report(self.installation, self.spec, RUNNING, config=self._options.config)

    def _spawn(self, loop: asyncio.AbstractEventLoop, work: Any) -> None:
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reconfigure(self) -> None:
        """Take the user_config that is registered now; when user code refuses it, the old one stays reported."""
        for record in self.installation.registry.versions(self.spec.record.name):
            if record.version == self.spec.record.version:
                self._options = record.deployments[self.spec.deployment]
        try:
            await self.servable.reconfigure(self._options.user_config_value)
        except _RAISED:
            log.exception("reconfigure failed")
            return
        self.report_running()

    async def _watch_health(self) -> None:
        failures = 0
        while failures < HEALTH_FAILURES or not self._may_leave():
            await asyncio.sleep(self._options.health_period_s)
            try:
                await asyncio.wait_for(self.servable.check_health(), self._options.health_timeout_s)
                failures = 0
            except Exception as error:
                failures += 1
                log.warning("check_health failed (%d of %d): %r", failures, HEALTH_FAILURES, error)
        self.stop(Exit.UNHEALTHY)

    def _may_leave(self) -> bool:
        """Whether no other replica is being replaced; until then this one stays, and may recover."""
        for_s = self._options.grace_s + self.spec.settings.start_timeout_s
        try:
            return self.installation.reports(self.spec.record.name).take_turn(self.spec.stream, self.spec.name, for_s)
        except BrokerError as error:
            log.warning("an unhealthy replica stays for now: %s", error)
            return False

    async def end(self) -> None:
        """Call the ``__del__`` of the user's object; what it raises is logged."""
        for task in list(self._tasks):
            task.cancel()
        try:
            await unload_models()
            await self.servable.destroy()
        except _RAISED as error:
            log.warning("__del__ failed: %r", error)


def report(installation: Installation, spec: ReplicaSpec, state: str, message: str = "", config: str = "") -> None:
    """Report a replica's state; a deploy waits for it."""
    version = spec.record.version
    status = ReplicaStatus(
        spec.name, spec.deployment, version, state, os.getpid(), socket.gethostname(), message, config
    )
    try:
        installation.reports(spec.record.name).report(status)
    except BrokerError as error:
        log.error("replica %s cannot report that it is %s: %s", spec.name, state, error)
