"""The environment with the values that are in files: ``NAME_FILE`` says where the value of ``NAME`` is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from qserve.exceptions import QserveException

BROKER_PASSWORD = "QSERVE_BROKER_PASSWORD"
"""The broker's password, for an address that has none."""
_VARIABLE = re.compile("QSERVE_[A-Z_]+_FILE")
_LIMIT = 64 << 10


def read_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables, and for each ``QSERVE_NAME_FILE`` also ``QSERVE_NAME`` with what is in that file.

    A variable that is set itself wins. The newline that ends a file does not belong to the value.

    Raises:
      QserveException: A file cannot be read; the message names the variable.
    """
    found = dict(os.environ if env is None else env)
    for variable, path in [*found.items()]:
        if _VARIABLE.fullmatch(variable) and path and not found.get(name := variable.removesuffix("_FILE")):
            found[name] = _content(variable, path)
    return found


def _content(variable: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LIMIT + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise QserveException(f"{variable}={path!r}: the file cannot be read: {why}") from error
    if len(data) > _LIMIT or b"\0" in data:
        raise QserveException(f"{variable}={path!r}: the file must be text of at most {_LIMIT >> 10} KiB")
    return os.fsdecode(data).removesuffix("\n").removesuffix("\r")


def with_password(url: str, password: str) -> str:
    """Return a broker's address with a password; one that has a password already, or a socket's, as it is."""
    scheme, separator, rest = url.partition("://")
    end = min((rest.index(mark) for mark in "/?#" if mark in rest), default=len(rest))
    user, _, host = rest[:end].rpartition("@")
    if not separator or scheme == "unix" or ":" in user or "password=" in rest[end:]:
        return url
    return f"{scheme}://{user}:{quote(password, safe='')}@{host}{rest[end:]}"
