"""The time limit of one call: a thread that can act when the loop, or user code in it, stands still."""

from __future__ import annotations

import os
import signal
import threading
import time

from redis import Redis

from qserve.engine.step import Conclusion
from qserve.exceptions import BrokerError, TimeLimitExceeded
from qserve.keys import Keys
from qserve.log import get_logger
from qserve.plane.connection import broker_errors
from qserve.wire.failure import Failure
from qserve_workers.replica import Replica
from qserve_workers.work import Work

log = get_logger(__name__)
STOP_FOR_S = 1.0
"""How long a cancelled coroutine may take to end before its replica is killed."""


class TimeLimit:
    """Ends calls that run too long.

    The caller is answered first. A coroutine is then cancelled; code that blocks cannot be, so its replica is
    killed, the supervisor hands its other calls over and starts another.

    Parameters:
      client: A connection of its own, because the replica's may stand still with its loop.
      limit_s: ``max_execution_s`` of the deployment.
    """

    def __init__(self, replica: Replica, keys: Keys, client: Redis, limit_s: float) -> None:
        self._replica = replica
        self._keys = keys
        self._client = client
        self._limit_s = limit_s
        self._pause = threading.Event()

    def start(self) -> None:
        """Watch until the process ends."""
        threading.Thread(target=self._watch, name="time-limit", daemon=True).start()

    def _watch(self) -> None:
        while not self._pause.wait(min(0.25, self._limit_s / 4)):
            for work in self._replica.works():
                if time.monotonic() - work.began > self._limit_s:
                    self._end(work)

    def _end(self, work: Work) -> None:
        method = work.step if work.call is None else work.call.method
        log.error("%s ran longer than max_execution_s=%g and is stopped", method, self._limit_s)
        try:
            self._answer(work, method)
        except BrokerError as error:
            log.error("its caller could not be told: %s", error)
        if work.task is not None:
            self._replica.loop.call_soon_threadsafe(work.task.cancel)
            if self._has_ended(work):
                return
        os.kill(os.getpid(), signal.SIGKILL)

    def _answer(self, work: Work, method: str) -> None:
        """Crash after this: the call is committed as failed, and is not run again."""
        deployment = self._replica.deployment
        text = f"{deployment}.{method} ran longer than max_execution_s={self._limit_s:g} and was stopped"
        failure = Failure.of(TimeLimitExceeded(text)).encode()
        plane = self._replica.plane
        command = work.commit_command(self._keys, Conclusion("f", failure), plane.epoch.current(), plane.seal)
        with broker_errors():
            self._client.execute_command(*command)

    def _has_ended(self, work: Work) -> bool:
        give_up = time.monotonic() + STOP_FOR_S
        while time.monotonic() < give_up:
            if work not in self._replica.works():
                return True
            self._pause.wait(0.01)
        return False
