"""What a method and its caller must agree on about streams, in words."""

from __future__ import annotations

import inspect
from typing import Any


def is_generator(value: Any) -> bool:
    """Whether a value is a running generator, sync or async."""
    return inspect.isgenerator(value) or inspect.isasyncgen(value)


def plain_result_of_stream(method: str) -> TypeError:
    """For ``options(stream=True)`` on a method that is no generator."""
    return TypeError(
        f"Called method {method!r} with `handle.options(stream=True)` but it did not return a generator."
        " Call it without stream=True, or make it yield its items."
    )


def stream_of_plain_call(method: str) -> TypeError:
    """For a generator method that was called without ``options(stream=True)``."""
    return TypeError(
        f"Method {method!r} returned a generator. You must use `handle.options(stream=True)` to call generators on"
        " a deployment, and iterate what `remote` returns."
    )
