"""Child processes: start and stop them, restart those that die, and never leave one behind."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from qserve.base.log import get_logger
from qserve.base.process import DIE_WITH_PARENT, HAS_SAID_WHY, exit_words
from qserve.base.turns import Turns
from qserve.exceptions import DeployError

log: Final = get_logger(__name__)
EARLY_S = 5.0
"""A process that lived no longer than this has died early."""
MAX_EARLY = 5
"""After so many early deaths in a row a process is not restarted any more."""
_POLL_INTERVAL_S = 0.1
_FIRST_PAUSE_S = 0.1


class ReasonGiven(DeployError):
    """Raised when a child has refused to start, and has printed why."""


class Child:
    """A process that this one starts and has to stop.

    Parameters:
      name: Its name in messages.
      variables: In addition to the environment of this process.
      kills_orphans: Whether the children that it leaves behind are killed before it is restarted.
      options: Further options of ``subprocess.Popen``.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        variables: Mapping[str, str] | None = None,
        *,
        kills_orphans: bool = False,
        **options: Any,
    ) -> None:
        self.name = name
        self._command = command
        self._kills_orphans = kills_orphans
        # its own session: Ctrl-C reaches only this process, which then stops its children in order
        self._options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True, **options}
        self._options.setdefault("env", {**os.environ, **(variables or {}), DIE_WITH_PARENT: str(os.getpid())})
        self.process: subprocess.Popen[bytes] = self._spawn()
        # kept by the restarter
        self.started_at: float = 0.0
        self.early_deaths = 0  # in a row
        self.restart_at: float = 0.0  # by its clock; 0 while the process runs

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, **self._options)

    def restart(self) -> None:
        """Start it once more, in the same way, after it has ended.

        Raises:
          OSError: The system cannot start a process; it stays ended.
        """
        if self._kills_orphans:
            self.kill()  # its process ID is free, but cannot be reused while one of its session lives
        self.process = self._spawn()

    def exit_code(self) -> int | None:
        """Return its exit code (negative for a signal); None while it runs."""
        return self.process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait until it has ended, and return its exit code; None if it still runs after ``timeout_s``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout_s)
        return None

    def kill(self) -> None:
        """Kill it and everything in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def describe_exit(self) -> str:
        """Return how it ended, in words."""
        code = self.exit_code()
        if code is None:
            return f"{self.name} is running"
        return f"{self.name} was killed by {exit_words(code)}" if code < 0 else f"{self.name} exited with code {code}"


class Restarter:
    """Restarts children that die, in its own thread; those that die early again and again stay ended.

    Parameters:
      monotonic: Seconds since any moment; replaced in tests.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.children: list[Child] = []
        self._turns = Turns("restarting what dies", log, monotonic=monotonic)
        self._lock = threading.Lock()
        self._paused = False
        self._ended, self._failed = threading.Event(), threading.Event()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if hasattr(os, "eventfd") else -1
        self._thread: threading.Thread | None = None
        self._failure = ""

    def add(self, child: Child) -> None:
        """Watch a child, which has just been started. Add those first that others need."""
        child.started_at = self._monotonic()
        self.children.append(child)
        self._look_again()

    def begin(self) -> None:
        """Restart what dies from now on. A child that dies before all of them have served would only die again."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="qserve-restarter", daemon=True)
                thread.start()
                self._thread = thread  # assigned last: only a thread that has started can be joined

    def check(self) -> None:
        """Raise DeployError if a child has ended and is not going to be restarted."""
        if self._failure:
            raise DeployError(self._failure)
        for child in self.children if self._thread is None else ():
            if child.exit_code() == HAS_SAID_WHY:
                raise ReasonGiven(f"{child.name} was not started; it has printed the reason")
            if child.exit_code() is not None:
                raise DeployError(child.describe_exit())

    def pause(self) -> None:
        """Restart nothing any more. A restart that is under way is over when this returns, so it can be stopped."""
        with self._lock:
            self._paused = True
        self._failed.set()
        self._look_again()

    def end(self) -> None:
        """End the thread, after all children have ended: the kernel ends those together with their thread."""
        self._ended.set()
        self._look_again()
        if self._thread is not None:
            self._thread.join()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def wait_for_failure(self) -> None:
        """Wait until ``check`` has something to raise, or ``pause`` is called."""
        self._failed.wait(_POLL_INTERVAL_S if self._thread is None else None)

    def _look_again(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._turns:  # no error may end the thread, see `end`
                self.tick()
                self._wait_for_end()
            self._ended.wait(self._turns.pause_s)

    def _wait_for_end(self) -> None:
        """Wait until a child has ended, or may be restarted: looking for it again and again would wake an idle host."""
        children = [child for child in self.children if child.restart_at < math.inf and not self._paused]
        due_s = [child.restart_at - self._monotonic() for child in children if child.restart_at]
        ends, opened = select.poll(), [self._wake]
        try:
            for child in children if self._wake >= 0 else ():
                if not child.restart_at:
                    opened.append(os.pidfd_open(child.process.pid))
        except (AttributeError, OSError):  # it has ended and is buried, or a sandbox forbids it
            due_s.append(_POLL_INTERVAL_S)
        try:
            if self._wake < 0:  # not Linux
                self._ended.wait(_POLL_INTERVAL_S)
                return
            for number in opened:
                ends.register(number, select.POLLIN)
            if ends.poll(max(0.0, min(due_s)) * 1000 if due_s else None):
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
        finally:
            for number in opened[1:]:
                os.close(number)

    def tick(self) -> None:
        """Check on every child once."""
        with self._lock:
            for child in self.children if not self._paused else ():
                self._turns.attempt(child.name, self._check_on, child)

    def _check_on(self, child: Child) -> None:
        """Record a death, and restart the child when it is time.

        Crash of this process at any point: the kernel ends all of its children.
        """
        if child.exit_code() is None:
            return
        if not child.restart_at:
            is_early = self._monotonic() - child.started_at < EARLY_S
            self._record_death(child, child.describe_exit(), is_early)
        if self._monotonic() < child.restart_at:
            return
        try:
            child.restart()
        except (OSError, subprocess.SubprocessError) as error:
            self._record_death(child, f"{child.name} cannot be restarted: {error}", True)
        else:
            child.started_at, child.restart_at = self._monotonic(), 0.0

    def _record_death(self, child: Child, how: str, is_early: bool) -> None:
        child.early_deaths = child.early_deaths + 1 if is_early else 0
        if child.early_deaths == MAX_EARLY:
            child.restart_at = math.inf
            self._failure = f"{how} ({MAX_EARLY} times in a row within {EARLY_S:.0f} s of its start)"
            self._failed.set()
            log.error("%s; not restarting it any more", self._failure)
            return
        # at once after a long life; after a short one with pauses, because the cause may pass by itself, and must not
        # use up the whole machine until then
        pause_s = _FIRST_PAUSE_S * 2.0 ** (child.early_deaths - 1) if is_early else 0.0
        child.restart_at = self._monotonic() + pause_s
        log.warning("%s; restarting it%s", how, f" in {pause_s:g} s" if pause_s else "")
