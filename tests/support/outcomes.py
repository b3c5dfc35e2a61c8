"""The nodes of random graphs; replicas import this, so it needs no test library."""

from __future__ import annotations

import zlib
from typing import Any

import qserve as serve
from qserve.calls.ref import Ref


def outcome(kind: int, args: Any, kwargs: dict[str, Any]) -> int:
    """A value that depends on who was called, and on every argument and its place."""
    return zlib.crc32(repr((kind, list(args), sorted(kwargs.items()))).encode())


def plain(value: Any) -> Any:
    """A container with the values in the place of the refs."""
    if isinstance(value, Ref):
        return serve.get(value)
    if isinstance(value, list | tuple):
        return type(value)(plain(member) for member in value)
    return {key: plain(member) for key, member in value.items()} if isinstance(value, dict) else value


def _finish(kind: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    assert not any(isinstance(value, Ref) for value in (*args, *kwargs.values())), "at the top there are values"
    return outcome(kind, plain(args), plain(kwargs))


@serve.deployment
def sync_function(*args: Any, **kwargs: Any) -> int:
    return _finish(0, args, kwargs)


@serve.deployment
async def async_function(*args: Any, **kwargs: Any) -> int:
    return _finish(1, args, kwargs)


@serve.deployment
class Model:
    def __init__(self, kind: int) -> None:
        self.kind = kind

    def sync(self, *args: Any, **kwargs: Any) -> int:
        return _finish(self.kind, args, kwargs)

    async def later(self, *args: Any, **kwargs: Any) -> int:
        return _finish(self.kind, args, kwargs)
