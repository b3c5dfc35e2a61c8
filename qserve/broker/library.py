"""The function library that runs in the broker: its text, its name, and the command that loads it.

Functions and not EVALSHA: they survive restarts and FLUSHALL, and an ACL can deny EVAL to everybody.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

Command = tuple[bytes | str | int, ...]

# in this order: a file may use what those before it define
_PARTS = ("requests", "models", "dead_letters", "submit", "commit", "retries", "results", "takeover", "give_back")
_TEXT = "#!lua name=qserve_@\n" + "\n".join(
    (files("qserve.broker") / "lua" / f"{part}.lua").read_text() for part in _PARTS
)
_DIGEST = hashlib.sha256(_TEXT.encode()).hexdigest()[:8]
LIBRARY = _TEXT.replace("@", _DIGEST)
"""The library's text; its digest is part of every name, so two versions can be loaded at once."""
LOAD: Command = ("FUNCTION", "LOAD", "REPLACE", LIBRARY)


def function_name(function: str) -> bytes:
    """The name under which this version's function is called."""
    return f"qserve_{function}_{_DIGEST}".encode()
