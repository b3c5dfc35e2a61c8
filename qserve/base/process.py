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
# opened here: between the fork and the exec of a program with threads, the loader's locks may be anybody's
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
DIE_WITH_PARENT = "QSERVE_DIE_WITH_PARENT"


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent is gone (Linux; nothing elsewhere).

    To the kernel the parent is the thread that started this process, not its whole process.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


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
      kills_orphans: Whether children that it leaves behind are killed before it is started again.
      pass_fds: Open files that it is given.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        kills_orphans: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self._command = list(command)
        self._env = {**os.environ, **(env or {}), DIE_WITH_PARENT: str(os.getpid())}
        self._kills_orphans = kills_orphans
        self._pass_fds = pass_fds
        self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # a session of its own: Ctrl-C reaches only whoever started it, who then stops it in order
        return subprocess.Popen(
            self._command, env=self._env, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=self._pass_fds
        )

    def start_again(self) -> None:
        """Start it as it was started before, once it has ended.

        Raises:
          OSError: The system gives no process for it; it stays ended.
        """
        if self._kills_orphans:
            self.kill()  # its id is buried, but the session keeps it from being given away while one of them lives
        self._process = self._spawn()

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
            known = {one.value: one.name for one in signal.Signals}  # not all of the real-time signals are
            return f"{self.name} was ended by {known.get(-code, f'signal {-code}')}"
        return f"{self.name} ended with exit code {code}"
