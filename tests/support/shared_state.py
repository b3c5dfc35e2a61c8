"""What all tests of a process share, and none may leave changed to the next."""

from __future__ import annotations

import asyncio
import builtins
import gc
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from qserve.base import once
from qserve.base.clock import clock

_SIGNALS = [number for number in signal.valid_signals() if number <= signal.SIGSYS and number != signal.SIGALRM]
"""Not the alarm clock, which is pytest-timeout's."""


def _celery_blocks() -> bool:
    celery = sys.modules.get("celery._state")
    return celery is not None and celery.task_join_will_block()


def shared_state() -> dict[str, Any]:
    """Return each thing by its name; takes 40 microseconds."""
    return {
        **{signal.Signals(number).name: signal.getsignal(number) for number in _SIGNALS},
        **{f"environment[{name}]": value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "working directory": Path.cwd(),
        "sys.path": list(sys.path),
        "time": (time.sleep, time.time, time.time_ns, time.monotonic, time.perf_counter),
        "time before a jump of the broker's clock": clock._former,
        "event loop": (asyncio.get_event_loop_policy(), asyncio._get_running_loop()),
        "hooks": (sys.excepthook, threading.excepthook, sys.displayhook, builtins.__import__),
        "garbage collector": gc.isenabled(),
        "folder of temporary files": tempfile.gettempdir(),  # which is found out when it is first asked for
        "what processes of a role have said": once._board,
        "whether results of Celery's tasks may be waited for": _celery_blocks(),
        "recursion limit": sys.getrecursionlimit(),
    }
