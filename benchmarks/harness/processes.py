"""Start processes, find their descendants, measure what they use, and end all of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_END_FOR_S = 10.0
_OWN_SETTINGS = ("QSERVE_", "REDIS_URL", "PORT", "WEB_CONCURRENCY", "RAY_", "CELERY_")
DOWN_S = 1.0
"""How long a service stays down before it is restarted."""

_TICKS = os.sysconf("SC_CLK_TCK")


def adopt_orphans() -> None:
    """Have the kernel reparent orphans to this process, so that what it started stays below it (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(predicate: Callable[[], bool], description: str, timeout_s: float) -> None:
    """Wait for a condition.

    Raises:
      TimeoutError: It was not met in time.
    """
    give_up = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > give_up:
            raise TimeoutError(f"not within {timeout_s:g} s: {description}")
        time.sleep(0.02)


def descendants(of: int | None = None) -> dict[int, tuple[int, str]]:
    """Return the running processes below one, or below this one: ID to its parent's ID and its command line."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    found: dict[int, tuple[int, str]] = {}
    below = {os.getpid() if of is None else of}
    while below:
        below = {pid for pid, parent in parents.items() if parent in below}
        for pid in below:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[pid] = (parents[pid], command)
    return found


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


def pss_mb(pid: int) -> float:
    """Return the memory of a process; what it shares counts in parts."""
    with contextlib.suppress(OSError):  # one that has ended and is not buried has none
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def memory_mb() -> float:
    """Return the memory of all processes below this one."""
    return sum(map(pss_mb, descendants()))


class Service:
    """A process with a service manager: when it ends by itself, it is restarted after ``DOWN_S``.

    Parameters:
      start: Starts the process.
    """

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.restarts = 0
        self._start = start
        self._process = start()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._keep, name="service manager", daemon=True).start()

    def _keep(self) -> None:
        while True:
            self._process.wait()
            self._stopped.wait(DOWN_S)
            with self._lock:
                if self._stopped.is_set():
                    return
                self.restarts += 1
                self._process = self._start()

    def has(self, pid: int) -> bool:
        """Return whether it has forked that process, and both run."""
        with contextlib.suppress(ProcessLookupError):
            return os.getpgid(pid) == self._process.pid
        return False

    def kill(self) -> None:
        """Kill it and everything that it has forked; the service manager restarts it."""
        os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and do not restart it."""
        with self._lock:
            self._stopped.set()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Wait for its end.

        Raises:
          subprocess.TimeoutExpired: It still runs.
        """
        self._process.wait(timeout_s)


class Place:
    """A temporary folder with applications in it, their ledger, and the processes that run them.

    Parameters:
      applications: Folders whose programs are copied into it.
    """

    def __init__(self, *applications: Path) -> None:
        # a short path: the sockets of brokers and of Ray are below it, and a path may have only 107 characters
        self.folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self.ledger = self.folder / "ledger"
        self.ledger.touch()
        self.log = self.folder / "log"
        for folder in applications:
            for application in folder.glob("*.py"):
                shutil.copy(application, self.folder)
        self.write_version("v1")
        self._services: list[Service] = []

    def write_version(self, version: str) -> None:
        """Change the application's code to that version; running processes keep the code that they have imported."""
        self.version = version
        (self.folder / "version.py").write_text(f"VERSION = {version!r}\n")

    def start(self, command: Sequence[str], **env: str) -> Service:
        """Start a command in the folder, with its output in the log, and keep it running."""
        service = Service(lambda: self._popen(command, env))
        self._services.append(service)
        return service

    def _popen(self, command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment() | env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, command: Sequence[str], timeout_s: float, **env: str) -> None:
        """Run a command.

        Raises:
          RuntimeError: It failed or took too long.
        """
        process = self._popen(command, env)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done within {timeout_s:g} s: {command}") from None
        finally:
            process.kill()
        if code:
            raise RuntimeError(f"exit code {code}: {command}")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)}
        return kept | {
            "KILLS_LEDGER": str(self.ledger),
            "PYTHONPATH": str(self.folder),
            # Ray sets it for its replicas; without it the others would be measured with more threads than cores
            "OMP_NUM_THREADS": "1",
            # the version's file may change within a second and keep its size, so a cached one would look current
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.folder),
        }

    def end_of_log(self) -> str:
        """Return the last line of what the processes printed."""
        return (self.log.read_text(errors="replace").strip().splitlines() or ["nothing was printed"])[-1]

    def restarts(self) -> int:
        """Return how often services were restarted."""
        return sum(service.restarts for service in self._services)

    def close(self) -> None:
        """Ask everything to end, kill what is left, and remove the folder."""
        for service in reversed(self._services):
            service.stop()
        give_up = time.monotonic() + _END_FOR_S
        while descendants() and time.monotonic() < give_up:
            _reap()
            time.sleep(0.05)
        while left := descendants():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _reap()
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)


def _reap() -> None:
    """Wait for orphans that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
