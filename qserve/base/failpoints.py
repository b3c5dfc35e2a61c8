"""Points at which a test makes a process die, hang, fail or lose its broker; off unless the environment sets one.

``QSERVE_FAILPOINT=commit.before_send:kill9:3`` kills a process when it is about to send its third commit. With
``QSERVE_FAILPOINT_ONCE=/a/file`` only one of all processes fires, the first, which creates that file: otherwise a
restarted replica would die at the same point again and again.
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
    "rollout.after_claim", "rollout.after_stage", "rollout.before_promote", "rollout.after_promote",
    "submit.before_send", "submit.after_send", "fetch.after_read", "call.before", "call.after",
    "commit.before_send", "commit.after_send", "beat.before", "sweep.mid", "reply.before_wait",
    "gateway.after_submit", "drain.mid", "supervisor.after_fork", "supervisor.before_handover",
    "worker.after_offer", "worker.after_plan", "lead.before_renew", "lead.before_assign", "lead.after_assign",
    "webhook.before_post", "webhook.after_post",
))  # fmt: skip


class FailpointError(RuntimeError):
    """Raised by the action ``raise``."""


class Failpoint:
    """A point, and what happens there and when.

    Parameters:
      text: As in ``QSERVE_FAILPOINT``: ``POINT:ACTION``, or ``POINT:ACTION:NTH`` for the nth time that this process
        reaches the point. It fires once.
      once: A file that the first process to fire creates, so that no other fires; "" lets each process fire.

    Raises:
      QserveException: The text is not a failpoint; the message shows the form.
    """

    def __init__(self, text: str, once: str = "") -> None:
        self._name, _, rest = text.partition(":")
        self._action, _, nth = rest.partition(":")
        self._left = int(nth) if nth.isdecimal() else int(not nth)
        self._once = once
        if self._name not in POINTS or self._action not in _ACTIONS or self._left < 1:
            raise QserveException(
                f"QSERVE_FAILPOINT={text} must be POINT:ACTION or POINT:ACTION:NTH, with a POINT of "
                f"{', '.join(sorted(POINTS))} and an ACTION of {', '.join(_ACTIONS)}"
            )

    def hit(self, name: str) -> None:
        """Fire if ``name`` is the point and its time has come."""
        if name != self._name:
            return
        self._left -= 1
        if self._left != 0:
            return
        if self._once:
            try:
                Path(self._once).touch(exist_ok=False)
            except FileExistsError:
                return
        _ACTIONS[self._action]()


def hit(name: str) -> None:
    """Fire if ``name`` is the armed point. Callers test ``ARMED`` first, so that production pays for no call."""
    if ARMED is not None:
        ARMED.hit(name)


def _hang() -> None:
    while True:
        time.sleep(3600)


def _raise() -> None:
    raise FailpointError("raised by a failpoint")


def _drop_connections() -> None:
    """Shut down every connection of this process to its broker, so that both sides see it closed."""
    url = urlsplit(os.environ["QSERVE_BROKER_URL"])
    broker = url.path if url.scheme == "unix" else (url.hostname or "localhost", url.port or 6379)
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            sock = socket.socket(fileno=os.dup(int(entry.name)))
            with sock:
                peer = sock.getpeername()
                if peer == broker or (isinstance(peer, tuple) and peer[:2] == broker):
                    sock.shutdown(socket.SHUT_RDWR)


_ACTIONS: dict[str, Callable[[], None]] = {
    "kill9": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": _hang,
    "raise": _raise,
    "drop-connection": _drop_connections,
}

_SET = os.environ.get("QSERVE_FAILPOINT")
ARMED = Failpoint(_SET, os.environ.get("QSERVE_FAILPOINT_ONCE", "")) if _SET else None
"""The failpoint that the environment sets; None in production."""
