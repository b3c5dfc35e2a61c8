"""The types that are encoded as themselves: the code of each, and how its values are packed and unpacked."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import sys
import uuid
from collections.abc import Callable
from enum import IntEnum, unique
from typing import Any

from qserve.exceptions import PayloadError
from qserve.graph.plan import Slot


@unique
class Code(IntEnum):
    """The msgpack extension code of every type that is encoded as itself.

    The numbers are part of the wire format: never change one, and never give one to another type.
    """

    PICKLE = 0  # a signed pickle of anything that has no code of its own
    TUPLE = 1
    SET = 2
    FROZENSET = 3
    DATETIME = 4
    DATE = 5
    TIME = 6
    TIMEDELTA = 7
    UUID = 8
    DECIMAL = 9
    COMPLEX = 10
    BIG_INT = 11  # an integer of more than 64 bits
    ARRAY = 12  # numpy.ndarray
    SCALAR = 13  # numpy.generic
    RECORD = 14  # an instance of a dataclass or pydantic model, as its fields
    BYTEARRAY = 15
    # what is large in a stored value: the first three are written by the codec itself
    BUFFER = 16  # offset and length of a part of it
    PICKLE_APART = 17  # a signed pickle, and its buffers
    OUTSIDE = 18  # a part that holds the encoded value
    BYTES = 19  # bytes that are a part

    # handles, see qserve/calls/handles.py
    DEPLOYMENT_HANDLE = 20  # RayServeDeploymentHandle
    SYNC_HANDLE = 21  # RayServeSyncHandle
    NEW_HANDLE = 22  # DeploymentHandle
    GRAPH_HANDLE = 23  # RayServeDAGHandle
    NEW_GRAPH_HANDLE = 24  # GraphHandle

    SLOT = 30  # qserve.graph.plan: the place of a value that arrives later
    # refs, see qserve/calls
    REF = 31
    REF_TASK = 32
    RESPONSE = 33  # DeploymentResponse

    # HTTP requests, see qserve/http
    HTTP_MESSAGE = 40  # HttpMessage, decoded to starlette's Request
    STARLETTE_REQUEST = 41  # starlette's Request


packers: dict[type, tuple[Code, Callable[[Any], Any]]] = {}
unpackers: dict[int, Callable[[Any], Any]] = {}
reducers: dict[type, Callable[[Any], Any]] = {}
"""Functions that pickle objects of classes that do not say how, or say it for other readers."""


def register(code: Code, kind: type, pack: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> None:
    """Encode and decode values of exactly the type ``kind``: as what ``pack`` returns, under ``code``.

    Raises:
      ValueError: The code or the type is registered already.
    """
    register_packer(code, kind, pack)
    register_unpacker(code, unpack)


def register_packer(code: Code, kind: type, pack: Callable[[Any], Any]) -> None:
    """Encode values of the type ``kind`` under ``code``, for processes that need not decode them; see ``register``."""
    if kind in packers or any(code == other for other, _ in packers.values()):
        raise ValueError(f"{code!r} or {kind!r} is already registered for encoding")
    packers[kind] = code, pack
    if code >= Code.DEPLOYMENT_HANDLE:  # inside a pickle too
        reducers[kind] = lambda value: (_unpack_registered, (int(code), pack(value)))


def register_unpacker(code: Code, unpack: Callable[[Any], Any]) -> None:
    """Decode what arrives under ``code`` with ``unpack``; see ``register``."""
    if code in unpackers:
        raise ValueError(f"{code!r} is already registered for decoding")
    unpackers[code] = unpack


def _unpack_registered(code: int, content: Any) -> Any:
    return unpackers[code](content)


# -- Python's own types and graphs -----------------------------------------------------------------

register(Code.TUPLE, tuple, list, tuple)
register(Code.SET, set, list, set)
register(Code.FROZENSET, frozenset, list, frozenset)
register(Code.DATETIME, datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat)
register(Code.DATE, datetime.date, datetime.date.isoformat, datetime.date.fromisoformat)
register(Code.TIME, datetime.time, datetime.time.isoformat, datetime.time.fromisoformat)
register(
    Code.TIMEDELTA,
    datetime.timedelta,
    lambda delta: [delta.days, delta.seconds, delta.microseconds],
    lambda parts: datetime.timedelta(*parts),
)
register(Code.UUID, uuid.UUID, lambda value: value.bytes, lambda raw: uuid.UUID(bytes=raw))
register(Code.DECIMAL, decimal.Decimal, str, decimal.Decimal)
register(Code.COMPLEX, complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts))
register(Code.BIG_INT, int, str, int)
register(Code.BYTEARRAY, bytearray, bytes, lambda raw: bytearray(memoryview(raw)))  # bytearray(5) is five zeros
register_unpacker(Code.BYTES, lambda view: bytes(memoryview(view)))  # bytes(5) is five zeros
register(Code.SLOT, Slot, lambda slot: [slot.index, slot.nested], lambda packed: Slot(*packed))

# -- numpy -----------------------------------------------------------------------------------------


_VIEWED_BYTES = 1 << 16
"""From how many bytes on an array is packed without a copy of its own, and in the order that it has in memory."""


def numpy_packer(value: Any) -> tuple[Code, Callable[[Any], Any]] | None:
    # numpy is looked up, not imported: a process that has not imported it holds no array
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if type(value) is numpy.ndarray and not value.dtype.hasobject:
        return Code.ARRAY, _pack_array
    if isinstance(value, numpy.generic) and not value.dtype.hasobject and not value.dtype.names:
        return Code.SCALAR, lambda scalar: [scalar.dtype.str, scalar.tobytes()]
    return None


def _pack_array(array: Any) -> list[Any]:
    kind = array.dtype.descr if array.dtype.names else array.dtype.str
    if array.nbytes < _VIEWED_BYTES:
        return [kind, list(array.shape), array.tobytes()]
    numpy = sys.modules["numpy"]
    is_column_major = array.flags.f_contiguous and not array.flags.c_contiguous
    rows = numpy.ascontiguousarray(array.T if is_column_major else array)
    data = memoryview(rows.reshape(-1).view(numpy.uint8))
    return [kind, list(array.shape), data, *([True] if is_column_major else [])]


def _unpack_array(packed: list[Any]) -> Any:
    numpy = sys.modules.get("numpy") or __import__("numpy")
    kind, shape, data, *is_column_major = packed
    dtype = kind if isinstance(kind, str) else [tuple(part) for part in kind]
    array = numpy.frombuffer(data, dtype=dtype).reshape(shape[::-1] if is_column_major else shape)
    array = array if type(data) is memoryview else array.copy()
    return array.T if is_column_major else array


register_unpacker(Code.ARRAY, _unpack_array)
register_unpacker(Code.SCALAR, lambda packed: _unpack_array([packed[0], [1], packed[1]])[0])

# -- records: dataclasses and pydantic models ------------------------------------------------------


def is_record(value: Any) -> bool:
    """Return whether a value is an instance of a dataclass or model that other processes can import."""
    kind = type(value)
    is_importable = kind.__module__ != "__main__" and find_loaded(kind.__module__, kind.__qualname__) is kind
    return is_importable and _is_record_class(kind)


def _is_record_class(kind: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    is_model = isinstance(kind, type) and pydantic is not None and issubclass(kind, pydantic.BaseModel)
    return is_model or (isinstance(kind, type) and dataclasses.is_dataclass(kind))


def pack_record(value: Any) -> list[Any]:
    kind = type(value)
    is_model = not dataclasses.is_dataclass(kind)
    fields = dict(value) if is_model else {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    return [kind.__module__, kind.__qualname__, fields]


def _unpack_record(packed: list[Any]) -> Any:
    """Return the instance; validators and ``__post_init__`` do not run, since its fields are as they were.

    Only a class that this process has imported already is accepted: nothing is imported because a message names it.

    Raises:
      PayloadError: The class is not imported here or is not a record, or a field without a default is missing.
    """
    module, qualname, fields = packed
    kind = find_loaded(module, qualname)
    if kind is None or not _is_record_class(kind):
        raise PayloadError(f"a {qualname} arrived, but {module!r} with that class is not imported in this process")
    if hasattr(kind, "model_construct"):
        return kind.model_construct(**fields)
    record = object.__new__(kind)
    for field in dataclasses.fields(kind):
        if field.name not in fields and field.default is not dataclasses.MISSING:
            fields[field.name] = field.default
        elif field.name not in fields and field.default_factory is not dataclasses.MISSING:
            fields[field.name] = field.default_factory()
        elif field.name not in fields:
            raise PayloadError(f"a record of type {kind.__qualname__!r} arrived without its field {field.name!r}")
    for name, value in fields.items():
        object.__setattr__(record, name, value)
    return record


register_unpacker(Code.RECORD, _unpack_record)


def find_loaded(module: str, qualname: str) -> Any:
    """Return what a module that is already imported holds under this name; None when there is nothing."""
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        # not getattr: a module may import others to answer that
        found = getattr(found, "__dict__", {}).get(name)
    return found
