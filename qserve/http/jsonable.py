"""What JSON has no form for, as what it has: the types of a result that a replica may answer with.

numpy, pandas and pydantic are looked up, not imported: a process that has not imported them
holds none of their values.
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
from collections.abc import Callable, Iterable, Mapping
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
    """One value in JSON's types, its content left as it is; the standard encoder's ``default``.

    Raises:
      TypeError: JSON has no form for it; the message names the type.
    """
    for kind, convert in _CONVERSIONS:
        if isinstance(value, kind):
            return convert(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for module, attempt in (("numpy", _numpy), ("pandas", _pandas), ("pydantic", _pydantic)):
        loaded = sys.modules.get(module)
        if loaded is not None:
            converted = attempt(loaded, value)
            if converted is not _NO:
                return converted
    raise TypeError(f"a value of type {type(value).__qualname__!r} has no JSON form")


_NO: Any = object()


def _numpy(numpy: Any, value: Any) -> Any:
    if isinstance(value, numpy.ndarray):
        return value.tolist()
    if isinstance(value, numpy.generic):
        item = value.item()
        return _NO if isinstance(item, numpy.generic) else item  # longdouble has no Python form
    return _NO


def _pandas(pandas: Any, value: Any) -> Any:
    if isinstance(value, pandas.DataFrame):
        return value.to_dict(orient="records")
    if isinstance(value, pandas.Series | pandas.Index):
        return value.tolist()
    return _NO


def _pydantic(pydantic: Any, value: Any) -> Any:
    if not isinstance(value, pydantic.BaseModel):
        return _NO
    try:
        return value.model_dump(mode="json", by_alias=True)
    except ValueError:  # a field of a type that pydantic cannot write, such as an array: we can
        return {name: getattr(value, name) for name in type(value).model_fields}


def with_text_keys(value: Any) -> Any:
    """The same value with every dict's keys in the types that the standard encoder takes.

    Raises:
      TypeError: A key has no JSON form.
    """
    if isinstance(value, Mapping):
        return {_key(key): with_text_keys(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _each(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return with_text_keys(to_jsonable(value))


def _each(values: Iterable[Any]) -> list[Any]:
    return [with_text_keys(item) for item in values]


def _key(key: Any) -> Any:
    converted = key if key is None or isinstance(key, str | int | float) else to_jsonable(key)
    if isinstance(converted, list | dict):
        raise TypeError(f"a key of type {type(key).__qualname__!r} has no JSON form")
    return converted
