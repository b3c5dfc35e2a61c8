"""The files of a program: found below a folder, read as they are, and written all together."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qserve.exceptions import UsageProblem

_CACHES = {"__pycache__", "node_modules", "site-packages", "__pypackages__"}
_CONFIG = re.compile(rb"\bimport_path['\"]?\s*:")


@dataclass(frozen=True)
class Source:
    """A file's text.

    Parameters:
      encoding: That of the file; with a byte order mark, ``utf-8-sig``.
    """

    path: Path
    text: str
    encoding: str


def find(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files of a folder, or the file itself, in order; hidden folders, environments and caches are left out.

    Raises:
      UsageProblem: There is no such file or folder.
    """
    if root.is_file():
        yield root
        return
    if not root.is_dir():
        raise UsageProblem(f"{root} does not exist")
    for folder, below, names in os.walk(root):
        here = Path(folder)
        below[:] = sorted(
            name
            for name in below
            if name not in _CACHES and not name.startswith(".") and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (here / name for name in sorted(names) if name.endswith(suffixes))


def read(path: Path) -> Source:
    """Read a program, with the encoding that it says and the line ends that it has.

    Raises:
      SyntaxError: The encoding is unknown, or the text is not in it.
      OSError: The file cannot be read.
    """
    content = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    try:
        return Source(path, content.decode(encoding), encoding)
    except UnicodeDecodeError as error:
        raise SyntaxError(f"the text is not {encoding}: {error.reason}") from error


def is_config(path: Path) -> bool:
    """Return whether a YAML file is one of Ray Serve's."""
    return _CONFIG.search(path.read_bytes()) is not None


def write(changed: Mapping[Path, tuple[Source, str]]) -> None:
    """Write new texts in the place of old ones, each by one rename; nothing is written if one cannot be prepared.

    Raises:
      UsageProblem: A file could not be written. The message says which, and which have been.
    """
    ready: list[tuple[Path, Path]] = []
    done: list[Path] = []
    path = Path()
    try:
        for path, (source, text) in changed.items():
            real = path.resolve()  # what a link leads to is written, and the link stays
            if real.read_bytes() != source.text.encode(source.encoding):
                raise OSError(0, "it was changed in the meantime")
            handle, name = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
            ready.append((Path(name), path))
            with os.fdopen(handle, "wb") as file:
                file.write(text.encode(source.encoding))
                file.flush()
                os.fsync(file.fileno())
            shutil.copystat(real, name)
            os.utime(name)
        for made, path in ready:
            made.replace(path.resolve())
            done.append(path)
    except OSError as error:
        written = f"written before it: {', '.join(map(str, done))}" if done else "nothing was written"
        raise UsageProblem(f"{path} cannot be written: {error.strerror}; {written}") from error
    finally:
        for made, _ in ready:
            made.unlink(missing_ok=True)
