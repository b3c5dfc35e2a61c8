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
    for name, attempt in (("numpy", _numpy), ("pandas", _pandas), ("pydantic", _pydantic)):
        module = sys.modules.get(name)
        if module is not None:
            converted = attempt(module, value)
            if converted is not _UNKNOWN:
                return converted
    raise TypeError(f"a value of type {type(value).__qualname__!r} cannot be converted to JSON")


_UNKNOWN: Any = object()


def _numpy(numpy: Any, value: Any) -> Any:
    if isinstance(value, numpy.ndarray):
        return value.tolist()
    if isinstance(value, numpy.generic):
        item = value.item()
        return _UNKNOWN if isinstance(item, numpy.generic) else item  # longdouble has no Python type
    return _UNKNOWN


def _pandas(pandas: Any, value: Any) -> Any:
    if isinstance(value, pandas.DataFrame):
        return value.to_dict(orient="records")
    if isinstance(value, pandas.Series | pandas.Index):
        return value.tolist()
    return _UNKNOWN


def _pydantic(pydantic: Any, value: Any) -> Any:
    if not isinstance(value, pydantic.BaseModel):
        return _UNKNOWN
    try:
        return value.model_dump(mode="json", by_alias=True)
    except ValueError:  # a field of a type that pydantic cannot convert, such as an array
        return {name: getattr(value, name) for name in type(value).model_fields}


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
