"""What ``qserve run --reload`` watches: the modules in the folder of the code, and the config file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from qserve.base.parts import RELOAD, advice
from qserve.exceptions import UsageProblem

_POLL_INTERVAL_MS = 200


def changes(folder: str, file: str | None) -> Iterator[list[str]]:
    """Watch from now on; yield the names of files that have changed, and an empty list now and then while none has.

    Parameters:
      folder: Modules in it and below count, but not those of virtual environments and caches.
      file: A config file.

    Raises:
      UsageProblem: The library that watches files is not installed.
    """
    try:
        watchfiles: Any = import_module("watchfiles")  # only this option needs it
    except ImportError as error:
        raise UsageProblem(f"--reload needs watchfiles: {advice(RELOAD)}") from error
    modules = watchfiles.PythonFilter()
    config = None if file is None else Path(file).absolute()

    def counts(change: Any, path: str) -> bool:
        return bool(modules(change, path)) or (config is not None and Path(path) == config)

    folders = {str(Path(folder).absolute()), *(() if config is None else (str(config.parent),))}
    found = watchfiles.watch(
        *sorted(folders), watch_filter=counts, rust_timeout=_POLL_INTERVAL_MS, yield_on_timeout=True
    )
    next(found)  # before this it would not watch yet

    def names() -> Iterator[list[str]]:
        for changed in found:
            yield sorted({Path(path).name for _, path in changed})

    return names()
