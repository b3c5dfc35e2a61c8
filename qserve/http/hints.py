"""Annotations made ready for a journey by value.

Under ``from __future__ import annotations`` they are text, and names that only annotations use do not travel
with a function: on a replica the text could not be read any more.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints


def settle_hints(function: Any) -> None:
    """Put types in the place of text in a function's annotations, and in those of what it depends on.

    Parameters:
      function: A function, a class or an object with ``__call__``, whose parameters FastAPI or an adapter
        fills. What cannot be read here either is left as it is.
    """
    _settle(function, set())


def settle_routes(routes: Iterable[Any]) -> None:
    """The same for the endpoints of FastAPI's routes, and for the routers among them."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            settle_routes(inner.routes)
        for one in (getattr(route, "endpoint", None), *_functions_of(getattr(route, "dependencies", None) or ())):
            if one is not None:
                settle_hints(one)


def _settle(function: Any, seen: set[int]) -> None:
    function = _plain_function(function)
    if function is None or id(function) in seen:
        return
    seen.add(id(function))
    plain = inspect.unwrap(function)
    if plain is not function:
        _settle(plain, seen)
    hints = function.__annotations__
    for name, hint in hints.items():
        if isinstance(hint, str):
            hints[name] = _read(hint, plain)
    marks = [part for hint in hints.values() for part in get_args(hint)]
    for one in _functions_of([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *marks]):
        _settle(one, seen)


def _read(hint: str, function: Any) -> Any:
    places = SimpleNamespace(__annotations__={"it": hint})
    try:
        local = inspect.getclosurevars(function).nonlocals
        return get_type_hints(places, function.__globals__, dict(local), include_extras=True)["it"]
    except Exception:  # whoever reads it where it is needed will say what is wrong
        return hint


def _plain_function(function: Any) -> Any:
    """The Python function behind a callable; None when there is none."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isclass(function):
        function = function.__init__
    elif not inspect.isroutine(function):
        function = getattr(type(function), "__call__", None)  # noqa: B004
    function = getattr(function, "__func__", function)
    return function if inspect.isfunction(function) else None


def _functions_of(marks: Iterable[Any]) -> Iterator[Any]:
    """What is behind ``Depends(...)``, known by its attribute: FastAPI itself need not be installed."""
    for mark in marks:
        if type(mark).__name__ in ("Depends", "Security") and getattr(mark, "dependency", None) is not None:
            yield mark.dependency
