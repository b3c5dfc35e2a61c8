"""What nodes of random graphs compute; replicas import this, so it needs no test library."""

from __future__ import annotations

import zlib
from typing import Any


def outcome(kind: int, args: list[Any], kwargs: dict[str, Any]) -> int:
    """A value that depends on who was called, and on every argument and its place."""
    return zlib.crc32(repr((kind, args, sorted(kwargs.items()))).encode())
