"""What belongs to a process is left to it by its forked children."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from processes import wait_until

from qserve.base.forks import on_fork


class _Locked:
    """Its destructor takes a lock, as that of redis-py's client does."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __del__(self) -> None:
        with self._lock:
            pass


class _Owner:
    def __init__(self, owned: _Locked) -> None:
        self.owned: _Locked | None = owned
        on_fork(self)

    def leave_to_parent(self) -> None:
        self.owned = None


def _ends_well(pid: int) -> Callable[[], bool]:
    def has_ended() -> bool:
        ended, status = os.waitpid(pid, os.WNOHANG)
        return ended == pid and os.waitstatus_to_exitcode(status) == 0

    return has_ended


def test_a_child_deletes_nothing_of_its_parent_whose_locks_may_be_held() -> None:
    lock = threading.Lock()
    owner = _Owner(_Locked(lock))
    with lock:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        try:
            wait_until(_ends_well(pid), description="the child has ended")
        except BaseException:
            os.kill(pid, 9)
            raise
    assert owner.owned


_WRITES = """
import os, select, sys, threading
from qserve.base import forks

loop = forks.Loop()
read, write = os.pipe()
sys.stdout = os.fdopen(write, "w")
print("the parent's", end="")
threading.Thread(target=lambda: print("x" * 1_000_000, flush=True), daemon=True).start()
while select.select([], [write], [], 0)[1]:
    pass
if os.fork() == 0:
    END
os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("forks.end_child(None)", 0), ("forks.end_child(SystemExit(7))", 7), ("sys.stdout.flush(); os._exit(5)", 5)],
)
def test_a_child_ends_although_a_thread_of_its_parent_is_writing_to_the_same_stream(end: str, code: int) -> None:
    ended = subprocess.run([sys.executable, "-c", _WRITES.replace("END", end)], timeout=60)

    assert ended.returncode == code


_POOLED = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from qserve.base import forks

loop, pids = forks.Loop(), []

def work():
    pids.append(os.fork())
    if not pids[0]:
        END

pool = ThreadPoolExecutor(1)
pool.submit(work).result()
os._exit(os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]))
"""


@pytest.mark.parametrize(("end", "code"), [("return 5", 0), ("sys.exit(7)", 7), ("raise ValueError", 1)])
def test_a_child_of_a_pools_thread_ends_although_nobody_had_asked_for_its_result(end: str, code: int) -> None:
    ended = subprocess.run([sys.executable, "-c", _POOLED.replace("END", end)], timeout=60)

    assert ended.returncode == code
