"""Places at which a test has a process die, hang, fail or lose its broker; off unless the environment asks.

``QSERVE_FAILPOINT=commit.before_send:kill9:3`` kills a process when it is about to send its third commit.
``QSERVE_FAILPOINT_ONCE=/a/file`` lets only the first process of all fire, which makes that file: a replica that
is started anew must not die at the same place for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from qserve.exceptions import QserveException

POINTS = frozenset((
    "submit.before_send", "submit.after_send", "fetch.after_read", "call.before", "call.after",
    "commit.before_send", "commit.after_send", "beat.before", "sweep.mid", "reply.before_wait",
    "gateway.after_submit", "drain.mid", "supervisor.after_fork", "supervisor.before_handover",
))  # fmt: skip


class FailpointError(RuntimeError):
    """Raised by the action ``raise``."""


class Failpoint:
    """One place, what happens there, and when.

    Parameters:
      name: One of ``POINTS``.
      action: One of ``kill9``, ``hang``, ``raise``, ``drop-connection``.
      nth: At which passage through this process it fires; it fires once.
      once: A file that the first process to fire makes; no other fires. "" lets each process fire.
    """

    def __init__(self, name: str, action: str, nth: int = 1, once: str = "") -> None:
        if name not in POINTS or action not in _ACTIONS or nth < 1:
            raise QserveException(
                f"QSERVE_FAILPOINT={name}:{action}:{nth} must be POINT:ACTION or POINT:ACTION:NTH, with a point of "
                f"{', '.join(sorted(POINTS))} and an action of {', '.join(_ACTIONS)}"
            )
        self._name, self._action, self._left, self._once = name, action, nth, once

    @classmethod
    def parse(cls, text: str, once: str = "") -> Failpoint | None:
        """The failpoint that a variable names; None for an empty one.

        Raises:
          QserveException: It names none; the message says what may be written.
        """
        if not text:
            return None
        name, _, rest = text.partition(":")
        action, _, nth = rest.partition(":")
        return cls(name, action, int(nth or 1) if (nth or "1").isdecimal() else 0, once)

    def hit(self, name: str) -> None:
        """Pass the place ``name``."""
        if name != self._name:
            return
        self._left -= 1
        if self._left == 0 and self._claim():
            _ACTIONS[self._action]()

    def _claim(self) -> bool:
        if not self._once:
            return True
        try:
            os.close(os.open(self._once, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True


def hit(name: str) -> None:
    """Pass the place ``name``; callers ask ``ARMED`` first, so that production pays one look at a name."""
    if ARMED is not None:
        ARMED.hit(name)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    while True:
        time.sleep(3600)


def _raise() -> None:
    raise FailpointError("a failpoint raises")


def _drop_connections() -> None:
    """Shut down every connection of this process to its broker: both sides see it closed."""
    url = urlsplit(os.environ["QSERVE_BROKER_URL"])
    wanted = url.path if url.scheme == "unix" else (url.hostname or "localhost", url.port or 6379)
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            sock = socket.socket(fileno=os.dup(int(entry.name)))
            with sock:
                peer = sock.getpeername()
                if peer == wanted or (isinstance(peer, tuple) and peer[:2] == wanted):
                    sock.shutdown(socket.SHUT_RDWR)


_ACTIONS: dict[str, Callable[[], None]] = {
    "kill9": _kill,
    "hang": _hang,
    "raise": _raise,
    "drop-connection": _drop_connections,
}

ARMED = Failpoint.parse(os.environ.get("QSERVE_FAILPOINT", ""), os.environ.get("QSERVE_FAILPOINT_ONCE", ""))
"""What the environment asks for; None in production."""
