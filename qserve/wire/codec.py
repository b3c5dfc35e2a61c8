"""Encode values as bytes and decode them: msgpack with typed extensions, and pickle only when it is signed.

Plain data needs no key. Anything else is pickled (by value where its code cannot be imported) and accepted only
with a signature by one of the application's keys: being able to write to the broker must not be enough to run code in
the processes that read from it.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from functools import partial
from itertools import chain
from types import NoneType
from typing import Any

import msgpack

from qserve.base.keyring import Keyring
from qserve.exceptions import PayloadError, PayloadTooLarge, RequestError
from qserve.wire.claim import MARK, Claim, Kind, Part, apart, claim_in, wrap
from qserve.wire.codes import Code, is_record, numpy_packer, pack_record, packers, unpackers
from qserve.wire.outside import WALKED, Outside, Stored, Values, has_large, part_of
from qserve.wire.pickling import dumps

DEPTH_LIMIT = 256
"""How deep a value may be nested, on the wire: a list, a dict and an extension are one level each.

So a tuple or a set is two levels, because it is an extension that holds a list, and a dataclass is three.
"""
LEAVES = frozenset((NoneType, bool, int, float, str, bytes, memoryview, msgpack.ExtType, msgpack.Timestamp))
"""The types that msgpack writes by itself, and that hold no other value and cannot be changed."""
_CONTAINERS = frozenset((list, dict))
_ONE_EMPTY = frozenset((tuple, frozenset))
"""The types of which Python has one empty object only."""
_LARGE_LEAVES = frozenset((bytes, memoryview))
_SMALL_LEAVES = LEAVES - _LARGE_LEAVES
_ARRAY, _BYTEARRAY = Code.ARRAY, Code.BYTEARRAY  # to look a code up in the enum, or to hash it, takes 0.1 us
_HTTP = Code.HTTP_MESSAGE
_VIEWED = frozenset((Code.ARRAY, Code.BYTEARRAY, Code.HTTP_MESSAGE, Code.STARLETTE_REQUEST))
"""The types whose bytes are read as views where they are large."""
_PACKER_BYTES = 1 << 20
NO_KEYS = Keyring()
_is_light_only: ContextVar[bool] = ContextVar("qserve_light_only", default=False)
_PACKER: dict[str, Any] = {"strict_types": True, "unicode_errors": "surrogatepass", "buf_size": 4096}


class Encoded:
    """A value that another process has encoded with a codec of the same kind."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data


class Heavy(Exception):
    """Raised inside of ``light_only`` instead of storing a value that takes long: encode it again in a thread."""


@contextmanager
def light_only() -> Iterator[None]:
    """Have ``encode`` raise ``Heavy`` for what would hold up an event loop; nothing is stored then."""
    token = _is_light_only.set(True)
    try:
        yield
    finally:
        _is_light_only.reset(token)


class Codec:
    """Encodes and decodes values with one application's keys.

    Parameters:
      keys: Sign what must be pickled; without a key such values are refused.
      max_bytes: The longest encoded value that travels whole.
      values: Stores what is large in values; None to have all of them travel whole.
    """

    def __init__(
        self, keys: Keyring = NO_KEYS, max_bytes: int = 10 * 1024 * 1024, values: Values | None = None
    ) -> None:
        self._keys = keys
        self._max_bytes = max_bytes
        self._values = values
        self._large = sys.maxsize if values is None else values.threshold
        self._long = min(self._large, max_bytes + 1)
        # A packer is neither reentrant nor safe across threads, and a new one costs 13 us: idle ones wait here, and
        # list.pop and list.append are atomic.
        self._idle: list[msgpack.Packer] = []

    def _pack(self, value: Any) -> bytes:
        packer = self._idle.pop() if self._idle else msgpack.Packer(default=self._default, **_PACKER)
        data: bytes = b""
        try:
            data = packer.pack(value)
        finally:
            if len(data) < _PACKER_BYTES:  # a packer keeps a buffer as long as what it has packed
                self._idle.append(packer)
        return data

    def encode(self, value: Any, kind: Kind = Kind.PASSING) -> bytes:
        """Encode one value. If that is large, its large parts are stored, and the encoding begins with a claim of them.

        Who encodes a value that has a claim, see ``claim_in``, must have the store settle or forget it.

        Parameters:
          kind: Whether a stored value must outlive its host.

        Raises:
          PayloadError: The value cannot be encoded, or is nested more than ``DEPTH_LIMIT`` levels deep.
          PayloadTooLarge: Its encoding is longer than ``max_bytes``, or than the store takes.
          RequestError: It is the ref of a call that was refused.
          BrokerError, StoreUnavailable: It is large, and the store cannot be reached.
          Heavy: See ``light_only``.
        """
        cls = type(value)
        try:
            if cls in LEAVES and (cls is not bytes or len(value) < self._large):
                data = self._pack(value)  # here, because one more call would be a fifth of the time
            elif cls is Encoded:
                data = value.data
            else:
                data = self._encode(value)
        except _LargeError:
            return self._encode_large(value, None, kind)
        except RequestError:
            raise
        except Exception as error:
            raise _refusal(value, error) from error
        if len(data) >= self._long:
            if self._values is not None:
                return self._encode_large(value, data, kind)
            raise PayloadTooLarge(
                f"a value of type {type(value).__name__!r} takes {len(data)} bytes; the limit is {self._max_bytes}"
            )
        return data

    def _encode_large(self, value: Any, data: bytes | None, kind: Kind) -> bytes:
        """Store the large parts of a value, and what is left of it as well if that is still large.

        Parameters:
          data: Its encoding with all parts; None if that was not made.
        """
        outside = Outside()
        try:
            if data is None or has_large(value, self._large, DEPTH_LIMIT):
                data = self._encode(value, outside)
        except RequestError:
            raise
        except Exception as error:
            raise _refusal(value, error) from error
        if outside.stored is not None:
            if outside.parts or len(data) > self._max_bytes:
                raise PayloadTooLarge(f"a value takes {len(data)} bytes beside a body that is stored already")
            return wrap(outside.stored, data)
        if len(data) >= self._large:
            data = self._pack(msgpack.ExtType(Code.OUTSIDE, self._pack(outside.add(memoryview(data)))))
        return wrap(self._put(type(value).__name__, outside.parts, outside.size, kind), data)

    def _put(self, what: str, parts: Sequence[Part], size: int, kind: Kind) -> Claim:
        values = self._values
        assert values is not None
        if size > values.max_bytes:
            raise PayloadTooLarge(
                f"a value of type {what!r} takes {size} bytes; the limit is {values.max_bytes},"
                " set by QSERVE_MAX_VALUE_BYTES"
            )
        if _is_light_only.get() and values.is_heavy(size, kind):
            raise Heavy
        return values.put(parts, size, kind)

    def store(self, what: str, data: memoryview, kind: Kind) -> Claim | None:
        """Store bytes if they are large; return None if they are not, or nothing is stored here.

        Parameters:
          what: Names the type of their value for an error.

        Raises:
          PayloadTooLarge, BrokerError, StoreUnavailable, Heavy: See ``encode``.
        """
        return None if len(data) < self._large else self._put(what, [(0, data)], len(data), kind)

    def _encode(self, value: Any, outside: Outside | None = None) -> bytes:
        """Encode a value; its large parts go to ``outside``. _LargeError if there are some, and it is not given."""
        if outside is None and type(value) is bytes:
            raise _LargeError
        is_tree, is_deep = _survey(value) if type(value) in WALKED else _DEEP
        try:
            if not is_tree and self._keys.current is not None:
                raise _UnknownError
            if outside is not None:
                return self._pack(_walked(value, DEPTH_LIMIT, partial(self._packed_apart, outside), _SMALL_LEAVES))
            if is_tree and not is_deep:
                try:
                    return self._pack(value)
                except _NestedError:
                    pass
            return self._pack(_walked(value, DEPTH_LIMIT, self._packed))
        except _UnknownError:
            return self._pack(self._pickled(value, outside))

    # msgpack calls hooks on the thread's stack, 40 KiB a level when it reads. Calls from Python to Python take nothing
    # of it: ``_walked`` goes through extensions inside of extensions, and msgpack gets what lies between them.

    def _default(self, value: Any) -> msgpack.ExtType:
        """Pack an extension, for msgpack itself, unless it may hold others."""
        found = self._packer_of(value)
        if found is None:
            raise _NestedError
        code, pack = found
        if (code is _ARRAY and value.nbytes >= self._large) or (code is _BYTEARRAY and len(value) >= self._large):
            raise _LargeError
        content = pack(value)
        if code >= _HTTP and self._has_large_body(content):
            raise _LargeError
        if not _is_simple(content):
            raise _NestedError
        return msgpack.ExtType(code, self._pack(content))

    def _packed(self, value: Any, room: int) -> msgpack.ExtType:
        """Pack an extension that may hold others; ``room`` is how many levels there may be in it."""
        found = self._packer_of(value)
        if found is None:
            raise self._unknown(value)
        code, pack = found
        if (code is _ARRAY and value.nbytes >= self._large) or (code is _BYTEARRAY and len(value) >= self._large):
            raise _LargeError
        content = pack(value)
        if code >= _HTTP and self._has_large_body(content):
            raise _LargeError
        return msgpack.ExtType(code, self._pack(_walked(content, room, self._packed)))

    def _has_large_body(self, message: list[Any]) -> bool:
        return any(type(part) in _LARGE_LEAVES and len(part) >= self._large for part in message)

    def _packed_apart(self, outside: Outside, value: Any, room: int, is_viewed: bool = False) -> Any:
        """Pack what is not a list, a dict or a small leaf; its large parts go to ``outside``.

        Parameters:
          is_viewed: Whether bytes in it are read as views.
        """
        if type(value) in LEAVES:
            if len(value) < self._large:
                return value
            part = outside.add(memoryview(value))
            return part if is_viewed else msgpack.ExtType(Code.BYTES, self._pack(part))
        if type(value) is Stored:
            part = outside.take(value.claim)
            return part if is_viewed else msgpack.ExtType(Code.BYTES, self._pack(part))
        found = self._packer_of(value)
        if found is None:
            raise self._unknown(value)
        code, pack = found
        content = memoryview(value) if code is _BYTEARRAY else pack(value)
        inner = partial(self._packed_apart, outside, is_viewed=code in _VIEWED)
        return msgpack.ExtType(code, self._pack(_walked(content, room, inner, _SMALL_LEAVES)))

    def _packer_of(self, value: Any) -> tuple[Code, Callable[[Any], Any]] | None:
        found = packers.get(type(value)) or numpy_packer(value)
        if found is None and self._keys.current is None and is_record(value):
            # with a key a pickle does as well, and readers that have not imported the class can decode it
            return Code.RECORD, pack_record
        if type(value) is Stored:
            raise _LargeError
        return found

    def _unknown(self, value: Any) -> Exception:
        if self._keys.current is not None:
            return _UnknownError()
        return PayloadError(
            f"a value of type {type(value).__qualname__!r} is not plain data, so it must be pickled, and pickles"
            " are accepted only when signed: set QSERVE_SECRET_KEY to the same secret in every process,"
            " or pass plain data (numbers, text, bytes, lists, dicts, arrays)"
        )

    def _pickled(self, value: Any, outside: Outside | None = None) -> msgpack.ExtType:
        """Pickle a whole value, so that what is in it twice arrives as one object."""
        buffers: list[msgpack.ExtType] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            """Leave a buffer out of the pickle if it is large; return whether it is not."""
            data = buffer.raw()
            if len(data) < self._large:
                return True
            if outside is None:
                raise _LargeError
            buffers.append(outside.add(data))
            return False

        try:
            pickled = self._keys.sign(dumps(value, keep if self._values is not None else None))
        except _LargeError:
            raise
        except Exception as error:
            if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
                raise too_deep() from error
            culprit = self._culprit(value)
            raise PayloadError(f"a value of type {culprit!r} cannot be pickled: {error}") from error
        if not buffers:
            return msgpack.ExtType(Code.PICKLE, pickled)
        return msgpack.ExtType(Code.PICKLE_APART, self._pack([pickled, buffers]))

    def _culprit(self, value: Any) -> str:
        """Return the name of the type in ``value`` that cannot be pickled."""

        def attempt(part: Any, room: int) -> None:
            found = self._packer_of(part)
            if found is not None:
                _walked(found[1](part), room, attempt)
                return
            try:
                dumps(part)
            except Exception as error:
                raise _UnknownError(type(part).__qualname__) from error

        try:
            _walked(value, DEPTH_LIMIT, attempt)
        except _UnknownError as named:
            return str(named)
        except PayloadError:  # it contains itself
            pass
        return type(value).__qualname__

    def forget(self, claims: Iterable[Claim]) -> None:
        """Remove what was stored for values that are not sent after all."""
        if self._values is not None:
            self._values.forget(claims)

    def is_heavy(self, data: bytes) -> bool:
        """Return whether it takes so long to read the stored parts of a value that an event loop leaves it to a thread.

        Raises:
          PayloadError: Its claim cannot be read.
        """
        claim = claim_in(data) if data.startswith(MARK) else None
        return claim is not None and self._values is not None and self._values.is_heavy_to_get(claim)

    def get(self, claim: Claim) -> memoryview:
        """Return the bytes of a stored value; raises as ``decode`` does."""
        if self._values is None:
            raise PayloadError(f"a value of {claim.size} bytes is in a store that is not open here: {claim.store}")
        return self._values.get(claim)

    def decode(self, data: bytes) -> Any:
        """Decode one value.

        Raises:
          PayloadError: ``encode`` did not write these bytes, they are nested more than ``DEPTH_LIMIT`` levels deep, or
            a pickle's signature is missing or wrong.
          PayloadTooLarge: They are longer than ``max_bytes``.
          ValueLost, ValueUnreachable, BrokerError, StoreUnavailable: Its large parts cannot be read.
        """
        if len(data) > self._max_bytes:
            raise PayloadTooLarge(f"a value takes {len(data)} bytes; the limit is {self._max_bytes}")
        try:
            return self._read(data, DEPTH_LIMIT)
        except PayloadError:
            raise
        except Exception as error:
            claim, inline = apart(data)  # msgpack refuses what begins with a claim: others need not be asked for one
            if claim is None:
                raise _unreadable(data, error) from error
        segment = self.get(claim)
        try:
            return self._read(inline, DEPTH_LIMIT, segment)
        except PayloadError:
            raise
        except Exception as error:
            raise _unreadable(data, error) from error

    def _read(self, data: bytes | memoryview, room: int, segment: memoryview | None = None) -> Any:
        """Decode; ``segment`` holds the parts that were stored."""
        extensions: list[Extension] = []

        def note(code: int, content: bytes) -> Extension:
            extensions.append(Extension(code, content))
            return extensions[-1]

        value = msgpack.unpackb(data, ext_hook=note, strict_map_key=False, unicode_errors="surrogatepass")
        if extensions:
            if segment is not None:
                for one in extensions:
                    one.segment = segment
            return _walked(value, room, self._unpacked)
        if _may_be_deeper(data, room) and is_deeper(value, room):
            raise too_deep()
        return value

    def _unpacked(self, extension: Extension, room: int) -> Any:
        """Decode an extension; ``room`` is how many levels there may be in it."""
        unpack = unpackers.get(extension.code)
        if unpack is not None:
            return unpack(self._read(extension.content, room, extension.segment))
        if extension.code == Code.PICKLE:
            return self._unpickle(extension.content)
        found = self._read(extension.content, room, extension.segment)
        if extension.code == Code.BUFFER:
            return part_of(extension.segment, found)
        if extension.code == Code.PICKLE_APART:
            return self._unpickle(*found)
        if extension.code == Code.OUTSIDE:
            return self._read(found, room, extension.segment)
        raise PayloadError(f"unknown extension {extension.code}: was this value written by a newer qserve?")

    def _unpickle(self, content: bytes, buffers: Iterable[memoryview] = ()) -> Any:
        body = self._keys.verify(content)
        if body is None:
            raise PayloadError(
                "a pickled value arrived without the signature of this process's key: set QSERVE_SECRET_KEY to the"
                " same secret in every process"
            )
        return pickle.loads(body, buffers=buffers)


class Extension:
    """An extension that is not decoded yet; ``segment`` holds the parts of the value that were stored."""

    __slots__ = ("code", "content", "segment")

    def __init__(self, code: int, content: bytes) -> None:
        self.code: int = code
        self.content: bytes = content
        self.segment: memoryview | None = None


def _unreadable(data: bytes, error: Exception) -> PayloadError:
    return PayloadError(f"{len(data)} bytes cannot be decoded: {type(error).__name__}")


def _refusal(value: Any, error: Exception) -> PayloadError:
    if isinstance(error, RecursionError) or "recursion" in str(error):
        return too_deep()
    return PayloadError(f"a value of type {type(value).__name__!r} cannot be encoded: {error}")


def _walked(value: Any, room: int, extension: Callable[[Any, int], Any], leaves: frozenset[Any] = LEAVES) -> Any:
    """Return ``value`` with ``extension`` applied to everything in it that is not a list, a dict or a leaf.

    Parameters:
      room: How many levels it may have.
      extension: Takes the value, and how many levels there may be in it.
      leaves: The types of leaves.
    """
    kind = type(value)
    if kind in leaves:
        return value
    if not room:
        raise too_deep()
    room -= 1
    if kind is list:
        return [item if type(item) in leaves else _walked(item, room, extension, leaves) for item in value]
    if kind is dict:
        return {
            key if type(key) in LEAVES else _walked(key, room, extension): _walked(item, room, extension, leaves)
            for key, item in value.items()
        }
    return extension(value, room)


class _NestedError(Exception):
    """Raised through msgpack when an extension may hold others."""


class _LargeError(Exception):
    """Raised when a part of a value is large, and the value is to be encoded again with that apart."""


class _UnknownError(Exception):
    """Raised when there is an object of a type that has no code."""


_PLAIN, _DEEP, _NO_TREE = (True, False), (True, True), (False, False)


def _survey(value: Any) -> tuple[bool, bool]:
    """Return whether msgpack can write a value, and whether that may be too deep.

    It cannot write what is in the value twice (as one object), or in itself, and takes a bytearray for bytes.
    """
    seen: set[int] = set()
    level = (value,)
    for _ in range(DEPTH_LIMIT - 3):  # an extension that msgpack packs by itself has three levels at most
        below: Any = []
        for container in level:
            items = container.values() if type(container) is dict else container
            if LEAVES.issuperset(map(type, items)):  # at C's pace: most long lists hold numbers only
                continue
            for item in items:
                kind = type(item)
                if kind in LEAVES:
                    continue
                number = id(item)
                if number in seen and (kind not in _ONE_EMPTY or item):
                    return _NO_TREE
                seen.add(number)
                if kind in WALKED:
                    below.append(item)
                elif kind is bytearray:
                    return _NO_TREE
        if not below:
            return _PLAIN
        level = below
    return _DEEP


def _is_simple(content: Any) -> bool:
    """Return whether what an extension holds is plain and has at most two levels."""
    if type(content) is not list:
        return type(content) in LEAVES
    return LEAVES.issuperset(map(type, content)) or all(
        type(item) in LEAVES or (type(item) in (list, dict) and LEAVES.issuperset(map(type, _members(item))))
        for item in content
    )


def _members(container: Any) -> Iterable[Any]:
    return container.values() if type(container) is dict else container


# -- plain values, for records and messages that hold nothing of users ------------------------------


def unpack(data: bytes, what: str, depth: int = 16, *, raw: bool = False) -> Any:
    """Return the plain value in ``data``, for the records and messages that have no values of users in them.

    Parameters:
      what: Names the record in the error: "an application's record".
      depth: How deep it may be nested.
      raw: Return text as bytes.

    Raises:
      PayloadError: The bytes are not msgpack, contain an extension, or are nested deeper.
    """
    try:
        value = msgpack.unpackb(data, raw=raw, ext_hook=_refuse_extension)
    except Exception as error:
        raise PayloadError(f"{what} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    if _may_be_deeper(data, depth) and is_deeper(value, depth):
        raise too_deep(depth)
    return value


def known(kind: Any, found: Any) -> dict[str, Any]:
    """Return the fields in ``found`` that this version of the dataclass ``kind`` has; later versions may have more."""
    return {one.name: found[one.name] for one in fields(kind) if one.name in found}


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension {code}")


_SHORT = 4096
_NO_HEADS = bytes({*range(256)} - {*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)})
"""All bytes but those with which a list, a dict or an extension begins."""


def _may_be_deeper(data: bytes | memoryview, depth: int) -> bool:
    """Return whether these bytes can be nested deeper; most short ones cannot, and this costs less than a walk."""
    return len(data) > depth and (
        len(data) > _SHORT or type(data) is memoryview or len(data.translate(None, _NO_HEADS)) > depth
    )


def is_deeper(value: Any, depth: int) -> bool:
    """Return whether lists and dicts are nested more than ``depth`` levels deep; this takes no stack, however deep."""
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(depth):
        lists = [container for container in level if type(container) is list]
        dicts = [container for container in level if type(container) is dict]
        items = [*chain.from_iterable(lists), *chain.from_iterable(map(dict.values, dicts))]
        if _CONTAINERS.isdisjoint(map(type, items)):
            return False
        level = [item for item in items if type(item) in _CONTAINERS]
    return bool(level)


def too_deep(depth: int = DEPTH_LIMIT) -> PayloadError:
    """Return the error for a value that is nested deeper than ``depth``."""
    return PayloadError(
        f"a value is nested too deeply, or contains itself: the limit is {depth} levels, of which a list or a dict"
        " takes one, a tuple or a set two, and a dataclass three"
    )
