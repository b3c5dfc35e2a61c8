"""How a replica ended, in words."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from qserve_workers.replica.exit_codes import Exit

_OWN_ENDS: dict[int, str] = {
    Exit.UNHEALTHY: "check_health failed",
    Exit.TIME_LIMIT: "a call over its max_execution_s could not be stopped otherwise",
    Exit.STALLED: "stalled: user code ran over QSERVE_STALL_LIMIT_S",
    Exit.ORPHANED: "its supervisor was gone",
    Exit.OUT_OF_FILES: "too many open files",
}
_CGROUPS = Path("/sys/fs/cgroup")


class MemoryWatch:
    """Tells whether the kernel has killed a process of this control group for want of memory.

    Parameters:
      membership: What names this process's control groups.
      root: Where they are mounted.
    """

    def __init__(self, membership: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> None:
        self._folder = _memory_folder(membership, root)
        self._kills = self._count()

    def has_killed(self) -> bool:
        """Whether that has happened since this was asked before."""
        before, self._kills = self._kills, self._count()
        return self._kills > before

    def limit(self) -> str:
        """The limit, for messages; "" when there is none."""
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = self._read(name)
            if text.isdigit() and int(text) < 1 << 60:
                return f" of {int(text) >> 20} MiB"
        return ""

    def _count(self) -> int:
        for name in ("memory.events", "memory.oom_control"):
            for line in self._read(name).splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def _read(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self._folder / name).read_text().strip()
        return ""


def _memory_folder(membership: Path, root: Path) -> Path:
    """The memory controller's folder: of version 2, or of version 1 where that is mounted."""
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


def describe(code: int, killed_because: str, memory: MemoryWatch) -> str:
    """How a replica ended.

    Parameters:
      code: Its exit code, negative for a signal.
      killed_because: Why its supervisor killed it; "" when it did not.
      memory: Asked when nobody is known to have killed it.
    """
    if killed_because:
        return killed_because
    if code >= 0:
        return _OWN_ENDS.get(code, f"exit code {code}")
    if code != -signal.SIGKILL:
        return signal.Signals(-code).name
    if memory.has_killed():
        return f"oom_killed: SIGKILL, because of the memory limit{memory.limit()}"
    return "killed: SIGKILL, perhaps out of memory"
