"""The files of one folder or object store, by the library fsspec, in this process."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from qserve.exceptions import StoreUnavailable


class Found(NamedTuple):
    """A file of the folder: its name, its bytes, and when it was written, in seconds since 1970; 0 if not known."""

    name: str
    size: int
    time: float


class Files(Protocol):
    """What can be done with the files. Each method raises whatever the library of that file system raises."""

    def write(self, name: str, data: Iterable[bytes | memoryview]) -> None: ...
    def read(self, name: str, begin: int, end: int) -> bytes: ...
    def remove(self, name: str) -> None: ...
    def found(self) -> list[Found]: ...
    def close(self) -> None: ...


class FsspecFiles:
    """The files of the folder at a URL; nothing is opened before it is needed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None

    def _open(self) -> tuple[Any, str]:
        with self._lock:
            if self._opened is None:
                self._opened = _opened(self._url)
            return self._opened

    def write(self, name: str, data: Iterable[bytes | memoryview]) -> None:
        files, folder = self._open()
        with files.open(f"{folder}/{name}", "wb") as file:
            for piece in data:
                file.write(piece)

    def read(self, name: str, begin: int, end: int) -> bytes:
        files, folder = self._open()
        return files.cat_file(f"{folder}/{name}", start=begin, end=end)  # type: ignore[no-any-return]

    def remove(self, name: str) -> None:
        files, folder = self._open()
        try:
            files.rm_file(f"{folder}/{name}")
        except FileNotFoundError:
            return

    def found(self) -> list[Found]:
        files, folder = self._open()
        try:
            listed = files.ls(folder, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return [Found(one["name"].rpartition("/")[2], one["size"] or 0, _time_of(one)) for one in listed]

    def close(self) -> None:
        self._opened = None


def _opened(url: str) -> tuple[Any, str]:
    try:
        core = importlib.import_module("fsspec.core")
    except ImportError as error:
        raise StoreUnavailable("install qserve-celery[storage] for folders in QSERVE_PAYLOADS") from error
    files, path = core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    files.makedirs(path, exist_ok=True)
    return files, path


def _time_of(found: dict[str, Any]) -> float:
    time = found.get("mtime") or found.get("LastModified") or found.get("created") or 0.0
    return time.timestamp() if hasattr(time, "timestamp") else time
