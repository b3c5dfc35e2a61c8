"""The files of a stack in the user's folder: written, compared, and made once where they are secret."""

from __future__ import annotations

import difflib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qserve.exceptions import UsageProblem
from qserve.stacks.image import OWN_FOLDER

SECRETS_FOLDER = "secrets"
_OURS = "# Written by `qserve "
_SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "qserve", "workers", "gateway")
"""What qserve is installed from, in a checkout of it."""


def theirs(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the files that no such command has written, or whose first line the user has removed."""
    return [name for name in names if (text := _read(folder / name)) and not text.startswith(_OURS)]


def write(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Write files, and return the names of those that have changed."""
    changed = [name for name, text in texts.items() if _read(folder / name) != text]
    for name in changed:
        (folder / name).write_text(texts[name], encoding="utf-8")
    return changed


def difference(folder: Path, texts: Mapping[str, str]) -> str:
    """Return in which lines the files differ from what they should be; "" when they do not."""
    found: list[str] = []
    for name, text in texts.items():
        before = _read(folder / name).splitlines(keepends=True)
        found += difflib.unified_diff(before, text.splitlines(keepends=True), name, f"{name} (should be)")
    return "".join(found)


def keep_out(path: Path, lines: Iterable[str], created: str = "") -> None:
    """Add lines to a file that says what is ignored; those that it has already stay as they are."""
    text = _read(path) or created
    known = {line.strip().rstrip("/") for line in text.splitlines()}
    missing = [line for line in lines if line.rstrip("/") not in known]
    if missing or not path.exists():
        end = "\n" if text and not text.endswith("\n") else ""
        path.write_text(text + end + "".join(f"{line}\n" for line in missing), encoding="utf-8")


def make_secrets(folder: Path, names: Iterable[str]) -> list[str]:
    """Make those secrets that are not there yet, and return their names.

    Only the user may enter the folder. The files themselves are readable, because a container's user is another one.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    made = []
    for name in names:
        try:
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(file, "w") as opened:
            opened.write(secrets.token_hex(32))
            os.fchmod(file, 0o644)
        made.append(name)
    return made


def own_requirement(version: str) -> str:
    """Return what pip installs as qserve: its version, or what is in ``./.qserve`` if it did not come from an index."""
    origin = _origin()
    if origin is None:
        return f"qserve-celery=={version}"
    return f"./{OWN_FOLDER}/{origin.name}" if origin.is_file() else f"./{OWN_FOLDER}"


def copy_own_code(folder: Path) -> None:
    """Copy qserve's own code, or its wheel, to where the images are built from, if it did not come from an index."""
    origin = _origin()
    if origin is None:
        return
    own = folder / OWN_FOLDER
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    if origin.is_file():
        shutil.copy2(origin, own)
        return
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", "Dockerfile")
    for name in _SOURCES:
        source = origin / name
        if source.is_dir():
            shutil.copytree(source, own / name, ignore=ignored)
        elif source.is_file():
            shutil.copy2(source, own / name)


def _origin() -> Path | None:
    """Return the checkout or the file that this qserve was installed from; see PEP 610."""
    try:
        text = distribution("qserve-celery").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    found = json.loads(text) if text else {}
    path = Path(unquote(urlsplit(found.get("url", "")).path))
    return path if found.keys() & {"dir_info", "archive_info"} and path.exists() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"{path} cannot be read: {error}") from error
