"""Pickles by value whose code still knows the file that it was written in."""

from __future__ import annotations

import io
from collections import ChainMap
from types import CodeType
from typing import Any

import cloudpickle

_NO_FILE = "<dynamic-code>"


def _reduce_code(code: CodeType) -> Any:
    # since 3.1.3 cloudpickle names no file, so that pickles are the same on all machines; people read tracebacks
    make, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return make, tuple(code.co_filename if part == _NO_FILE else part for part in parts)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)


def dumps(value: Any) -> bytes:
    """Pickle a value, with the code of its classes and functions where other processes cannot import them."""
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()
