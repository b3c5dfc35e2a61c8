"""Child processes: start, watch, stop, and never leave one behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG = 1
DIE_WITH_PARENT = "QSERVE_DIE_WITH_PARENT"


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent is gone (Linux; nothing elsewhere)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def die_with_parent_if_asked() -> None:
    """The same when whoever started this process asked for it in the environment."""
    parent = os.environ.pop(DIE_WITH_PARENT, "")
    if parent:
        die_with_parent()
        if os.getppid() != int(parent):  # it was gone before the kernel was told
            sys.exit(1)


class Child:
    """A process that we started and have to stop.

    Parameters:
      name: How messages call it.
      command: Its argument list.
      env: Variables added to this process's own.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        # a session of its own: Ctrl-C reaches only whoever started it, who then stops it in order
        self._process = subprocess.Popen(
            list(command),
            env={**os.environ, **(env or {}), DIE_WITH_PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Its exit code (negative for a signal); None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end; None when that did not come in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it and everything in its session at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def describe_exit(self) -> str:
        """How it ended, in words."""
        code = self._process.poll()
        if code is None:
            return f"{self.name} is running"
        if code < 0:
            return f"{self.name} was ended by {signal.Signals(-code).name}"
        return f"{self.name} ended with exit code {code}"
