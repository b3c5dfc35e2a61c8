"""One deploy or deletion of an application at a time: who does it holds a claim that counts as long as it lives."""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Final

from qserve.base.clock import Deadline, clock
from qserve.base.log import get_logger
from qserve.base.turns import Turns
from qserve.deploy.installation import Installation
from qserve.exceptions import BrokerError, DeployError
from qserve.wire.application import ApplicationRecord
from qserve.wire.fleet import Rollout

log: Final = get_logger(__name__)
STILL_S = 10.0
"""How long a claim's counter may stand still before another deploy takes it over."""
DONE, FAILED, UNDER_WAY = "done", "failed", "under way"
_BEAT_S = 1.0
_POLL_INTERVAL_S = 0.1
_MESSAGE_LIMIT = 2_000


class Claim:
    """The right to deploy or delete an application; used as a context, which notes at its end how that went.

    Parameters:
      version: What is deployed; "" to delete the application.
      timeout_s: How long to wait for another deploy of the application.
      on_wait: Called once with what is waited for.
      check: Called while waiting; raises if there is no point in waiting any longer.
    """

    def __init__(
        self,
        installation: Installation,
        app: str,
        version: str,
        timeout_s: float,
        on_wait: Callable[[str], None] = log.info,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = installation.fleet
        self._registry = installation.registry
        self._key = installation.keys.rollout(app)
        self._app = app
        self._timeout_s = timeout_s
        self._on_wait = on_wait
        self._check = check
        who = f"{_user()}@{socket.gethostname()} (process {os.getpid()})"
        self._now = Rollout(version, by=who, state=UNDER_WAY, started_ms=clock.stamp_ms())
        self._held = b""
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._turns = Turns("the claim of a deploy", log, longest_s=_BEAT_S, is_quiet=True)

    def __enter__(self) -> Claim:
        """Take the claim.

        Crash before it: nothing has happened. Crash after it: the next deploy takes it over, when it has stood still.

        Raises:
          DeployError: Another deploy of the application did not end in time.
        """
        deadline, seen, since = Deadline(self._timeout_s), None, time.monotonic()
        while not self._held:
            was, other = self._store.rollout(self._app)
            if (was, other) != seen:
                is_first, seen, since = seen is None, (was, other), time.monotonic()
            if other is None or other.state != UNDER_WAY or time.monotonic() - since > STILL_S:
                self._held = self._store.swap_rollout(self._app, was, self._now)
                continue
            what = f"application {self._app!r} is being {'deployed' if other.version else 'deleted'} by {other.by}"
            if is_first:
                self._on_wait(f"{what}; waiting for the end of that")
                is_first = False
            self._check()
            if deadline.has_passed():
                again = "deploy" if self._now.version else "delete"
                raise DeployError(f"{what}; {again} it again when that has ended")
            time.sleep(_POLL_INTERVAL_S)
        threading.Thread(target=self._beat, name="claim", daemon=True).start()
        return self

    def _beat(self) -> None:
        while not self._is_over.wait(_BEAT_S + self._turns.pause_s):
            with self._turns:
                self.update()

    def update(self, **changes: object) -> None:
        """Say how far the deploy is.

        Raises:
          DeployError: Another deploy has taken over, because this one stood still for a while.
          BrokerUnavailable: The broker does not reply.
        """
        with self._lock:
            self._update(**changes)

    def _update(self, **changes: object) -> None:
        if self._is_over.is_set():
            return
        beat = {"beat": self._now.beat + 1, "beat_ms": clock.stamp_ms()}
        now = replace(self._now, **changes, **beat)  # type: ignore[arg-type]
        held = self._store.swap_rollout(self._app, self._held, now)
        if not held and not self._store.rollout(self._app)[0]:  # the broker has lost its data
            held = self._store.swap_rollout(self._app, b"", now)
        if not held:
            raise DeployError(
                f"another deploy of application {self._app!r} has taken over, because this one stood still"
            )
        self._now, self._held = now, held

    def promote(self, record: ApplicationRecord, keeps_before: bool = False) -> str:
        """Make a version the active one if this deploy has the claim, as ``Registry.promote`` does and raises."""
        with self._lock:
            self._update()
            return self._registry.promote(record, keeps_before, (self._key, self._held))

    def delete(self) -> str:
        """Remove the application if this has the claim, as ``Registry.delete`` does and raises."""
        with self._lock:
            self._update()
            return self._registry.delete(self._app, (self._key, self._held))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Note how it went. Crash before it: what is deployed is as it should be, and the claim stands still."""
        state, message = (DONE, "") if error is None else (FAILED, _words_of(error)[:_MESSAGE_LIMIT])
        with suppress(BrokerError, DeployError), self._lock:
            self._update(state=state, message=message)
        self._is_over.set()


def _words_of(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted (Ctrl-C)"
    if isinstance(error, SystemExit | GeneratorExit):
        return "its program ended"
    return str(error) or type(error).__name__


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
