"""A folder or object store as a tier, by the library fsspec: ``file:///mnt/shared``, ``s3://bucket/prefix``.

A value is one object, ``<url>/<namespace>/<name>``. Crash before the broker accepts the command that tells it of the
value: the next sweeps find an object that the broker does not know, and remove it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from qserve.base.forks import on_fork
from qserve.base.log import get_logger
from qserve.base.turns import Turns
from qserve.exceptions import PayloadError, StoreUnavailable, ValueLost, ValueUnreachable
from qserve.payloads.folder_files import Files, Found, FsspecFiles
from qserve.payloads.folder_process import ProcessFiles
from qserve.payloads.tier import PIECE_BYTES, Filler, IsKnown, TierFull, TierStats, pieces
from qserve.wire.claim import FOLDER, Claim, Part

T = TypeVar("T")
log: Final = get_logger(__name__)
UNKNOWN_FOR_S = 600.0
"""For how long the broker may not know an object that is being told of."""
_COPIED_BYTES = 8 << 20
_VALUE = re.compile(r"[0-9a-f]{32}")


class Folder:
    """The tier for values in a folder or an object store.

    Parameters:
      url: Where that is, in the words of fsspec.
      namespace: Keeps installations that share it apart.
    """

    heavy_from = 0

    def __init__(self, url: str, namespace: str) -> None:
        self.name = url
        self._url = f"{url.rstrip('/')}/{namespace.replace('/', '%2F')}"
        self._place = hashlib.sha256(self._url.encode()).hexdigest()[:16]
        self._turns = Turns("removing a large value", log)
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._opened: Files | None = None
        self._remover: ThreadPoolExecutor | None = None
        self._unknown: dict[str, float] = {}

    def leave_to_parent(self) -> None:
        """In a forked child: open it again, since most of what fsspec opens has threads."""
        self._begin()

    def put(self, parts: Sequence[Part], size: int) -> Claim:
        return self.write(pieces(parts, size, _COPIED_BYTES), size)

    def filler(self, size: int | None) -> Filler:
        return _Filler(self)

    def write(self, data: Iterable[bytes | memoryview], size: int) -> Claim:
        """Store a value; TierFull if that is not possible."""
        name, digest = secrets.token_hex(16), hashlib.sha256()

        def digested() -> Iterator[bytes | memoryview]:
            for piece in data:
                digest.update(piece)
                yield piece

        try:
            self._files.write(name, digested())
        except Exception as error:
            raise TierFull(f"{self.name} cannot be written to: {error}") from error
        return Claim(FOLDER, self._place, name, size, digest.digest())

    def get(self, claim: Claim) -> memoryview:
        with self._reading(claim):
            data = self._files.read(claim.name, 0, claim.size)
        _check(data, hashlib.sha256(data), claim)
        return memoryview(data).toreadonly()

    def pieces(self, claim: Claim) -> Iterator[bytes]:
        digest, end = hashlib.sha256(), 0
        while end < claim.size:
            with self._reading(claim):
                piece = self._files.read(claim.name, end, min(end + _COPIED_BYTES, claim.size))
            digest.update(piece)
            end += len(piece)
            if not piece or end >= claim.size:
                _check(piece, digest, claim)
            for begin in range(0, len(piece), PIECE_BYTES):
                yield piece[begin : begin + PIECE_BYTES]

    @contextmanager
    def _reading(self, claim: Claim) -> Iterator[None]:
        if not self.has(claim):
            raise ValueUnreachable(
                f"a value of {claim.size} bytes is in another folder than {self.name}: set QSERVE_PAYLOADS to the same"
                " stores in every process"
            )
        try:
            yield
        except FileNotFoundError as error:
            raise ValueLost(f"a value of {claim.size} bytes is no longer in {self.name}") from error
        except Exception as error:
            raise StoreUnavailable(f"{self.name} cannot be read: {error}") from error

    def has(self, claim: Claim) -> bool:
        """Return whether a value was stored here."""
        return claim.place == self._place

    def settled(self, names: Iterable[str]) -> None:
        """Do nothing: who sweeps asks the broker."""

    def forget(self, claims: Iterable[Claim]) -> None:
        """Remove values, in a thread. Crash before that: they are swept."""
        names = [claim.name for claim in claims if self.has(claim)]
        with self._lock:
            if self._remover is None:
                self._remover = ThreadPoolExecutor(1, "qserve-payloads")
        self._remover.submit(self._remove, names)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with self._turns:
                self._files.remove(name)

    def sweep(self, is_known: IsKnown) -> None:
        names = [found.name for found in self._found() if _VALUE.fullmatch(found.name)]
        known = is_known(names) if names else []
        now = time.monotonic()
        self._unknown = {
            name: self._unknown.get(name, now) for name, is_one in zip(names, known, strict=True) if not is_one
        }
        self._remove([name for name, since in self._unknown.items() if now - since >= UNKNOWN_FOR_S])

    def _found(self) -> list[Found]:
        try:
            return self._files.found()
        except Exception as error:
            raise StoreUnavailable(f"{self.name} cannot be read: {error}") from error

    def trim(self) -> None:
        """Do nothing."""

    def stats(self) -> TierStats:
        found = self._found()
        oldest = min((one.time for one in found if one.time), default=time.time())
        return TierStats(self.name, len(found), sum(one.size for one in found), max(0.0, time.time() - oldest))

    def close(self) -> None:
        """Wait until what is to be removed is."""
        if self._remover is not None:
            self._remover.shutdown()
        if self._opened is not None:
            self._opened.close()
        self._begin()

    @property
    def _files(self) -> Files:
        with self._lock:
            if self._opened is None:
                monkey = sys.modules.get("gevent.monkey")
                is_patched = monkey is not None and monkey.is_module_patched("threading")
                self._opened = ProcessFiles(self._url) if is_patched else FsspecFiles(self._url)
            return self._opened


class _Filler:
    """Gathers a value in a temporary file: an incomplete one cannot be read again from an object store."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by finish or abort
        self.size = 0

    def write(self, piece: memoryview) -> None:
        try:
            self._file.write(piece)
        except OSError as error:
            raise TierFull(str(error)) from error
        self.size += len(piece)

    def written(self) -> Iterator[bytes]:
        self._file.seek(0)
        while piece := self._file.read(_COPIED_BYTES):
            yield piece

    def finish(self) -> Claim:
        claim = self._folder.write(self.written(), self.size)
        self._file.close()
        return claim

    def abort(self) -> None:
        self._file.close()


def _check(data: bytes, digest: Any, claim: Claim) -> None:
    if not data or digest.digest() != claim.digest:
        raise PayloadError("a stored value in a folder is not the one that was claimed")
