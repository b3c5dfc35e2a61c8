"""Real processes for tests: start them, wait for what they say, and see that nothing is left of them.

All that a test starts carries a mark in its environment, which children and grandchildren inherit;
by it they are found wherever they end up, orphans included.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qserve.machine.embedded_broker import find_server

T = TypeVar("T")

READY = "qserve: ready"
MARK = "QSERVE_TEST_MARK"
PATIENCE_S = 60.0
"""How long a test waits for what must happen: so long that no busy machine needs it, and no promise of ours."""
KILL_AFTER_S = 10.0

QSERVE = [sys.executable, "-m", "qserve"]
_OWN_SETTINGS = ("QSERVE_", "REDIS_URL", "PORT", "WEB_CONCURRENCY")
_POLL_INTERVAL_S = 0.01


def wait_until(predicate: Callable[[], T], *, description: str, timeout_s: float = PATIENCE_S) -> T:
    """Wait until a predicate answers something true, and return that.

    Parameters:
      predicate: Asked again and again.
      description: What is waited for; the error says it.
      timeout_s: Longest wait.

    Raises:
      AssertionError: The time ran out.
    """
    give_up = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        answer = predicate()
        if answer:
            return answer
        now = time.monotonic()
        if now > give_up:
            raise AssertionError(f"not within {timeout_s:g} s: {description}")
        # what is waited for needs the processors as well
        time.sleep(min(1.0, max(_POLL_INTERVAL_S, 4 * (now - began))))


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be buried does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop processes in their tracks, and let those go on that are still there."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def processes_of(mark: str, folder: Path) -> dict[int, str]:
    """The living processes whose environment holds a mark, each with its command line.

    Those that work in ``folder`` count as well: a broker overwrites its environment with its title.
    """
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            is_marked = wanted in (process / "environ").read_bytes().split(b"\0")
            if is_marked or (process / "cwd").readlink().is_relative_to(folder):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if is_alive(int(process.name)):
                    found[int(process.name)] = command
    return found


def clean_environment() -> dict[str, str]:
    """This process's environment without the settings that qserve reads."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)}


class Site:
    """A place for one test: a temporary folder and a mark for all the processes started from it."""

    def __init__(self) -> None:
        # a short path: broker sockets lie in it, and their paths may have 107 characters
        self.folder = Path(tempfile.mkdtemp(prefix="site-"))
        self.mark = os.urandom(8).hex()
        self._processes: list[Process] = []

    @property
    def environment(self) -> dict[str, str]:
        """What the environment of a process must hold to belong to this place."""
        return {MARK: self.mark, "TMPDIR": str(self.folder)}

    def start(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a command in a process group of its own, as a shell does.

        Parameters:
          command: Its argument list.
          cwd: Its folder; None for an empty one.
          env: Variables beside those of this process, which lose qserve's own settings.
        """
        variables = {**clean_environment(), **self.environment, **(env or {})}
        process = Process(command, cwd or self.folder, variables, self.folder)
        self._processes.append(process)
        return process

    def qserve(self, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Process:
        """Start ``qserve`` with these arguments."""
        return self.start([*QSERVE, *arguments], cwd=cwd, env=env)

    def run(
        self,
        target: str,
        *options: str,
        cwd: Path | None = None,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Serving:
        """Start ``qserve run``, and go on once it says that it is ready."""
        port = port or free_port()
        process = self.qserve("run", target, "--port", str(port), *options, cwd=cwd, env=env)
        process.wait_for(READY)
        return Serving(process, port)

    def start_broker(self, port: int, *options: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a broker that writes no snapshots, and go on once it listens."""
        command = [find_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options]
        process = self.start(command, env=env)
        wait_until(lambda: is_open(port), description="the broker listens")
        return process

    def broker(self, *options: str, env: Mapping[str, str] | None = None) -> str:
        """Start a broker on a free port, and answer its URL."""
        port = free_port()
        self.start_broker(port, *options, env=env)
        return f"redis://127.0.0.1:{port}/0"

    def write(self, name: str, text: str) -> Path:
        """Write a file into the folder, and answer the folder."""
        (self.folder / name).write_text(text)
        return self.folder

    def processes(self) -> dict[int, str]:
        """What runs here now."""
        return processes_of(self.mark, self.folder)

    def broker_folders(self) -> list[str]:
        """The folders of embedded brokers here."""
        return [path.name for path in self.folder.glob("qserve-*") if path.is_dir()]

    def wait_empty(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until no process and no broker's folder is left."""
        gone = f"no process and no folder is left of {[one.command for one in self._processes]}"
        try:
            wait_until(
                lambda: not self.processes() and not self.broker_folders(),
                description=gone,
                timeout_s=timeout_s,
            )
        except AssertionError as error:
            said = "\n".join(one.output for one in self._processes)
            left = f"{error}; left: {self.processes()} {self.broker_folders()}\n{said}"
            raise AssertionError(left) from None

    def close(self) -> None:
        """End what still runs, see that nothing is left, and remove the folder."""
        try:
            # brokers last: without theirs the others would try to reach it before they end
            for is_broker in (False, True):
                ending = [one for one in self._processes if one.is_broker is is_broker and one.exit_code() is None]
                for process in ending:
                    process.signal(signal.SIGTERM)
                for process in ending:
                    process.stop()
            self.wait_empty()
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._processes:
                process.close()
            shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def new_site() -> Iterator[Site]:
    """A place that is closed, and checked for leftovers, at the end."""
    site = Site()
    try:
        yield site
    finally:
        site.close()


class Process:
    """A process whose two outputs are kept in files."""

    def __init__(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], folder: Path) -> None:
        self.command = " ".join(command)
        self.is_broker = command[0] == find_server()
        stem = os.urandom(4).hex()
        self._out, self._err = folder / f"{stem}.out", folder / f"{stem}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._popen = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def stdout(self) -> str:
        """What it has written to standard output up to now."""
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        """What it has written to standard error up to now."""
        return self._err.read_text()

    @property
    def problems(self) -> str:
        """What it has printed to standard error, without the lines of the log at INFO."""
        return re.sub(r"^\d{4}-\d\d-\d\d \S+ INFO \[.*\n", "", self.stderr, flags=re.MULTILINE)

    @property
    def output(self) -> str:
        """Both, for messages."""
        return f"$ {self.command}\n{self.stdout}{self.stderr}"

    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._popen.poll()

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until a text is printed.

        Raises:
          AssertionError: It ended before, or did not print it in time; the error shows the output.
        """
        try:
            wait_until(
                lambda: text in self.stdout + self.stderr or self.exit_code() is not None,
                description=f"{text!r} is printed",
                timeout_s=timeout_s,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None
        printed = text in self.stdout + self.stderr
        assert printed, f"exit code {self.exit_code()} before {text!r} was printed:\n{self.output}"

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end, and answer its exit code."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            still = f"still running after {timeout_s:g} s:\n{self.output}"
            raise AssertionError(still) from None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def press_ctrl_c(self) -> None:
        """Interrupt it as a terminal does: the whole process group gets the signal."""
        os.killpg(self.pid, signal.SIGINT)

    def stop(self) -> None:
        """End it if it still runs."""
        if self.exit_code() is None:
            self.signal(signal.SIGTERM)
            try:
                self._popen.wait(KILL_AFTER_S)
            except subprocess.TimeoutExpired:
                self._popen.kill()

    def close(self) -> None:
        """Bury it."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.kill()
        self._popen.wait()


class Serving:
    """A ``qserve run`` that is ready.

    Parameters:
      process: The command.
      port: Where its gateway listens.
    """

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"


@dataclass(frozen=True)
class Started:
    """What ``qserve.start`` started from the tests' own process.

    Parameters:
      url: Where the gateway answers.
      site: The place of its processes.
      log: The file that they write to.
    """

    url: str
    site: Site
    log: Path
