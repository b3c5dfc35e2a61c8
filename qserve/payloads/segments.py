"""The memory of the host: values are files in ``/dev/shm``, which are used again once nobody reads them.

A fresh file of 64 MB costs 35 ms in page faults, a used one that is mapped already 6 ms. So a process keeps those that
it has written, its **segments**, and writes its next values into the ones that are free.

    /dev/shm/qserve-<user>-<digest of the installation>/
        about                   random bytes that name this folder, and the folder of the embedded broker
        v/<name>                a value: a link to the segment that holds it
        p/<writer>/lock         locked by the writer, as long as its process lives
        p/<writer>/<number>     a segment; its first page holds the nonce of the claim
        p/<writer>/new-<name>   one more link to a segment: the broker may not know its value yet

The number of links says what state a segment is in: 1, it is free if nobody reads it; 2, it holds a value; 3, that
value is new. A reader holds a shared lock on the file. The writer takes a segment whose only link is its own, and which
it can lock alone: so what somebody reads never changes. All locks end with their processes, however these end.

Crash of a writer: its folder is removed by the next sweep. Its values keep their names until the broker does not know
them any more. Crash between the two links of a new value: the value has no name, and goes with the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from qserve.base.forks import on_fork
from qserve.exceptions import PayloadError, ValueLost, ValueUnreachable
from qserve.payloads.mapping import Mapping
from qserve.payloads.shm_folder import (
    SHM,
    ShmFolder,
    bytes_of_writers,
    entries,
    folder_name,
    host_name,
    is_own,
    remove_abandoned,
    remove_if_dead,
    stat_of,
)
from qserve.payloads.tier import PIECE_BYTES, Filler, IsKnown, TierFull, TierStats
from qserve.payloads.writer import IDLE_BYTES, IDLE_S, Filling, Writer
from qserve.wire.claim import MEMORY, Claim, Part

VIEWS_LIMIT = 256
"""Each value that is read holds a descriptor, of which a process has 1024 by default; further ones are copied."""
_PAGE = 4096
_NONCE_BYTES = 16
_VALUE = re.compile(r"[0-9a-f]{32}")


class Segments:
    """The tier for values in the memory of the host.

    Parameters:
      installation: Returns what this installation differs by from all others that this user has on this host.
      embedded_in: The folder of the embedded broker, with which the values end; "" for another broker.
      limit: The most bytes that all processes of this installation on this host use; None for half of what is free.
      root: The folder of the system for files in memory.
    """

    name = MEMORY
    heavy_from = 32 << 20

    def __init__(
        self, installation: Callable[[], str], embedded_in: str = "", limit: int | None = None, root: Path = SHM
    ) -> None:
        self._installation = installation
        self._embedded_in = embedded_in
        self._limit = limit
        self._root = root
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._writer: Writer | None = None
        self._former: list[Writer] = []
        self._folders: dict[str, ShmFolder] = {}
        self._mapped: OrderedDict[tuple[int, int], _Cached] = OrderedDict()
        self._unknown: set[str] = set()

    def leave_to_parent(self) -> None:
        """In a forked child: write segments of its own. What the parent has read stays locked until both let go."""
        for writer in filter(None, (self._writer, *self._former)):
            writer.let_go()
        self._begin()

    # -- writing -----------------------------------------------------------------------------------

    def put(self, parts: Sequence[Part], size: int) -> Claim:
        try:
            writer = self._own_writer()
            try:
                return self._put_by(writer, parts, size)
            except OSError as error:
                if isinstance(error, FileNotFoundError):  # somebody has emptied the memory
                    self._forget_writer(writer)
                    writer = self._own_writer()
                self.give_back(writer)
                return self._put_by(writer, parts, size)
        except OSError as error:
            raise TierFull(str(error)) from error

    def filler(self, size: int | None) -> Filler:
        try:
            return _Filler(self, self._own_writer(), size or 0)
        except OSError as error:
            raise TierFull(str(error)) from error

    def _put_by(self, writer: Writer, parts: Sequence[Part], size: int) -> Claim:
        name, nonce = secrets.token_hex(16), secrets.token_bytes(_NONCE_BYTES)
        segment = writer.take(size + _PAGE)
        try:
            segment.write([(0, memoryview(nonce)), *[(_PAGE + offset, data) for offset, data in parts]], size + _PAGE)
            writer.publish(segment, name)
        except OSError:
            writer.drop(segment)
            raise
        return Claim(MEMORY, writer.folder.place, name, size, nonce)

    def give_back(self, writer: Writer) -> None:
        """Give back all memory that nobody uses."""
        with self._lock:
            self._drop_mapped(0)
        writer.give_back()

    def _own_writer(self) -> Writer:
        folder = self._folder_name()
        with self._lock:
            if self._writer is None or self._writer.folder.path.name != folder:
                if self._writer is not None:
                    self._former.append(self._writer)  # of a broker that has lost its data
                self._writer = Writer(self._folder(folder), self._limit)
            return self._writer

    def _forget_writer(self, writer: Writer) -> None:
        with self._lock:
            self._folders.pop(writer.folder.path.name, None)
            if self._writer is writer:
                self._writer = None
        writer.remove()

    def _folder_name(self) -> str:
        digest = hashlib.sha256(self._installation().encode()).hexdigest()
        return folder_name(digest[:16])

    def _folder(self, name: str) -> ShmFolder:
        if name not in self._folders:
            self._folders[name] = ShmFolder(self._root / name, self._embedded_in)
        return self._folders[name]

    @property
    def place(self) -> str:
        """The host's name, the token of its memory, and the folder of this installation there.

        Two containers with one token share their memory.

        Raises:
          OSError: The folder is not there and cannot be created, or belongs to somebody else.
        """
        with self._lock:
            return self._folder(self._folder_name()).place

    def settled(self, names: Iterable[str]) -> None:
        for writer in filter(None, (self._writer, *self._former)):
            writer.settled(names)

    def forget(self, claims: Iterable[Claim]) -> None:
        names = [claim.name for claim in claims]
        for claim in claims:
            with contextlib.suppress(OSError, ValueLost, ValueUnreachable):
                self._path_of(claim).unlink()
        self.settled(names)

    # -- reading -----------------------------------------------------------------------------------

    def get(self, claim: Claim) -> memoryview:
        held = _Held(self._path_of(claim), claim)
        found = os.fstat(held.descriptor)
        if found.st_size < _PAGE + claim.size:
            raise PayloadError(f"a stored value has {found.st_size} bytes; its claim says {claim.size}")
        with self._lock:
            known = self._mapped.pop((found.st_dev, found.st_ino), None)
            if known is None or known.mapping.size < found.st_size:  # it may have grown for its next value
                # by a descriptor of its own: a mapping keeps the lock of the one that it was made with
                own = os.open(f"/proc/self/fd/{held.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    known = _Cached(Mapping(own, found.st_size))
                finally:
                    os.close(own)
            known.used_at = time.monotonic()
            self._mapped[found.st_dev, found.st_ino] = known
            self._drop_mapped(IDLE_BYTES)
        view = known.mapping.view(held, partial(_changeable, held)).toreadonly()
        if view[:_NONCE_BYTES] != claim.digest:
            raise PayloadError("a stored value is not the one that was claimed")
        value = view[_PAGE : _PAGE + claim.size]
        return value if _Held.count < VIEWS_LIMIT else memoryview(bytes(value))

    def pieces(self, claim: Claim) -> Iterator[bytes]:
        # neither mapped nor held in between: a slow reader costs no memory, and no descriptor
        path = self._path_of(claim)
        for begin in range(0, claim.size, PIECE_BYTES):
            held, length = _Held(path, claim), min(PIECE_BYTES, claim.size - begin)
            piece = os.pread(held.descriptor, length, _PAGE + begin)
            if os.pread(held.descriptor, _NONCE_BYTES, 0) != claim.digest or len(piece) < length:
                raise PayloadError("a stored value is not the one that was claimed")
            del held
            yield piece

    def _path_of(self, claim: Claim) -> Path:
        """Return where a value is; ValueLost or ValueUnreachable if it is not here."""
        host, token, folder = claim.place.split("/")
        try:
            with self._lock:
                here = self._folders.get(folder) or ShmFolder.found(self._root / folder)
                self._folders[folder] = here
        except OSError:
            here = None
        if here is None or here.token != token:
            if host == host_name():
                raise _lost(claim)
            raise ValueUnreachable(
                f"a value of {claim.size} bytes is in the memory of the host {host!r}, which {host_name()!r}"
                " cannot read: set QSERVE_PAYLOADS to a store that both reach, such as QSERVE_PAYLOADS=broker"
            )
        return here.path / "v" / claim.name

    def _drop_mapped(self, most: int, before: float = 0.0) -> None:
        """Forget mappings: all that were not used since ``before``, and the oldest until ``most`` bytes are left.

        What is being read stays mapped until its last reader is done.
        """
        size = sum(known.mapping.size for known in self._mapped.values())
        for place, known in list(self._mapped.items()):
            if size <= most and known.used_at > before:
                break
            size -= known.mapping.size
            del self._mapped[place]

    # -- upkeep ------------------------------------------------------------------------------------

    def trim(self) -> None:
        with self._lock:
            self._drop_mapped(IDLE_BYTES, time.monotonic() - IDLE_S)
        for writer in filter(None, (self._writer, *self._former)):
            writer.trim()

    def sweep(self, is_known: IsKnown) -> None:
        """Remove the values that nobody wants, what dead writers have left, and folders without an installation.

        A value goes when the broker has not known it twice: the process that has told the broker of it may be dead,
        and its command still on the way.
        """
        folder = self._root / self._folder_name()
        if is_own(folder):
            for writer in entries(folder / "p"):
                remove_if_dead(Path(writer.path))
            with contextlib.suppress(OSError):
                os.utime(folder / "v")
            names = [entry.name for entry in entries(folder / "v") if _is_settled(entry)]
            unknown = (
                {name for name, known in zip(names, is_known(names), strict=True) if not known} if names else set()
            )
            for name in unknown & self._unknown:
                with contextlib.suppress(OSError):
                    (folder / "v" / name).unlink()
            self._unknown = unknown
        remove_abandoned(folder.name, self._root)

    def stats(self) -> TierStats:
        folder = self._root / self._folder_name()
        values = [found for entry in entries(folder / "v") if (found := stat_of(entry)) is not None]
        bytes_of = bytes_of_writers(folder) | {found.st_ino: found.st_blocks * 512 for found in values}
        oldest = min((found.st_mtime for found in values), default=time.time())
        return TierStats(MEMORY, len(values), sum(bytes_of.values()), max(0.0, time.time() - oldest))

    def close(self) -> None:
        for writer in filter(None, (self._writer, *self._former)):
            writer.remove()
        self._begin()


class _Filler:
    def __init__(self, segments: Segments, writer: Writer, size: int) -> None:
        self._segments = segments
        self._writer = writer
        self._filling = Filling(writer, _PAGE, size)
        self.size = 0

    def write(self, piece: memoryview) -> None:
        try:
            try:
                self._filling.write(piece)
            except OSError:
                self._segments.give_back(self._writer)
                self._filling.write(piece)
        except OSError as error:
            raise TierFull(str(error)) from error
        self.size += len(piece)

    def written(self) -> Iterator[memoryview]:
        return self._filling.pieces()

    def finish(self) -> Claim:
        name, nonce = secrets.token_hex(16), secrets.token_bytes(_NONCE_BYTES)
        try:
            self._filling.finish(name, nonce)
        except OSError as error:
            raise TierFull(str(error)) from error
        return Claim(MEMORY, self._writer.folder.place, name, self.size, nonce)

    def abort(self) -> None:
        self._filling.abort()


class _Held:
    """A shared lock on a value, as long as the object lives.

    It is never unlocked, only closed: a child that is forked meanwhile has the descriptor as well, and so the lock.
    """

    count = 0
    """How many there are in this process."""

    def __init__(self, path: Path, claim: Claim) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            _Held.count += 1
            # the writer locks it only when the name is gone; and so it is gone if the name is that of another file
            fcntl.flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self.descriptor), path.stat()):
                raise _lost(claim)
        except (FileNotFoundError, BlockingIOError) as error:
            raise _lost(claim) from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            _Held.count -= 1


def _changeable(held: _Held, begin: int, part: memoryview) -> memoryview:
    """Return a part of a segment in memory of which each page is copied when it is changed for the first time."""
    before = begin % _PAGE
    size = before + len(part)
    return Mapping(held.descriptor, size, begin=begin - before).view(held)[before:]


class _Cached:
    """A mapping of a segment whose next value may be read here as well."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.used_at = time.monotonic()


def is_possible(root: Path = SHM) -> bool:
    """Return whether this host has such a memory."""
    return sys.platform == "linux" and os.access(root, os.W_OK)


def _lost(claim: Claim) -> ValueLost:
    host = claim.place.partition("/")[0]
    return ValueLost(
        f"a value of {claim.size} bytes is no longer in the memory of the host {host!r}: it was restarted, or the"
        " request has ended; QSERVE_PAYLOADS names stores that outlive a host"
    )


def _is_settled(entry: os.DirEntry[str]) -> bool:
    found = stat_of(entry)
    return found is not None and found.st_nlink < 3 and _VALUE.fullmatch(entry.name) is not None
