"""The work of a replica beside its calls: it reports its state, checks its health, and takes what operators change."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qserve.base.clock import clock
from qserve.base.log import get_logger
from qserve.base.tracebacks import user_traceback
from qserve.base.turns import Turns
from qserve.define.multiplexing import unload_models
from qserve.deploy.installation import Installation, Send
from qserve.engine.servable import Servable
from qserve.exceptions import QserveException
from qserve.metrics.measures import count, timed
from qserve.wire.fleet import Wish
from qserve.wire.status import RUNNING, ReplicaStatus, encode_stats
from qserve_workers.process.resources import log_as_told
from qserve_workers.replica.spec import Exit, ReplicaSpec

log = get_logger(__name__)
# what user code may raise outside of calls; CancelledError is how the loop ends a task
_RAISED = (Exception, SystemExit, KeyboardInterrupt, GeneratorExit)
_HOST = socket.gethostname()
_LEASES_REPORTED = 3
"""How long a report holds that is not repeated, in leases; it is repeated four times in each."""
STATS_S = 2.0
"""How often ``record_autoscaling_stats`` is called."""
HEALTH_FAILURES = 3
"""Failures of ``check_health`` in a row after which a replica is replaced."""


@dataclass
class Lifecycle:
    """Runs beside the calls of a replica, from the first to the last.

    Parameters:
      stop: Ends the replica with an exit code, once it has finished what runs.
      pause: Has it take no calls, or take them again.
    """

    spec: ReplicaSpec
    servable: Servable
    installation: Installation
    stop: Callable[[int], None]
    pause: Callable[[bool], None]

    def __post_init__(self) -> None:
        self._has_begun = False
        self._taken = self.spec.options
        self._refused, self._message = "", ""
        self._stats, self._stats_error = "", ""
        self._is_paused = self.spec.is_paused
        self._one_by_one = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reports = self.installation.reports(self.spec.record.name)
        self._reporting = threading.Lock()

    def begin(self, loop: asyncio.AbstractEventLoop, is_config_stale: Callable[[], bool] = lambda: False) -> None:
        """Report that calls are taken, and check the object's health from now on.

        Parameters:
          is_config_stale: Returns whether the supervisor has sent SIGHUP before this.
        """
        self._has_begun = True
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(loop, self._reconfigure()))
        if is_config_stale():
            self._spawn(loop, self._reconfigure())
        self._spawn(loop, self._until_done("reporting that calls are taken", self.report_running))
        if self.servable.has_health_check:
            self._spawn(loop, self._watch_health())
        if self.servable.has_stats:
            self._spawn(loop, self._watch_stats())

    def report_running(self, send: Send | None = None) -> None:
        """Report that calls are taken, unless they are not yet; from any thread, again with each heartbeat.

        Parameters:
          send: As ``ReplicaReports.report`` takes it.

        Raises:
          BrokerError: It could not be reported.
        """
        if self._has_begun:
            with self._reporting:
                for_ms = _LEASES_REPORTED * 1000 * self.spec.settings.lease_s
                status = status_of(
                    self.spec, RUNNING, self._message, for_ms, config=self._taken.config, refused=self._refused,
                    stats=self._stats, leaving=self.spec.note.leaving,
                )  # fmt: skip
                self._reports.report(status, send)

    def _spawn(self, loop: asyncio.AbstractEventLoop, work: Any) -> None:
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_done(self, what: str, action: Callable[[], None]) -> None:
        turns = Turns(what, log)
        while True:
            with turns:
                action()
                return
            await asyncio.sleep(turns.pause_s)

    async def _reconfigure(self) -> None:
        """Take the options that are registered now; when user code refuses its user_config, that is reported.

        Where that has not changed, user code has nothing to take.
        """
        async with self._one_by_one:
            await self._take_options()

    async def _take_options(self) -> None:
        was_paused = self._is_paused
        await self._until_done("reading the new options", self._read_options)
        options = self.spec.options
        if options.max_ongoing != self._taken.max_ongoing and not self._is_paused:
            self.pause(True)  # ends a read that waits for as many calls as there was room for
            self.pause(False)
        if self._is_paused != was_paused:
            log.info("no calls are taken until `qserve resume`" if self._is_paused else "calls are taken again")
            self.pause(self._is_paused)
        if options.logging != self._taken.logging:
            log_as_told(self.spec)
        message = ""
        # one that was refused may have been taken in part
        if options.user_config != self._taken.user_config or (self._refused and options.user_config):
            try:
                with timed("serve_replica_reconfigure_latency_ms"):
                    await self.servable.reconfigure(options.user_config_value)
            except _RAISED as error:
                log.exception("reconfigure failed")
                message = str(error) if isinstance(error, QserveException) else user_traceback(error)
        self._refused, self._message = options.config if message else "", message
        self._taken = self._taken if message else options
        await self._until_done("reporting the new options", self.report_running)

    def _read_options(self) -> None:
        for record in self.installation.registry.versions(self.spec.record.name):
            if record.version == self.spec.record.version:
                self.spec.adopt(record.deployments[self.spec.deployment])
        wishes = self.installation.fleet.wishes(self.spec.record.name)
        self._is_paused = wishes.get(self.spec.deployment, Wish()).is_paused

    async def _watch_health(self) -> None:
        await self._until_done("ending the turn to be replaced", lambda: self._reports.end_turn(self.spec.stream))
        turns, failures = Turns("replacing an unhealthy replica", log), 0
        while True:
            await asyncio.sleep(self.spec.options.health_period_s)
            failures = 0 if await self._is_healthy(failures) else failures + 1
            with turns:
                if failures >= HEALTH_FAILURES and self._may_leave():
                    return self.stop(Exit.UNHEALTHY)

    async def _is_healthy(self, failures: int) -> bool:
        try:
            with timed("serve_health_check_latency_ms"):
                await asyncio.wait_for(self.servable.check_health(), self.spec.options.health_timeout_s)
        except (Exception, asyncio.CancelledError) as error:
            _raise_if_ending(error)
            count("serve_health_check_failures")
            log.warning("check_health failed (%d of %d): %r", failures + 1, HEALTH_FAILURES, error)
            return False
        return True

    async def _watch_stats(self) -> None:
        """Report what the user's object says of its load, while a scaling policy is asked that may want to know."""
        turns = Turns("reporting the numbers for the scaling policy", log)
        while True:
            await asyncio.sleep(STATS_S)
            scaling, before = self.spec.options.scaling, self._stats
            self._stats = await self._read_stats() if scaling is not None and scaling.policy else ""
            if self._stats != before:
                with turns:  # else it comes with the next heartbeat
                    self.report_running()

    async def _read_stats(self) -> str:
        try:
            found = await asyncio.wait_for(self.servable.autoscaling_stats(), self.spec.options.health_timeout_s)
            return encode_stats(found)
        except (Exception, asyncio.CancelledError) as error:
            _raise_if_ending(error)
            if repr(error) != self._stats_error:
                self._stats_error = repr(error)
                log.warning("record_autoscaling_stats failed: %r", error)
            return ""

    def _may_leave(self) -> bool:
        """Return whether no other replica is being replaced; until then this one stays, and may recover."""
        for_s = self.spec.options.grace_s + self.spec.settings.start_timeout_s
        return self._reports.take_turn(self.spec.stream, self.spec.name, for_s)

    async def end(self) -> None:
        """Call the ``__del__`` of the user's object; what it raises is logged."""
        for task in list(self._tasks):
            task.cancel()
        try:
            await unload_models()
            await self.servable.destroy()
        except _RAISED as error:
            log.warning("__del__ failed: %r", error)


def _raise_if_ending(error: BaseException) -> None:
    """Raise a cancellation again that has come because this replica ends, and not from user code."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


def status_of(spec: ReplicaSpec, state: str, message: str = "", for_ms: float = 0.0, **more: Any) -> ReplicaStatus:
    """Return the report of this process; it holds for ``for_ms``, or for as long as it is stored."""
    until_ms = clock.stamp_ms() + for_ms if for_ms else 0.0
    return ReplicaStatus(
        spec.name, spec.deployment, spec.record.version, state, os.getpid(), _HOST, message, until_ms=until_ms,
        worker=spec.worker, **more,
    )  # fmt: skip
