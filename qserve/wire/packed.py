"""The shape of packed data: which values msgpack writes by itself, and how deep they may be nested."""

from __future__ import annotations

from itertools import chain
from types import NoneType
from typing import Any

import msgpack

from qserve.exceptions import PayloadError

DEPTH_LIMIT = 256
"""How deep a value may be nested, on the wire: a list, a dict and an extension are one level each.

So a tuple or a set is two levels, because it is an extension that holds a list, and a dataclass is three.
"""
LEAVES = frozenset((NoneType, bool, int, float, str, bytes, bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp))
"""The types that msgpack writes by itself and that hold no other value."""
_CONTAINERS = frozenset((list, dict))


def unpack(data: bytes, what: str, depth: int = 16, *, raw: bool = False) -> Any:
    """Return the plain value in ``data``, for the records and messages that have no values of users in them.

    Parameters:
      what: Names the record in the error: "an application's record".
      depth: How deep it may be nested.
      raw: Return text as bytes.

    Raises:
      PayloadError: The bytes are not msgpack, contain an extension, or are nested deeper.
    """
    try:
        value = msgpack.unpackb(data, raw=raw, ext_hook=_refuse_extension)
    except Exception as error:
        raise PayloadError(f"{what} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    if len(data) > depth and is_deeper(value, depth):  # with fewer bytes it cannot be
        raise too_deep(depth)
    return value


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension {code}")


def is_deeper(value: Any, depth: int) -> bool:
    """Return whether lists and dicts are nested more than ``depth`` levels deep; this takes no stack, however deep."""
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(depth):
        lists = [container for container in level if type(container) is list]
        dicts = [container for container in level if type(container) is dict]
        items = [*chain.from_iterable(lists), *chain.from_iterable(map(dict.values, dicts))]
        if _CONTAINERS.isdisjoint(map(type, items)):
            return False
        level = [item for item in items if type(item) in _CONTAINERS]
    return bool(level)


def too_deep(depth: int = DEPTH_LIMIT) -> PayloadError:
    """Return the error for a value that is nested deeper than ``depth``."""
    return PayloadError(
        f"a value is nested too deeply, or contains itself: the limit is {depth} levels, of which a list or a dict"
        " takes one, a tuple or a set two, and a dataclass three"
    )
