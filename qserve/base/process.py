"""How a process ends together with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
# opened here: between the fork and the exec of a program with threads, another thread may hold the loader's locks
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
HAS_SAID_WHY = 2
"""The exit code of a child that cannot start as it was called, and has printed one line about it."""
DIE_WITH_PARENT = "QSERVE_DIE_WITH_PARENT"
"""The variable by which a parent, whose process ID it holds, asks its child to end with it."""


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent is gone (Linux only).

    To the kernel the parent is the thread that started this process, not its whole process.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def die_with_parent_if_asked() -> None:
    """Do the same if the parent has asked for it in the environment."""
    parent = os.environ.pop(DIE_WITH_PARENT, "")
    if parent:
        die_with_parent()
        if os.getppid() != int(parent):  # it was gone before the kernel was told
            sys.exit(1)


def exit_words(code: int) -> str:
    """Say how a process ended, by its exit code, which is negative for a signal: ``exit code 3``, ``SIGSEGV``."""
    if code >= 0:
        return f"exit code {code}"
    known = {one.value: one.name for one in signal.Signals}  # some real-time signals have no name
    return known.get(-code, f"signal {-code}")
