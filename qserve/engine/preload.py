"""What ``preload`` of a deployment names: a function that runs once, for all replicas that share what it returns."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qserve.exceptions import QserveException

_THREADS_END_WITHIN_S = 1.0
"""How long a thread that has ended may still be seen."""
_NOT_NEEDED_IN_FORKS = ("jemalloc_bg_thd",)
"""Threads that a fork does without: jemalloc, which comes with Arrow, then tidies up while it allocates."""


def preloaded(function: Callable[[], Any], label: str) -> Any:
    """Run the function, and return what it returns.

    Parameters:
      label: The deployment and the function, for messages.

    Raises:
      QserveException: It returns something to await.
      BaseException: What the function raises.
    """
    found = function()
    if inspect.isawaitable(found):
        if inspect.iscoroutine(found):
            found.close()
        raise QserveException(
            f"{label} returned a {type(found).__name__}: write `def` instead of `async def`, or use `asyncio.run` in it"
        )
    return found


def check_forkable(label: str) -> None:
    """Refuse what a forked process does not have: threads, and what CUDA has set up. Linux only.

    A fork is tried first. Libraries that prepare for forks, such as OpenBLAS, end their threads for it, and these come
    again when they are needed.

    Raises:
      QserveException: A fork would leave it behind.
    """
    names = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if not names and _more_threads():
        with contextlib.suppress(ChildProcessError):
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
        names = [f"of a library in C: {name}" for name in _more_threads()]
    if names:
        raise QserveException(
            f"{label} started threads ({', '.join(names)}), which replicas do not have because they are forked from the"
            " process that runs it. Start them in the constructor. For libraries that start their own, set num_cpus to"
            " 1 in ray_actor_options, or OMP_NUM_THREADS to 1 in env_vars of its runtime_env"
        )
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise QserveException(
            f"{label} initialized CUDA, which does not work in processes that are forked afterwards. Load the model"
            " into the memory of the CPU, and move it to the GPU in the constructor"
        )


def _more_threads() -> list[str]:
    """Return the system's names of other threads than the one that calls this, after those that end had time to."""
    until = time.monotonic() + _THREADS_END_WITHIN_S
    while names := [*_other_threads()]:
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    return names


def _other_threads() -> Iterator[str]:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            name = (thread / "comm").read_text().strip()
            if thread.name != str(threading.get_native_id()) and name not in _NOT_NEEDED_IN_FORKS:
                yield name
