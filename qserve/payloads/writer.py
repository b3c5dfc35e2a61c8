"""The segments that one process writes: taken, filled, published, used again, and given back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from qserve.payloads.mapping import Mapping
from qserve.payloads.shm_folder import FILE, ShmFolder, stat_of
from qserve.wire.claim import Part

IDLE_S = 10.0
"""After how long without use a segment, or a reader's mapping of one, is given back."""
IDLE_BYTES = 256 << 20
"""The most bytes of free segments that a process keeps, and of mappings that it does not read."""
_SMALLEST = 1 << 16
_TRIES = 8
_COPIED_AT_ONCE = 4 << 20
"""Others may run between two copies of so many bytes, since a copy holds the interpreter's lock."""
_GROWN_BY = 1 << 20
_WRITTEN_AT_ONCE = 1 << 30
"""The system writes less than 2 GiB at once."""


class Writer:
    """The segments that this process writes."""

    def __init__(self, folder: ShmFolder, limit: int | None) -> None:
        self.folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        while (found := _locked_folder(folder.path / "p")) is None:
            pass
        self._path, self._descriptor = found
        self._busy: defaultdict[int, deque[Segment]] = defaultdict(deque)
        self._free: defaultdict[int, list[Segment]] = defaultdict(list)
        self._new: dict[str, Path] = {}
        self._count = 0

    def take(self, size: int) -> Segment:
        """Return a segment that nobody reads, with room for so many bytes.

        Raises:
          OSError: There is no room.
        """
        capacity = _capacity(size)
        with self._lock:
            self._look(capacity, _TRIES)
            free = self._free[capacity]
            return free.pop() if free else self._new_segment(capacity, size)

    def _look(self, capacity: int, count: int) -> None:
        """Look at the segments that were taken the longest ago, and move those that are free."""
        busy = self._busy[capacity]
        for _ in range(min(count, len(busy))):
            segment = busy.popleft()
            (self._free[capacity] if segment.is_free() else busy).append(segment)

    def _gather(self) -> None:
        for capacity, busy in list(self._busy.items()):
            self._look(capacity, len(busy))

    def _new_segment(self, capacity: int, size: int) -> Segment:
        self.check_room(size)
        self._count += 1
        return Segment(self._path / str(self._count), capacity)

    def check_room(self, size: int) -> None:
        """Raise OSError if the memory has no room for so many bytes more."""
        space, used = os.statvfs(self.folder.path), self.folder.used()
        left = space.f_bavail * space.f_frsize
        limit = self._limit if self._limit is not None else (used + left) // 2
        if size > left or used + size > limit:
            raise OSError(errno.ENOSPC, f"the {limit} bytes of QSERVE_SHM_LIMIT on this host are used")

    def publish(self, segment: Segment, name: str) -> None:
        """Give a segment that was taken and filled the name of its value."""
        new = self._path / f"new-{name}"
        os.link(segment.path, new)
        self._new[name] = new
        os.link(segment.path, self.folder.path / "v" / name)
        with self._lock:  # not before: it was free until now
            self._busy[segment.capacity].append(segment)

    def settled(self, names: Iterable[str]) -> None:
        for name in names:
            new = self._new.pop(name, None)
            if new is not None:
                with contextlib.suppress(OSError):
                    new.unlink()

    def drop(self, segment: Segment) -> None:
        """Remove a segment that was taken and could not be filled."""
        with contextlib.suppress(OSError):
            segment.path.unlink()

    def trim(self) -> None:
        with self._lock:
            self._gather()
            before, size = time.monotonic() - IDLE_S, 0
            for segment in sorted(self._all_free(), key=lambda one: -one.used_at):
                size += segment.allocated
                if size > IDLE_BYTES or segment.used_at < before:
                    self._remove(segment)

    def give_back(self) -> None:
        """Give back all segments that nobody reads."""
        with self._lock:
            self._gather()
            for segment in self._all_free():
                self._remove(segment)

    def _all_free(self) -> list[Segment]:
        return [segment for some in self._free.values() for segment in some]

    def _remove(self, segment: Segment) -> None:
        self._free[segment.capacity].remove(segment)
        with contextlib.suppress(OSError):
            segment.path.unlink()

    def let_go(self) -> None:
        """In a forked child: leave the lock to the parent."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def remove(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self.let_go()


class Segment:
    """One file of a writer, with room for so many bytes."""

    def __init__(self, path: Path, capacity: int) -> None:
        self.path: Final = path
        self.capacity: int = capacity
        self.allocated: int = 0
        self.used_at: float = time.monotonic()
        self._mapping: Mapping | None = None
        descriptor = os.open(path, FILE | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, capacity)
        finally:
            os.close(descriptor)

    def is_free(self) -> bool:
        """Return whether it has no name and no reader. Then it will have none until it is published again."""
        found = stat_of(self.path)
        if found is None or found.st_nlink > 1:
            return False
        descriptor = os.open(self.path, FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def grow(self, descriptor: int, size: int) -> None:
        """Take memory for so many bytes; OSError if there is none."""
        if size > self.capacity:
            self.capacity = _capacity(size)
            os.ftruncate(descriptor, self.capacity)
        # also what is between parts: to write by a mapping where no page can be had would be the end of this process
        os.posix_fallocate(descriptor, self.allocated, size - self.allocated)
        self.allocated, self._mapping = size, None

    def write(self, parts: Iterable[Part], size: int) -> None:
        """Write bytes at their offsets, the last of which end at ``size``; OSError if there is no memory."""
        self.used_at = time.monotonic()
        if self._mapping is None or size > self.allocated:
            descriptor = os.open(self.path, FILE)
            try:
                if size > self.allocated:
                    self.grow(descriptor, size)
                    # not through a mapping: that has a page fault for each page when it is new
                    for offset, data in parts:
                        _write(descriptor, data, offset)
                    return
                self._mapping = Mapping(descriptor, self.allocated, is_writable=True)
            finally:
                os.close(descriptor)
        whole = self._mapping.view()
        for offset, data in parts:
            for begin in range(0, len(data), _COPIED_AT_ONCE):
                piece = data[begin : begin + _COPIED_AT_ONCE]
                whole[offset + begin : offset + begin + len(piece)] = piece


class Filling:
    """A segment that is filled piece by piece, and takes memory as the pieces come.

    Parameters:
      begin: Where the first piece goes.

    Raises:
      OSError: There is no room; also raised by ``write``.
    """

    def __init__(self, writer: Writer, begin: int, size: int) -> None:
        self._descriptor = -1
        self._writer = writer
        self._begin = begin
        self.end: int = begin
        self.segment: Final = writer.take(begin + size)
        self._descriptor = os.open(self.segment.path, FILE)

    def write(self, piece: memoryview) -> None:
        segment, end = self.segment, self.end + len(piece)
        if end > segment.allocated:
            wanted = max(end, min(end + _GROWN_BY, segment.capacity))
            self._writer.check_room(wanted - segment.allocated)
            segment.grow(self._descriptor, wanted)
        _write(self._descriptor, piece, self.end)
        self.end = end

    def pieces(self) -> Iterator[memoryview]:
        """Return again what was written."""
        for begin in range(self._begin, self.end, _GROWN_BY):
            yield memoryview(os.pread(self._descriptor, min(_GROWN_BY, self.end - begin), begin))

    def finish(self, name: str, head: bytes) -> None:
        """Write what is in front of the pieces, and publish the value."""
        _write(self._descriptor, memoryview(head), 0)
        self._writer.publish(self.segment, name)
        self.close()

    def abort(self) -> None:
        self._writer.drop(self.segment)
        self.close()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


def _capacity(size: int) -> int:
    """Return the room of the segments for values of a size: a quarter more than that at most."""
    power = max(_SMALLEST, 1 << (size - 1).bit_length() - 1)
    step = power // 4
    return max(_SMALLEST, -(-size // step) * step)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + _WRITTEN_AT_ONCE], offset + done)


def _locked_folder(within: Path) -> tuple[Path, int] | None:
    """Return a new folder, and the descriptor of its lock; None if a sweep took it for that of a dead writer."""
    path = within / secrets.token_hex(8)
    path.mkdir(mode=0o700)
    with contextlib.ExitStack() as opened, contextlib.suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(path / "lock", FILE | os.O_CREAT, 0o600)
        opened.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), (path / "lock").stat()):
            opened.pop_all()
            return path, descriptor
    return None
