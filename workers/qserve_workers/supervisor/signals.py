"""Signals that wake the supervisor: one to stop, and the end of a child."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable

from qserve.base.forks import on_fork
from qserve.base.process import die_with_parent


class Signals:
    """Makes signals readable, so that the supervisor can wait for them together with the broker.

    Parameters:
      on_stop: Called with SIGTERM and SIGINT.
    """

    def __init__(self, on_stop: Callable[[], object]) -> None:
        self._heard, self._told = socket.socketpair()
        self._heard.setblocking(False)
        self._told.setblocking(False)
        signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: on_stop())
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # without a handler nothing is told
        on_fork(self)

    def fileno(self) -> int:
        return self._heard.fileno()

    def clear(self) -> None:
        """Take in what has come, of which the process's handlers know."""
        with contextlib.suppress(BlockingIOError):
            while self._heard.recv(4096):
                pass

    def leave_to_parent(self) -> None:
        """In a replica, or the process of a policy."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._heard.close()
        self._told.close()


def begin_helper(parent: int) -> None:
    """In a forked process that helps the supervisor, its parent: end with it, and take signals as others do."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
