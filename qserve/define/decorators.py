"""Shared by ``@batch`` and ``@multiplexed``: state kept on the instance, and errors raised for several callers."""

from __future__ import annotations

import inspect
from typing import Any, Final


class State(dict[Any, Any]):
    """State that a decorated method keeps on an instance; pickles and deep copies of the instance start without it."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return State, ()


def state_of(owner: Any, attribute: str) -> State:
    """Return the state that an object keeps under an attribute, creating it on first use.

    Raises:
      TypeError: The object has no ``__dict__``.
    """
    try:
        state: State = vars(owner).setdefault(attribute, State())
    except TypeError:
        raise TypeError(f"{type(owner).__name__} needs a `__dict__`: add '__dict__' to its __slots__") from None
    return state


def has_self(signature: inspect.Signature) -> bool:
    """Return whether a decorated function is a method: it is when its first parameter is called ``self``."""
    return next(iter(signature.parameters), "") == "self"


def check_async(decorator: str, func: Any, is_async: bool) -> None:
    if not is_async:
        name = getattr(func, "__qualname__", repr(func))
        raise TypeError(f"@{decorator} needs an `async def` function or method, and {name} is not one")


class Failure:
    """An error on its way to several callers, with the traceback that it has now."""

    def __init__(self, error: BaseException) -> None:
        self.error: Final = error
        self.traceback: Final = error.__traceback__


def value_of(result: Any) -> Any:
    """Return a result, or raise the error of a ``Failure``."""
    if not isinstance(result, Failure):
        return result
    try:
        # several callers raise this object: each with the original traceback, without the frames of the others
        raise result.error.with_traceback(result.traceback)
    finally:
        del result  # the traceback holds this frame: a cycle would keep the instance alive
