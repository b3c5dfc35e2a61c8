"""Convert the values that a result may contain into types that JSON has.

numpy, pandas and pydantic are looked up, not imported: a process that has not imported them has none of their values.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import pathlib
import sys
import types
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any


def _decimal(value: decimal.Decimal) -> int | float:
    exponent = value.as_tuple().exponent
    return int(value) if isinstance(exponent, int) and exponent >= 0 else float(value)


_CONVERSIONS: list[tuple[type | tuple[type, ...], Callable[[Any], Any]]] = [
    ((bytes, bytearray, memoryview), lambda value: bytes(value).decode()),
    ((datetime.datetime, datetime.date, datetime.time), lambda value: value.isoformat()),
    (datetime.timedelta, datetime.timedelta.total_seconds),
    (enum.Enum, lambda value: value.value),
    (decimal.Decimal, _decimal),
    ((uuid.UUID, pathlib.PurePath, BaseException), str),
    (Mapping, dict),
    ((set, frozenset, deque, types.GeneratorType), list),
]


def to_jsonable(value: Any) -> Any:
    """Convert one value, but not what it contains; the ``default`` of the standard encoder.

    Raises:
      TypeError: The value cannot be converted; the message names its type.
    """
    for kind, convert in _CONVERSIONS:
        if isinstance(value, kind):
            return convert(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for module, name, convert in _OPTIONAL:
        optional = getattr(sys.modules.get(module), name, None)
        if optional is not None and isinstance(value, optional):
            return convert(value)
    raise _not_convertible(value)


def _not_convertible(value: Any) -> TypeError:
    return TypeError(f"a value of type {type(value).__qualname__!r} cannot be converted to JSON")


def _scalar(value: Any) -> Any:
    item = value.item()
    if type(item) is type(value):  # longdouble has no Python type
        raise _not_convertible(value)
    return item


def _model(value: Any) -> Any:
    try:
        return value.model_dump(mode="json", by_alias=True)
    except ValueError:  # a field of a type that pydantic cannot convert, such as an array
        return {name: getattr(value, name) for name in type(value).model_fields}


_OPTIONAL: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("numpy", "ndarray", lambda value: value.tolist()),
    ("numpy", "generic", _scalar),
    ("pandas", "DataFrame", lambda value: value.to_dict(orient="records")),
    ("pandas", "Series", lambda value: value.tolist()),
    ("pandas", "Index", lambda value: value.tolist()),
    ("pydantic", "BaseModel", _model),
]


def with_text_keys(value: Any) -> Any:
    """Return the same value with keys of all dicts in types that the standard encoder accepts.

    Raises:
      TypeError: A key cannot be converted.
    """
    if isinstance(value, Mapping):
        return {_key(key): with_text_keys(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_text_keys(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return with_text_keys(to_jsonable(value))


def _key(key: Any) -> Any:
    converted = key if key is None or isinstance(key, str | int | float) else to_jsonable(key)
    if isinstance(converted, list | dict):
        raise TypeError(f"a key of type {type(key).__qualname__!r} cannot be converted to JSON")
    return converted
