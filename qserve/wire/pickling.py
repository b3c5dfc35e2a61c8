"""Pickle values that have no code of their own, by value where other processes cannot import their code.

A pickle runs code in the process that reads it, so one is loaded only after its signature has been verified.
"""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from types import CodeType
from typing import Any

import cloudpickle

from qserve.base.keyring import Keyring
from qserve.exceptions import PayloadError
from qserve.wire.codes import reducers


def dumps(value: Any) -> bytes:
    """Pickle a value, by value where other processes cannot import its classes and functions."""
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def _reduce_code(code: CodeType) -> Any:
    # since 3.1.3 cloudpickle leaves out the file's name, so that pickles are the same on all machines; tracebacks
    # need it
    make, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in parts)


reducers[CodeType] = _reduce_code
reducers[memoryview] = lambda view: (bytes, (bytes(view),))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table = ChainMap(reducers, cloudpickle.Pickler.dispatch_table)


def unpickle_part(data: bytes, keys: Keyring, name: str) -> Any:
    """Return one value of a signed dict whose values are pickled one by one; errors of user code pass through.

    Raises:
      PayloadError: The signature is missing or wrong.
    """
    body = keys.verify(data)
    if body is None:
        raise PayloadError(
            "the application's code is not signed with this process's key: set QSERVE_SECRET_KEY to the same secret"
            " everywhere"
        )
    return pickle.loads(pickle.loads(body)[name])
