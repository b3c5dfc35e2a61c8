"""A second user of the host, played by a process of its own."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

SECOND_USER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as a second user as well")


def as_second_user(act: Callable[[], object], folder: Path) -> None:
    """Call a function in a process of another user, whose working folder is ``folder``."""
    # forked, because the other user may not be allowed to read the interpreter
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(SECOND_USER)
            os.setuid(SECOND_USER)
            os.chdir(folder)
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
