"""How much memory this process may use: the host's, or less in a control group, as in a container."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from copy import copy
from pathlib import Path

from qserve.base.process import children_of

_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes a number beyond this where there is no limit."""


class ControlGroup:
    """The control group of this process that limits its memory.

    Parameters:
      membership: The file that names this process's control groups.
      root: Where they are mounted.
    """

    def __init__(self, membership: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> None:
        self._root = root
        self._folder = _memory_folder(membership, root)

    def limit_bytes(self) -> int | None:
        """Return the lowest limit of this group and of those around it; None when there is none."""
        found = []
        for folder in (self._folder, *self._folder.parents):
            text = _read(folder, "memory.max", "memory.limit_in_bytes").strip()
            if text.isdecimal() and int(text) < _NO_LIMIT:
                found.append(int(text))
            if folder == self._root:
                break
        return min(found, default=None)

    def read(self, *names: str) -> str:
        """Return the first of these files that exists: the versions of control groups name them differently."""
        return _read(self._folder, *names)

    def limit_child(self, pid: int, name: str, limit: int) -> ControlGroup:
        """Put a child of this process into a new group inside this one.

        Raises:
          OSError: No group can be made here.
        """
        folder, is_second = self._folder / name, (self._folder / "cgroup.controllers").exists()
        if is_second:
            self._share_memory()
        folder.mkdir()
        try:
            (folder / ("memory.max" if is_second else "memory.limit_in_bytes")).write_text(str(limit))
            if is_second:
                (folder / "memory.oom.group").write_text("1")  # with what its user code has started
            (folder / "cgroup.procs").write_text(str(pid))
        except OSError:
            folder.rmdir()
            raise
        made = copy(self)
        made._folder = folder
        return made

    def _share_memory(self) -> None:
        """Have the groups inside this one limit memory: for that it may not hold processes itself (version 2)."""
        if "memory" in _read(self._folder, "cgroup.subtree_control").split():
            return
        mine = _family_of(os.getpid())
        inside = self._folder / "qserve-worker"
        inside.mkdir(exist_ok=True)
        here = {*map(int, _read(self._folder, "cgroup.procs").split())}
        if not here <= mine:
            raise OSError(errno.EBUSY, "its control group holds other processes as well")
        for pid in here:
            (inside / "cgroup.procs").write_text(str(pid))
        (self._folder / "cgroup.subtree_control").write_text("+memory")

    def remove(self) -> bool:
        """Remove this group, and return whether nothing was left in it."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()
        return not self._folder.exists()

    def remove_empty(self, prefix: str) -> None:
        """Remove the groups inside this one that a process before has left behind."""
        for folder in self._folder.glob(f"{prefix}*/"):
            with contextlib.suppress(OSError):
                folder.rmdir()


def usable_bytes() -> int:
    """Return how many bytes the processes of this host, or of this container, may use together."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total, ControlGroup().limit_bytes() or total)


def used_bytes(pid: int, enough: int) -> int:
    """Return what a process uses with all that it has started, without files that could be read again (Linux only).

    What it shares with others counts in part. That takes time to find out, so what is below ``enough`` anyway may be
    too high.
    """
    pids = _family_of(pid)
    highest = sum(_kilobytes(one, "status", "RssAnon", "RssShmem", "VmSwap") for one in pids)
    if highest < enough:
        return highest
    return sum(_kilobytes(one, "smaps_rollup", "Pss_Anon", "Pss_Shmem", "SwapPss") for one in pids)


def _family_of(pid: int) -> set[int]:
    """Return a process with all that it has started, and that these have started."""
    found, left = {pid}, [pid]
    while left:
        children = children_of(left.pop())
        found |= children
        left += children
    return found


def _kilobytes(pid: int, file: str, *names: str) -> int:
    found = re.findall(r"^(\w+):\s+(\d+) kB", _read(Path(f"/proc/{pid}"), file), re.MULTILINE)
    return sum(1024 * int(amount) for name, amount in found if name in names)


def _read(folder: Path, *names: str) -> str:
    for name in names:
        with contextlib.suppress(OSError):
            return (folder / name).read_text()
    return ""


def _memory_folder(membership: Path, root: Path) -> Path:
    """Return the memory controller's folder: of version 2, or of version 1 where that is mounted."""
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "memory" in controllers.split(","):
                base = root / "memory" if controllers else root
                inside = base / path.lstrip("/")
                # in a container the path may be the host's, and the group itself what is mounted
                folder = inside if inside.exists() else base
                if (folder / "memory.events").exists() or (folder / "memory.oom_control").exists():
                    return folder
    return root
