"""Send exceptions to callers as text and the name of a type, never as a pickle.

The receiver recreates the original type only if it is an exception class that the receiver has imported already: a
message can cause no import and no call (compare CVE-2021-23727).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from types import BuiltinMethodType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

import msgpack

from qserve import exceptions
from qserve.base.tracebacks import CUT, full_traceback
from qserve.exceptions import (
    BackPressureError,
    PayloadError,
    QserveException,
    ReplicaLost,
    RequestError,
    TaskError,
    TimeLimitExceeded,
)
from qserve.wire.codec import is_deeper, unpack
from qserve.wire.codes import find_loaded

MESSAGE_LIMIT = 4096
ATTRIBUTE_DEPTH = 64
"""How deep the attributes of an error may be nested to travel with it."""
_NAME_LIMIT = 256
_PARTS_LIMIT = 64
_GROUP_DEPTH = 8
"""How deep groups of exceptions may be nested to travel with their members."""
_GROUP_BYTES = 64 * 1024
"""How many bytes the members of a group may take together; the rest is only in the text."""
_NEVER_REMADE = (StopIteration, StopAsyncIteration)
"""Coroutines turn them into RuntimeError, and loops take them for the end of what they iterate."""


@dataclass(frozen=True)
class Failure:
    """The error with which a request ended.

    Parameters:
      module, type: Name the exception's class.
      deployment: Where it was raised; "" when qserve itself refused the request.
      args, attributes: The exception's arguments and its own attributes, as far as they are plain data.
      is_answer: Whether it is an HTTP response in itself, like starlette's ``HTTPException``.
      members: The exceptions of a group.
    """

    module: str
    type: str
    message: str
    traceback: str = ""
    deployment: str = ""
    args: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    is_answer: bool = False
    members: tuple[Failure, ...] = ()

    @property
    def summary(self) -> str:
        """The type of the error, with its text if it has any."""
        return f"{self.type}: {self.message}" if self.message else self.type

    def encode(self) -> bytes:
        """Return the failure as msgpack."""
        return msgpack.packb(self._parts(), unicode_errors="replace")  # type: ignore[no-any-return]

    def _parts(self) -> list[Any]:
        *parts, members = vars(self).values()
        return [*parts, [member._parts() for member in members]]

    @classmethod
    def decode(cls, data: bytes) -> Failure:
        """Read what ``encode`` wrote; raise PayloadError for anything else."""
        try:
            return cls._of_parts(unpack(data, "a failure", ATTRIBUTE_DEPTH + 4 + 2 * _GROUP_DEPTH))
        except Exception as error:
            raise PayloadError(f"{len(data)} bytes are not a failure: {type(error).__name__}") from error

    @classmethod
    def _of_parts(cls, parts: list[Any]) -> Failure:
        *texts, args, attributes, is_answer = parts[:8]
        if len(texts) != 5 or not all(type(text) is str for text in texts):
            raise ValueError("its names and messages are not text")
        members = parts[8] if len(parts) > 8 else ()  # older versions write none
        values: list[Any] = [*texts, tuple(args), dict(attributes), is_answer, tuple(map(cls._of_parts, members))]
        return cls(*values)

    @classmethod
    def of(cls, error: BaseException, deployment: str = "", depth: int = _GROUP_DEPTH) -> Failure:
        """Describe ``error``; one that came from another deployment, or the end of its replica, keeps its origin.

        This never raises, and its result can always be encoded: a failed call must end, even if the error's class
        runs code of its own here.

        Parameters:
          depth: How many levels of groups are described.
        """
        is_of_others = isinstance(error, ReplicaLost | TimeLimitExceeded | TaskError)
        inner = vars(error).get("__failure__") if is_of_others else None
        if inner is not None:
            return inner  # type: ignore[no-any-return]
        kind, starlette = type(error), sys.modules.get("starlette.exceptions")
        try:
            own = islice({**_slots_of(error), **vars(error)}.items(), _PARTS_LIMIT)
            group = error if isinstance(error, BaseExceptionGroup) else None
            return cls(
                _cut(str(kind.__module__), _NAME_LIMIT),
                _cut(kind.__qualname__, _NAME_LIMIT),
                _cut(_text(error), MESSAGE_LIMIT),
                full_traceback(error),
                deployment,
                _plain((group.message,) if group else error.args),
                {name: value for name, value in own if not name.startswith("_") and _is_small(value)},
                starlette is not None and issubclass(kind, starlette.HTTPException),
                cls._members(group.exceptions, deployment, depth) if group else (),
            )
        except BaseException as second:
            message = f"<the error cannot be described: {type(second).__name__}>"
            return cls("", _cut(kind.__name__, _NAME_LIMIT), message, deployment=deployment)

    @classmethod
    def _members(cls, errors: Sequence[BaseException], deployment: str, depth: int) -> tuple[Failure, ...]:
        members: list[Failure] = []
        room = _GROUP_BYTES >> (_GROUP_DEPTH - depth)
        for error in errors if depth else ():
            # without a traceback, since that of the group shows it
            member = replace(cls.of(error, deployment, depth - 1), traceback="")
            room -= len(member.encode())
            if room < 0:
                break
            members.append(member)
        return tuple(members)

    def to_exception(self) -> BaseException:
        """Return the exception for the caller: one of qserve's, or a TaskError that is also the original type."""
        ours = find_loaded(self.module, self.type) if self.module == exceptions.__name__ else None
        if isinstance(ours, type) and issubclass(ours, QserveException) and not self.deployment:
            if ours is not BackPressureError:
                raised: Any = ours(self.message)
                vars(raised).update(self.attributes)
                raised.__failure__ = self
                return raised  # type: ignore[no-any-return]
            after_s, status = self.attributes.get("retry_after_s"), self.attributes.get("status")
            return BackPressureError(
                self.message, after_s if type(after_s) is int else 1, 429 if status == 429 else 503
            )
        args = self.args
        if self.members:
            args = (*self.args, [member.to_exception() for member in self.members])
        error = next(_remade(self.module, self.type, args))
        for name, value in self.attributes.items():
            _set(error, name, value)
        error.remote_type, error.remote_message = self.type, self.message
        error.remote_traceback, error.deployment = self.traceback, self.deployment
        error.__failure__ = self
        return error  # type: ignore[no-any-return]


def is_passed_on(error: BaseException) -> bool:
    """Return whether an error came from another call, where it was logged; of a group, whether all of them did."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_passed_on, error.exceptions))
    return isinstance(error, QserveException) and "__failure__" in vars(error)


def _remade(module: str, qualname: str, args: tuple[Any, ...]) -> Iterator[Any]:
    """Yield an error of the original type, of each of its bases, and a general one, as far as they can be made."""
    for kind in _task_errors(module, qualname):
        for base in kind.__mro__:  # the constructors of users are left out, since their parameters are unknown
            new = vars(base).get("__new__")
            if isinstance(new, BuiltinMethodType):
                with contextlib.suppress(Exception):
                    error = new(kind, *args)
                    error.args = args
                    yield error


def _slots_of(error: BaseException) -> dict[str, Any]:
    """Return the attributes that are not in the error's dict, such as ``filename`` of an OSError."""
    found = {}
    for name, slot in _slots(type(error)).items():
        with contextlib.suppress(AttributeError):  # it is not set
            found[name] = slot.__get__(error)
    return found


def _set(error: BaseException, name: str, value: Any) -> None:
    slot = _slots(type(error)).get(name)
    if slot is None:
        vars(error)[name] = value
        return
    with contextlib.suppress(AttributeError, TypeError):  # it can only be read
        slot.__set__(error, value)


def _slots(kind: type) -> dict[str, Any]:
    bases = kind.__mro__[: kind.__mro__.index(BaseException)]
    slots = MemberDescriptorType | GetSetDescriptorType
    return {
        name: slot
        for base in bases[::-1]
        for name, slot in vars(base).items()
        if isinstance(slot, slots) and name[0] != "_"
    }


@lru_cache(maxsize=256)
def _task_errors(module: str, qualname: str) -> tuple[type[TaskError], ...]:
    original = find_loaded(module, qualname)
    if not isinstance(original, type) or not issubclass(original, Exception) or issubclass(original, _NEVER_REMADE):
        return (_Text,)
    if issubclass(original, RequestError):
        return (type(original.__name__, (_Text, original), {}), _Text)
    kinds = []
    for base in original.__mro__[: original.__mro__.index(Exception)]:
        with contextlib.suppress(Exception):  # it cannot be a base, or does not want to
            kinds.append(type(f"TaskError({original.__name__})", (_Text, base), {"__init__": _accept_anything}))
    return (*kinds, _Text)


def _accept_anything(self: Any, *args: Any, **kwargs: Any) -> None:
    """Leave the error as it is: what its constructor would do was done where it was raised."""


class _Text(TaskError):
    def __str__(self) -> str:
        head = f"{self.remote_type}: {self.remote_message}" if self.remote_message else self.remote_type
        where = f" (in deployment {self.deployment!r})" if self.deployment else ""
        return f"{head}{where}\n\n{self.remote_traceback}".rstrip()

    def __reduce__(self) -> Any:
        return _from_failure, (getattr(self, "__failure__", None),)


def _from_failure(failure: Failure) -> BaseException:
    return failure.to_exception()


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as second:  # a __str__ that raises must not hide the failure itself
        return f"<the error's text is not available: {type(second).__name__}>"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + CUT


def _plain(args: tuple[Any, ...]) -> tuple[Any, ...]:
    kept = tuple(_cut(a, MESSAGE_LIMIT) if type(a) is str else a for a in islice(args, _PARTS_LIMIT + 1))
    return kept if len(kept) <= _PARTS_LIMIT and all(type(a) is str or _is_small(a) for a in kept) else ()


def _is_small(value: Any) -> bool:
    try:
        # packed first: that ends for a value that contains itself
        is_short = len(msgpack.packb(value, strict_types=True)) <= MESSAGE_LIMIT
        return is_short and not is_deeper(value, ATTRIBUTE_DEPTH)
    except Exception:  # not plain data
        return False
