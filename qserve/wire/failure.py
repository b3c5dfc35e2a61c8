"""Send exceptions to callers as text and the name of a type, never as a pickle.

The receiver recreates the original type only if it is an exception class that the receiver has imported already: a
message can cause no import and no call (compare CVE-2021-23727).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
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
from qserve.wire.codec import find_loaded, is_deeper, unpack

MESSAGE_LIMIT = 4096
ATTRIBUTE_DEPTH = 64
"""How deep the attributes of an error may be nested to travel with it."""
_NAME_LIMIT = 256
_PARTS_LIMIT = 64


@dataclass(frozen=True)
class Failure:
    """The error with which a request ended.

    Parameters:
      module, type: Name the exception's class.
      deployment: Where it was raised; "" when qserve itself refused the request.
      args, attributes: The exception's arguments and its own attributes, as far as they are plain data.
      is_answer: Whether it is an HTTP response in itself, like starlette's ``HTTPException``.
    """

    module: str
    type: str
    message: str
    traceback: str = ""
    deployment: str = ""
    args: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    is_answer: bool = False

    def encode(self) -> bytes:
        """Return the failure as msgpack."""
        return msgpack.packb(list(vars(self).values()), unicode_errors="replace")  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> Failure:
        """Read what ``encode`` wrote; raise PayloadError for anything else."""
        try:
            module, kind, message, trace, deployment, args, attributes, is_answer = unpack(
                data, "a failure", ATTRIBUTE_DEPTH + 4
            )
            if not all(type(text) is str for text in (module, kind, message, trace, deployment)):
                raise ValueError("its names and messages are not text")
            return cls(module, kind, message, trace, deployment, tuple(args), dict(attributes), is_answer)
        except Exception as error:
            raise PayloadError(f"{len(data)} bytes are not a failure: {type(error).__name__}") from error

    @classmethod
    def of(cls, error: BaseException, deployment: str = "") -> Failure:
        """Describe ``error``; one that came from another deployment, or the end of its replica, keeps its origin.

        This never raises, and its result can always be encoded: a failed call must end, even if the error's class
        runs code of its own here.
        """
        is_of_others = isinstance(error, ReplicaLost | TimeLimitExceeded | TaskError)
        inner = vars(error).get("__failure__") if is_of_others else None
        if inner is not None:
            return inner  # type: ignore[no-any-return]
        kind, starlette = type(error), sys.modules.get("starlette.exceptions")
        try:
            own = islice(vars(error).items(), _PARTS_LIMIT)
            return cls(
                _cut(str(kind.__module__), _NAME_LIMIT),
                _cut(kind.__qualname__, _NAME_LIMIT),
                _cut(_text(error), MESSAGE_LIMIT),
                full_traceback(error),
                deployment,
                _plain(error.args),
                {name: value for name, value in own if not name.startswith("_") and _is_small(value)},
                starlette is not None and issubclass(kind, starlette.HTTPException),
            )
        except BaseException as second:
            message = f"<the error cannot be described: {type(second).__name__}>"
            return cls("", _cut(kind.__name__, _NAME_LIMIT), message, deployment=deployment)

    def to_exception(self) -> BaseException:
        """Return the exception for the caller: one of qserve's, or a TaskError that is also the original type."""
        ours = find_loaded(self.module, self.type) if self.module == exceptions.__name__ else None
        if isinstance(ours, type) and issubclass(ours, QserveException) and not self.deployment:
            if ours is not BackPressureError:
                raised: Any = ours(self.message)
                vars(raised).update(self.attributes)
                raised.__failure__ = self
                return raised  # type: ignore[no-any-return]
            after_s = self.attributes.get("retry_after_s")
            return BackPressureError(self.message, after_s if type(after_s) is int else 1)
        error: Any = _rebuild(_task_error(self.module, self.type), self.args)
        vars(error).update(self.attributes)
        error.remote_type, error.remote_message = self.type, self.message
        error.remote_traceback, error.deployment = self.traceback, self.deployment
        error.__failure__ = self
        return error  # type: ignore[no-any-return]


def _rebuild(kind: type[TaskError], args: tuple[Any, ...]) -> Any:
    try:
        error = kind.__new__(kind, *args)
    except Exception:  # the original type refuses its own arguments: the general error has the same text
        error = TaskError.__new__(TaskError)
    error.args = args
    return error


@lru_cache(maxsize=256)
def _task_error(module: str, qualname: str) -> type[TaskError]:
    original = find_loaded(module, qualname)
    if not isinstance(original, type) or not issubclass(original, Exception):
        return _Text
    if issubclass(original, RequestError):
        return type(original.__name__, (_Text, original), {})
    try:
        return type(f"TaskError({original.__name__})", (_Text, original), {"__init__": lambda self, *a, **k: None})
    except TypeError:  # a type that cannot be subclassed, or whose layout clashes
        return _Text


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
    return kept if len(kept) <= _PARTS_LIMIT and all(map(_is_plain, kept)) else ()


def _is_plain(value: Any) -> bool:
    if type(value) is int:
        return value.bit_length() < 64  # msgpack has no longer integers
    return type(value) in (str, float, bool, type(None))


def _is_small(value: Any) -> bool:
    try:
        # packed first: that ends for a value that contains itself
        is_short = len(msgpack.packb(value, strict_types=True)) <= MESSAGE_LIMIT
        return is_short and not is_deeper(value, ATTRIBUTE_DEPTH)
    except Exception:  # not plain data
        return False
