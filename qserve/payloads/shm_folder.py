"""The folder of an installation in the memory of the host: whose it is, and what of it is abandoned.

See ``segments`` for what is in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import stat
import time
from pathlib import Path

SHM = Path("/dev/shm")
FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
ABANDONED_S = 24 * 3600.0
"""After how long without any sign of life the folder of another installation is removed."""
_ABOUT = re.compile(r"([0-9a-f]{32}) (.*)", re.DOTALL)


class ShmFolder:
    """The folder of an installation; see ``found`` for one that is there already."""

    def __init__(self, path: Path, embedded_in: str) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        _check_own(path)
        for name in ("v", "p"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
        unfinished = path / f".{secrets.token_hex(8)}"
        unfinished.write_bytes(os.fsencode(f"{secrets.token_hex(16)} {embedded_in}"))
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, path / "about")  # a whole file at once; the first one stays
        unfinished.unlink()
        self._read(path)

    @classmethod
    def found(cls, path: Path) -> ShmFolder:
        """Return the folder at a path.

        Raises:
          OSError: It is not there, or belongs to somebody else.
        """
        folder = cls.__new__(cls)
        _check_own(path)
        folder._read(path)
        return folder

    def _read(self, path: Path) -> None:
        about = _ABOUT.fullmatch(os.fsdecode((path / "about").read_bytes()))
        if about is None:
            raise OSError(errno.EINVAL, f"{path / 'about'} is malformed")
        self.path: Path = path
        self.token: str = about[1]
        self.embedded_in: str = about[2]

    @property
    def place(self) -> str:
        return f"{host_name()}/{self.token}/{self.path.name}"

    def used(self) -> int:
        """Return how many bytes all segments take that have a writer."""
        return sum(bytes_of_writers(self.path).values())


def remove_abandoned(own: str = "", root: Path = SHM, ended: str = "") -> None:
    """Remove the folders of this user's installations that have ended.

    Parameters:
      own: The name of the folder to keep in any case.
      ended: The folder of an embedded broker that has certainly ended, whoever still has values of it.
    """
    for entry in _of_this_user(root):
        if entry.name != own and _is_abandoned(Path(entry.path), ended):
            shutil.rmtree(entry.path, ignore_errors=True)


def has_folders(root: Path = SHM) -> bool:
    """Return whether this user has installations here that store values, or has had some."""
    return bool(_of_this_user(root))


def folder_name(digest: str) -> str:
    """Return what the folder of an installation of this user is called."""
    return f"qserve-{os.getuid()}-{digest}"


def _of_this_user(root: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in entries(root) if entry.name.startswith(folder_name(""))]


def host_name() -> str:
    """Return the name of this host as it is written into claims."""
    return re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII) or "_"


def _check_own(path: Path) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, f"{path} is not a folder that belongs to this user alone")


def is_own(path: Path) -> bool:
    """Return whether a folder is there and belongs to this user alone: others may have put links into theirs."""
    with contextlib.suppress(OSError):
        _check_own(path)
        return True
    return False


def remove_if_dead(path: Path) -> bool:
    """Remove the folder of a writer unless it lives; return whether it does not."""
    try:
        descriptor = os.open(path / "lock", FILE | os.O_CREAT, 0o600)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_abandoned(path: Path, ended: str) -> bool:
    try:
        folder = ShmFolder.found(path)
        if ended and folder.embedded_in == ended:
            return True
        # the folder of a broker that runs may be out of sight: in a container, or where a service has its own /tmp
        has_ended = bool(folder.embedded_in) and not os.path.lexists(folder.embedded_in)
        is_quiet = time.time() - (path / "v").stat().st_mtime > ABANDONED_S
        return (has_ended or (is_quiet and not folder.embedded_in)) and all(
            remove_if_dead(Path(writer.path)) for writer in entries(path / "p")
        )
    except OSError:
        return False


def bytes_of_writers(folder: Path) -> dict[int, int]:
    """Return the bytes of each file in the folders of writers."""
    files = [stat_of(entry) for writer in entries(folder / "p") for entry in entries(writer)]
    return {found.st_ino: found.st_blocks * 512 for found in files if found is not None}


def stat_of(entry: os.DirEntry[str] | Path) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:
        return None


def entries(folder: os.DirEntry[str] | Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder; nothing if it is not there."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []
