"""Limits that the kernel sets for groups of processes, where a test may make such groups."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import wait_until

ROOT = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def limited(controller: str, limits: dict[str, str]) -> Iterator[list[str]]:
    """Make a group with limits, and answer what in front of a command starts it in there.

    Parameters:
      controller: ``memory`` or ``pids``, of the first version of control groups.
      limits: The group's files, and what is written to them.
    """
    group = ROOT / controller / f"qserve-test-{os.urandom(4).hex()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for name, value in limits.items():
            (group / name).write_text(value)
        yield ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (ROOT / controller / "cgroup.procs").write_text(pid)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not (group / "cgroup.procs").read_text(), description="the group is empty")
        with contextlib.suppress(OSError):
            group.rmdir()
