"""A process that ends when the one that started it does."""

from __future__ import annotations

import ctypes
import os
import signal

ENV = "QSERVE_DIE_WITH_PARENT"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies; only where ``QSERVE_DIE_WITH_PARENT`` is 1."""
    if os.environ.get(ENV) != "1":
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux only
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
