"""Dataclasses and pydantic models of an application's own modules, as their fields.

They need no key: only the name of the class travels. A reader takes it only when it has imported that class
already and it is a dataclass or a model; nothing is imported because a message says so.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from qserve.exceptions import PayloadError


def is_record(value: Any) -> bool:
    """Whether a value is an instance of a dataclass or pydantic model that other processes can import."""
    kind = type(value)
    return (
        _is_record_class(kind) and kind.__module__ != "__main__" and _find(kind.__module__, kind.__qualname__) is kind
    )


def pack_record(value: Any) -> list[Any]:
    """The class's name and the instance's fields."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(kind)}
    else:
        fields = dict(value)
    return [kind.__module__, kind.__qualname__, fields]


def unpack_record(packed: list[Any]) -> Any:
    """The instance again; validators and ``__post_init__`` do not run, since its fields are as they were.

    Raises:
      PayloadError: The class is not imported here, or is no record, or a field is missing that has no default.
    """
    module, qualname, fields = packed
    kind = _find(module, qualname)
    if kind is None or not _is_record_class(kind):
        raise PayloadError(f"a {qualname} arrived, but {module!r} with that class is not imported in this process")
    if hasattr(kind, "model_construct"):
        return kind.model_construct(**fields)
    record = object.__new__(kind)
    for name, value in {**_defaults(kind, fields), **fields}.items():
        object.__setattr__(record, name, value)
    return record


def _defaults(kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The values of a dataclass's fields that were not sent."""
    values = {}
    for one in dataclasses.fields(kind):
        if one.name in given:
            continue
        if one.default is not dataclasses.MISSING:
            values[one.name] = one.default
        elif one.default_factory is not dataclasses.MISSING:
            values[one.name] = one.default_factory()
        else:
            raise PayloadError(f"a record of type {kind.__qualname__!r} arrived without its field {one.name!r}")
    return values


def _is_record_class(kind: Any) -> bool:
    if not isinstance(kind, type):
        return False
    pydantic = sys.modules.get("pydantic")
    return dataclasses.is_dataclass(kind) or (pydantic is not None and issubclass(kind, pydantic.BaseModel))


def _find(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        # not getattr: a module may import others to answer that
        found = getattr(found, "__dict__", {}).get(name)
    return found
