"""How much memory this process may use: the host's, or less in a control group, as in a container."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

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


def usable_bytes() -> int:
    """Return how many bytes the processes of this host, or of this container, may use together."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total, ControlGroup().limit_bytes() or total)


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
