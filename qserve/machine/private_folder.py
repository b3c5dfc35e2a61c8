"""A folder of this process in the temporary folder, which all users of the host share.

Nothing there is trusted because of its name. A folder is opened without following links, and used only if it belongs to
this user and is closed to all others. Nothing here waits, so a start can always be interrupted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PREFIX = "qserve-"
_UNFINISHED = ".qserve-"
"""The prefix of a folder's name until it is locked."""
_LOCK = "owner.lock"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# not blocking, for there may be a pipe in the file's place; and nothing is truncated
_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE_LIMIT = 64 << 10


class PrivateFolder:
    """A temporary folder that its owner removes, or the next start of this user once the owner was killed.

    It gets its name when it is locked already, so that two starts at once never remove each other's folder. Crash
    before that: an unfinished folder is left, which the next start removes as well.

    Raises:
      OSError: The temporary folder cannot be used.
    """

    def __init__(self) -> None:
        # not the unfinished folder's name: another user who has seen that could create this folder first
        self.path: Final = Path(tempfile.gettempdir(), _PREFIX + secrets.token_hex(8))
        while not self._create(Path(tempfile.mkdtemp(prefix=_UNFINISHED))):
            pass

    def _create(self, unfinished: Path) -> bool:
        """Lock a new folder and give it its name; return False if another start took it for an abandoned one."""
        with contextlib.ExitStack() as opened:
            try:
                self._folder = _open_folder(opened, unfinished)
                self._lock = os.open(_LOCK, _FILE | os.O_CREAT, 0o600, dir_fd=self._folder)
                opened.callback(os.close, self._lock)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unfinished.rename(self.path)
            except (FileNotFoundError, BlockingIOError):
                return False
            opened.pop_all()
            return True

    def write(self, name: str, data: bytes) -> None:
        """Write a file that only this user may read.

        It gets its name when it is complete. Crash before that: the unfinished file goes with the folder.
        """
        unfinished = f".{name}"
        with os.fdopen(os.open(unfinished, _FILE | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=self._folder), "wb") as file:
            file.write(data)
        os.rename(unfinished, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def remove(self) -> None:
        """Remove it with all that it holds."""
        _empty(self._folder)
        with contextlib.suppress(OSError):
            self.path.rmdir()
        os.close(self._folder)
        os.close(self._lock)


def remove_abandoned() -> None:
    """Remove the folders of this user's processes that were killed: the kernel has released their locks."""
    for path in _found((_PREFIX, _UNFINISHED)):
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            _remove_if_abandoned(opened, path)


def read_in_use(name: str) -> list[bytes]:
    """Return what the file of that name holds in each folder of this user whose owner has not ended."""
    found = []
    for path in _found((_PREFIX,)):
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            folder = _open_folder(opened, path)
            if _is_in_use(opened, folder):
                found.append(_read(opened, folder, name))
    return found


def _found(prefixes: tuple[str, ...]) -> Iterator[Path]:
    """Iterate over what belongs to this user and has such a name; it may be anything."""
    found = []
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        found = [entry for entry in entries if entry.name.startswith(prefixes)]
    for entry in found:
        with contextlib.suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                yield Path(entry.path)


def _is_in_use(opened: contextlib.ExitStack, folder: int) -> bool:
    lock = os.open(_LOCK, _FILE, dir_fd=folder)
    opened.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two processes that look at once are no owners
    except BlockingIOError:
        return True
    return False


def _read(opened: contextlib.ExitStack, folder: int, name: str) -> bytes:
    """Read a file that only this user may read.

    Raises:
      OSError: It is something else.
    """
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    opened.callback(os.close, file)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{name} is not a file of this user alone")
    return os.read(file, _FILE_LIMIT)


def _remove_if_abandoned(opened: contextlib.ExitStack, path: Path) -> None:
    folder = _open_folder(opened, path)
    try:
        lock = os.open(_LOCK, _FILE, dir_fd=folder)
    except FileNotFoundError:
        if path.name.startswith(_UNFINISHED):
            path.rmdir()  # an error if it holds anything: then it is not one of ours
        return
    opened.callback(os.close, lock)
    if stat.S_ISREG(os.fstat(lock).st_mode):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _empty(folder)
        path.rmdir()


def _open_folder(opened: contextlib.ExitStack, path: Path) -> int:
    """Open a folder that only this user may use.

    Raises:
      OSError: It is something else.
    """
    folder = os.open(path, _FOLDER)
    opened.callback(os.close, folder)
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path} is open to other users")
    return folder


def _empty(folder: int) -> None:
    """Remove what a folder holds; the lock last, so that the next start goes on if this process is killed meanwhile."""
    for name in sorted(os.listdir(folder), key=lambda name: name == _LOCK):
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
        except FileNotFoundError:
            pass
