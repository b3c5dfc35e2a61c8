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
      PayloadError: The class is not imported here, or is no record.
    """
    module, qualname, fields = packed
    kind = _find(module, qualname)
    if kind is None or not _is_record_class(kind):
        raise PayloadError(f"a {qualname} arrived, but {module!r} with that class is not imported in this process")
    if hasattr(kind, "model_construct"):
        return kind.model_construct(**fields)
    record = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(record, name, value)
    return record


def _is_record_class(kind: Any) -> bool:
    if not isinstance(kind, type):
        return False
    pydantic = sys.modules.get("pydantic")
    return dataclasses.is_dataclass(kind) or (pydantic is not None and issubclass(kind, pydantic.BaseModel))


def _find(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found
