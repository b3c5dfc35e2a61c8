"""Processes of a contender: started here, found wherever they end up, and all of them ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_END_FOR_S = 10.0
_OWN_SETTINGS = ("QSERVE_", "REDIS_URL", "PORT", "WEB_CONCURRENCY", "RAY_", "CELERY_")
APPLICATIONS = Path(__file__).parent / "apps"


def adopt_orphans() -> None:
    """Have the kernel give this process every orphan below it: what it started stays its descendant (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(predicate: Callable[[], bool], description: str, timeout_s: float) -> None:
    """Wait for a condition.

    Raises:
      TimeoutError: It did not come true in time.
    """
    give_up = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > give_up:
            raise TimeoutError(f"not within {timeout_s:g} s: {description}")
        time.sleep(0.02)


def descendants() -> dict[int, tuple[int, str]]:
    """The living processes below this one: process id to its parent's and its command line."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    found: dict[int, tuple[int, str]] = {}
    below = {os.getpid()}
    while below:
        below = {pid for pid, parent in parents.items() if parent in below}
        for pid in below:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[pid] = (parents[pid], command)
    return found


class Place:
    """A temporary folder with the application in it, its ledger, and the processes that run it."""

    def __init__(self) -> None:
        # a short path: sockets of brokers and of Ray lie below it, and their paths may have 107 characters
        self.folder = Path(tempfile.mkdtemp(prefix="kills-"))
        self.ledger = self.folder / "ledger"
        self.ledger.touch()
        self.log = self.folder / "log"
        for application in APPLICATIONS.glob("*.py"):
            shutil.copy(application, self.folder)
        self.write_version("v1")
        self._started: list[subprocess.Popen[bytes]] = []

    def write_version(self, version: str) -> None:
        """Change the application's code to that version; running processes keep what they have imported."""
        (self.folder / "version.py").write_text(f"VERSION = {version!r}\n")

    def start(self, command: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        """Start a command in the folder, with its output in the log."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment() | env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(self, command: Sequence[str], timeout_s: float, **env: str) -> None:
        """Start a command and wait for its end.

        Raises:
          RuntimeError: It failed, or was not done in time.
        """
        process = self.start(command, **env)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done within {timeout_s:g} s: {command}") from None
        finally:
            self._started.remove(process)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if code:
            raise RuntimeError(f"exit code {code}: {command}")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)}
        return kept | {
            "KILLS_LEDGER": str(self.ledger),
            "PYTHONPATH": str(self.folder),
            # the version's file changes within a second and keeps its size: a cached one would pass for current
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.folder),
        }

    def ended(self) -> list[str]:
        """The commands that were started and have ended."""
        return [" ".join(one.args) for one in self._started if one.poll() is not None]  # type: ignore[arg-type]

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """Take a process that was ended on purpose off the list."""
        self._started.remove(process)

    def close(self) -> None:
        """End everything, politely first, and remove the folder."""
        for process in reversed(self._started):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        give_up = time.monotonic() + _END_FOR_S
        while descendants() and time.monotonic() < give_up:
            _reap(self._started)
            time.sleep(0.05)
        while left := descendants():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _reap(self._started)
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)


def _reap(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.poll()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
