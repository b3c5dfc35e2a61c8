"""Processes that are kept: one that dies is started again, unless it dies at once again and again."""

from __future__ import annotations

import math
import subprocess
import threading
import time
from dataclasses import dataclass, field

from qserve.base.log import get_logger
from qserve.base.process import Child
from qserve.exceptions import DeployError

log = get_logger(__name__)
EARLY_S = 5.0
"""A process that lived no longer than this has died early."""
MAX_EARLY = 5
"""So many early deaths in a row, and it is not started again."""
_LOOK_S = 0.1
_FIRST_PAUSE_S = 0.1


@dataclass
class _Kept:
    """A child and what became of it.

    Parameters:
      early: Its early deaths in a row.
      start_at: When it is started again, by the monotonic clock; None while it runs.
    """

    child: Child
    started_at: float = field(default_factory=time.monotonic)
    early: int = 0
    start_at: float | None = None


class Keeper:
    """Starts children again that have died, from a thread of its own."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = []
        self._lock = threading.Lock()
        self._held = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure = ""

    def add(self, child: Child) -> None:
        """Keep a child, which has just been started. Those that others need come first."""
        self._kept.append(_Kept(child))

    def begin(self) -> None:
        """Start again what dies from now on; nothing when that was said before."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="qserve-keeper", daemon=True)
                thread.start()
                self._thread = thread  # noted last: only what was started can be joined

    def check(self) -> None:
        """Raise DeployError when a child has ended and is not started again."""
        if self._failure:
            raise DeployError(self._failure)
        for kept in self._kept if self._thread is None else ():
            if kept.child.exit_code() is not None:
                raise DeployError(kept.child.describe_exit())

    def hold(self) -> None:
        """Start nothing any more. A start that is under way is over when this returns, so that it can be stopped."""
        with self._lock:
            self._held = True

    def end(self) -> None:
        """End the thread, when everything has ended that it started: the kernel ends those with it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_S):
            with self._lock:
                for kept in self._kept if not self._held else ():
                    try:
                        self._look_at(kept)
                    except Exception:  # whatever it is, it must not end this thread, see `end`
                        log.exception("%s could not be looked after", kept.child.name)

    def _look_at(self, kept: _Kept) -> None:
        """Note a death, and start again what is due.

        Crash of this process at any point: the kernel ends all of its children.
        """
        if kept.child.exit_code() is None:
            return
        if kept.start_at is None:
            is_early = time.monotonic() - kept.started_at < EARLY_S
            self._note_end(kept, kept.child.describe_exit(), is_early)
        if kept.start_at is None or time.monotonic() < kept.start_at:
            return
        try:
            kept.child.start_again()
        except (OSError, subprocess.SubprocessError) as error:
            self._note_end(kept, f"{kept.child.name} cannot be started: {error}", True)
        else:
            kept.started_at, kept.start_at = time.monotonic(), None

    def _note_end(self, kept: _Kept, how: str, is_early: bool) -> None:
        kept.early = kept.early + 1 if is_early else 0
        if kept.early == MAX_EARLY:
            kept.start_at = math.inf
            self._failure = f"{how} ({MAX_EARLY} times in a row within {EARLY_S:.0f} s of its start)"
            log.error("%s; it is not started again", self._failure)
            return
        # at once after a long life; what is wrong may pass by itself, and must not take the whole machine until then
        pause_s = _FIRST_PAUSE_S * 2.0 ** (kept.early - 1) if is_early else 0.0
        kept.start_at = time.monotonic() + pause_s
        log.warning("%s; it is started again%s", how, f" in {pause_s:g} s" if pause_s else "")
