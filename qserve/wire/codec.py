"""Values to bytes and back: msgpack with typed extensions, and pickle only when it is signed.

Plain data never needs a key. Anything else is pickled by value where its code cannot be imported
(cloudpickle), and accepted only with the signature of the application's key: whoever can write to the
broker must not be able to run code in its readers.
"""

from __future__ import annotations

import datetime
import decimal
import pickle
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from qserve.base.keyring import Keyring
from qserve.exceptions import PayloadError, PayloadTooLarge
from qserve.wire.pickling import dumps
from qserve.wire.records import is_record, pack_record, unpack_record

PICKLE = 0
RECORD = 14
NO_KEYS = Keyring()


@dataclass(frozen=True)
class Extension:
    """How one type travels: ``pack`` gives a value that msgpack (or another extension) can write."""

    code: int
    type: type
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


_by_type: dict[type, Extension] = {}
_by_code: dict[int, Extension] = {}


def register(code: int, kind: type, pack: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> None:
    """Let values of exactly the type ``kind`` travel under the extension ``code`` (1 to 127)."""
    extension = Extension(code, kind, pack, unpack)
    _by_type[kind] = _by_code[code] = extension


def _pack_array(array: Any) -> list[Any]:
    if array.dtype.hasobject:
        raise TypeError
    return [
        array.dtype.str if not array.dtype.names else array.dtype.descr,
        list(array.shape),
        array.tobytes(),
    ]


def _unpack_array(packed: list[Any]) -> Any:
    numpy = sys.modules.get("numpy") or __import__("numpy")
    kind, shape, data = packed
    dtype = kind if isinstance(kind, str) else [tuple(part) for part in kind]
    return numpy.frombuffer(data, dtype=dtype).reshape(shape).copy()


def _unpack_scalar(packed: list[Any]) -> Any:
    return _unpack_array([packed[0], [1], packed[1]])[0]


def _unpack_timedelta(parts: list[int]) -> datetime.timedelta:
    return datetime.timedelta(days=parts[0], seconds=parts[1], microseconds=parts[2])


register(1, tuple, list, tuple)
register(2, set, list, set)
register(3, frozenset, list, frozenset)
register(4, datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat)
register(5, datetime.date, datetime.date.isoformat, datetime.date.fromisoformat)
register(6, datetime.time, datetime.time.isoformat, datetime.time.fromisoformat)
register(7, datetime.timedelta, lambda d: [d.days, d.seconds, d.microseconds], _unpack_timedelta)
register(8, uuid.UUID, lambda u: u.bytes, lambda raw: uuid.UUID(bytes=raw))
register(9, decimal.Decimal, str, decimal.Decimal)
register(10, complex, lambda c: [c.real, c.imag], lambda parts: complex(*parts))
register(11, int, str, int)  # only integers beyond 64 bits come here
_ARRAY, _SCALAR = 12, 13
_by_code[_ARRAY] = Extension(_ARRAY, object, _pack_array, _unpack_array)
_by_code[_SCALAR] = Extension(_SCALAR, object, lambda s: [s.dtype.str, s.tobytes()], _unpack_scalar)


def _numpy_extension(value: Any) -> Extension | None:
    # numpy is looked up, not imported: a process that has not imported it holds no array
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if type(value) is numpy.ndarray and not value.dtype.hasobject:
        return _by_code[_ARRAY]
    if isinstance(value, numpy.generic) and not value.dtype.hasobject and not value.dtype.names:
        return _by_code[_SCALAR]
    return None


class Codec:
    """Encodes and decodes values with one application's key.

    Parameters:
      keys: Sign what must be pickled; without a key such values are refused.
      max_bytes: Longest encoded value.
    """

    def __init__(self, keys: Keyring = NO_KEYS, max_bytes: int = 10 * 1024 * 1024) -> None:
        self._keys = keys
        self._max_bytes = max_bytes
        # A packer is neither reentrant (an extension encodes its own content) nor safe across threads, and a
        # new one costs 13 us: idle ones wait here, and list.pop and list.append are atomic.
        self._idle: list[msgpack.Packer] = []

    def _pack(self, value: Any) -> bytes:
        packer = (
            self._idle.pop()
            if self._idle
            else msgpack.Packer(
                default=self._default,
                strict_types=True,
                use_bin_type=True,
                unicode_errors="surrogatepass",
                buf_size=4096,
            )
        )
        data: bytes = packer.pack(value)
        self._idle.append(packer)
        return data

    def encode(self, value: Any) -> bytes:
        """Encode one value.

        Raises:
          PayloadError: The value cannot travel.
          PayloadTooLarge: It is longer than ``max_bytes``.
        """
        try:
            data = self._pack(value)
        except PayloadError:
            raise
        except Exception as error:
            if isinstance(error, RecursionError) or "recursion" in str(error):
                error = PayloadError("it is nested too deeply, or contains itself")
            raise PayloadError(f"a value of type {type(value).__name__!r} cannot travel: {error}") from error
        if len(data) > self._max_bytes:
            raise PayloadTooLarge(
                f"a value of type {type(value).__name__!r} takes {len(data)} bytes; the limit is {self._max_bytes}"
            )
        return data

    def _default(self, value: Any) -> msgpack.ExtType:
        extension = _by_type.get(type(value)) or _numpy_extension(value)
        if extension is None and self._keys.current is None and is_record(value):
            # with a key a pickle does as well, and also reaches readers that have not imported the class
            return msgpack.ExtType(RECORD, self._pack(pack_record(value)))
        if extension is None:
            return msgpack.ExtType(PICKLE, self._pickle(value))
        return msgpack.ExtType(extension.code, self._pack(extension.pack(value)))

    def _pickle(self, value: Any) -> bytes:
        if self._keys.current is None:
            raise PayloadError(
                f"a value of type {type(value).__qualname__!r} is not plain data, so it must be pickled, and pickles"
                " are accepted only when signed: set QSERVE_SECRET_KEY to the same secret in every process,"
                " or pass plain data (numbers, text, bytes, lists, dicts, arrays)"
            )
        try:
            return self._keys.sign(dumps(value))
        except Exception as error:
            raise PayloadError(f"a value of type {type(value).__qualname__!r} cannot be pickled: {error}") from error

    def decode(self, data: bytes) -> Any:
        """Decode one value.

        Raises:
          PayloadError: The bytes are not what ``encode`` writes, or a pickle's signature is missing or wrong.
        """
        try:
            return msgpack.unpackb(
                data,
                ext_hook=self._extension,
                strict_map_key=False,
                raw=False,
                unicode_errors="surrogatepass",
            )
        except PayloadError:
            raise
        except Exception as error:
            raise PayloadError(f"{len(data)} bytes cannot be decoded: {type(error).__name__}") from error

    def _extension(self, code: int, data: bytes) -> Any:
        if code == PICKLE:
            return self._unpickle(data)
        if code == RECORD:
            return unpack_record(self.decode(data))
        extension = _by_code.get(code)
        if extension is None:
            raise PayloadError(f"unknown extension {code}: was this value written by a newer qserve?")
        return extension.unpack(self.decode(data))

    def _unpickle(self, signed: bytes) -> Any:
        body = self._keys.verify(signed)
        if body is None:
            raise PayloadError(
                "a pickled value arrived without the signature of this process's key: set QSERVE_SECRET_KEY to the"
                " same secret in every process"
            )
        return pickle.loads(body)
