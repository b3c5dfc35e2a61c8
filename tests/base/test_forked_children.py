"""What belongs to a process is left to it by its forked children."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

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
