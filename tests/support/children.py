"""Processes that only wait, in the place of replicas."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable


def sleeping_child() -> int:
    """Start a process that does nothing for a minute, and return its id."""
    return os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")


def end_children(pids: Iterable[int]) -> None:
    """Kill those of these children that have not been waited for, and wait for them."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue
