"""End processes together: a process with its parent, and what user code has started with its replica."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
# opened here: between the fork and the exec of a program with threads, another thread may hold the loader's locks
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
HAS_SAID_WHY = 2
"""The exit code of a child that cannot start as it was called, and has printed one line about it."""
DIE_WITH_PARENT = "QSERVE_DIE_WITH_PARENT"
"""The variable by which a parent, whose process ID it holds, asks its child to end with it."""
REPLICA = "QSERVE_REPLICA"
"""The variable that names the replica to the programs that user code starts."""
_VARIABLE = f"{REPLICA}=".encode()
IS_REPLICA, IS_CHILD = "qserve-", "qchild-"
"""The prefixes of the kernel's names for a replica, and for the processes that its user code forks."""


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent is gone (Linux only).

    To the kernel the parent is the thread that started this process, not its whole process.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def die_with_parent_if_asked() -> None:
    """Call ``die_with_parent`` if the parent has asked for it in the environment."""
    parent = os.environ.pop(DIE_WITH_PARENT, "")
    if parent:
        die_with_parent()
        if os.getppid() != int(parent):  # it had ended before this
            sys.exit(1)


def adopt_orphans() -> None:
    """Have the kernel make this process the parent of those of its descendants whose own parent ends (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_of(pid: int) -> set[int]:
    """Return the processes that a process is the parent of (Linux only)."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found.update(map(int, (thread / "children").read_text().split()))
    return found


def name_process(prefix: str, replica: str) -> None:
    """Give this process a name that ends with that of its replica (Linux only); its forks have that name as well."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_NAME, f"{prefix}{tag_of(replica)}".encode(), 0, 0, 0)


def set_title(title: str) -> None:
    """Have ``ps`` show this in the place of the command line, as far as there is room in that (Linux only).

    The environment behind it is left as it is, since it tells which replica has started a process.
    """
    fields = _read(Path("/proc/self/stat")).rpartition(b") ")[2].split()
    with contextlib.suppress(OSError, ValueError, IndexError):
        start, end = int(fields[45]), int(fields[46])
        if 0 < start < end - 1:
            with Path("/proc/self/mem").open("r+b", buffering=0) as memory:  # a wrong address is an error here
                memory.seek(start)
                memory.write(title.encode()[: end - start - 1].ljust(end - start, b"\0"))


def tag_of(replica: str) -> str:
    """Return the end of a replica's name, which no other one has."""
    return replica[-8:]


def replicas_here() -> set[str]:
    """Return the tags of the replicas on this host."""
    names = (_name_of(pid) for pid in _all())
    return {name.removeprefix(IS_REPLICA) for name in names if name.startswith(IS_REPLICA)}


def started_by_user_code() -> dict[int, str]:
    """Return all processes on this host that user code has started, with the tags of their replicas."""
    return {pid: tag for pid in _all() if (tag := replica_of(pid))}


def replica_of(pid: int) -> str:
    """Return the tag of the replica whose user code has started a process; "" if it shows none."""
    name = _name_of(pid)
    if name.startswith(IS_CHILD):
        return name.removeprefix(IS_CHILD)
    variables = _read(Path(f"/proc/{pid}/environ")).split(b"\0")
    return next((tag_of(line.decode(errors="replace")) for line in variables if line.startswith(_VARIABLE)), "")


def kill_descendants(replica: str) -> None:
    """Kill all that the user code of this process, a replica, has started."""
    found = {pid for pid, tag in started_by_user_code().items() if tag == tag_of(replica)}
    left = [os.getpid()]
    while left:
        children = children_of(left.pop())
        found |= children
        left += children
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def left_behind() -> set[int]:
    """Return the orphans among what user code has started, of replicas that are not on this host any more.

    A replica whose user code has renamed it counts as gone, but what it has started has a parent.
    """
    here = replicas_here()
    gone = {pid: parent_of(pid) for pid, tag in started_by_user_code().items() if tag not in here}
    found = {pid for pid, parent in gone.items() if parent == 1}
    while more := {pid for pid, parent in gone.items() if parent in found} - found:
        found |= more
    return found


def parent_of(pid: int) -> int:
    """Return the parent of a process; 0 if it is gone (Linux only)."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b") ")[2].split()
    return int(fields[1]) if fields else 0


def _name_of(pid: int) -> str:
    before, _, after = _read(Path(f"/proc/{pid}/stat")).decode(errors="replace").rpartition(") ")
    return "" if after.startswith("Z") else before.partition(" (")[2]  # one that is dead counts until it is waited for


def _all() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def exit_words(code: int) -> str:
    """Say how a process ended, by its exit code, which is negative for a signal: ``exit code 3``, ``SIGSEGV``."""
    if code >= 0:
        return f"exit code {code}"
    known = {number.value: number.name for number in signal.Signals}  # some real-time signals have no name
    return known.get(-code, f"signal {-code}")
