"""Convert the values that a result may contain into types that JSON has.

numpy and pandas are looked up, not imported: a process that has not imported them has none of their values.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import importlib
import pathlib
import sys
import uuid
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
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
    ((Mapping, ItemsView), dict),
    ((set, frozenset, deque, range, KeysView, ValuesView), list),
]


class WalkError(TypeError):
    """Raised for an iterator, which can be read only once: ``with_text_keys`` does that, and never begins again."""


def to_jsonable(value: Any) -> Any:
    """Convert one value, but not what it contains; the ``default`` of the standard encoder.

    Raises:
      WalkError: The value is an iterator.
      TypeError: The value cannot be converted; the message names its type.
    """
    if isinstance(value, Iterator):
        raise WalkError
    for kind, convert in _CONVERSIONS:
        if isinstance(value, kind):
            return convert(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for module, name, convert in _OPTIONAL:
        optional = getattr(sys.modules.get(module), name, None)
        if optional is not None and isinstance(value, optional):
            return convert(value)
    return _by_pydantic(value)


def _by_pydantic(value: Any) -> Any:
    """Convert what pydantic can write besides: addresses, URLs, patterns, secrets, fractions and others."""
    try:
        # not imported above, because the gateway never needs it
        return importlib.import_module("pydantic_core").to_jsonable_python(value)
    except ValueError:
        raise _not_convertible(value) from None


def _not_convertible(value: Any, what: str = "value") -> TypeError:
    advice = getattr(type(value), "advice_for_values", "")
    return TypeError(f"a {what} of type {type(value).__qualname__!r} cannot be converted to JSON{advice}")


def _scalar(value: Any) -> Any:
    item = value.item()
    if type(item) is type(value):  # longdouble has no Python type
        raise _not_convertible(value)
    return item


def _model(value: Any) -> Any:
    try:
        return value.model_dump(mode="json", by_alias=True)
    except ValueError:  # a field holds what only we convert, such as an array; the rules of the others still count
        return importlib.import_module("pydantic_core").to_jsonable_python(value, fallback=to_jsonable)


_OPTIONAL: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("numpy", "ndarray", lambda value: value.tolist()),
    ("numpy", "generic", _scalar),
    ("pandas", "DataFrame", lambda value: value.to_dict(orient="records")),
    ("pandas", "Series", lambda value: value.tolist()),
    ("pandas", "Index", lambda value: value.tolist()),
    ("pydantic", "BaseModel", _model),
    # what older versions of pydantic do not know by themselves
    ("fractions", "Fraction", str),
    ("ipaddress", "_IPAddressBase", str),
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
    if isinstance(value, Iterator):
        return [with_text_keys(item) for item in value]
    return with_text_keys(to_jsonable(value))


def _key(key: Any) -> Any:
    if key is None or isinstance(key, str | int | float):
        return key
    try:
        converted = next(iter(_by_pydantic({key: None}))) if isinstance(key, tuple) else to_jsonable(key)
    except (TypeError, ValueError):
        converted = []
    if isinstance(converted, list | dict):
        raise _not_convertible(key, "key")
    return converted
