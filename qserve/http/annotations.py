"""Resolve annotations that are text, before a function is pickled by value.

Under ``from __future__ import annotations`` all annotations are text, and a function that is pickled by value does
not take along the names that only its annotations use: on a replica, the text could no longer be resolved.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints


def resolve_annotations(function: Any) -> None:
    """Replace text by types in a function's annotations, and in those of its dependencies.

    Parameters:
      function: A function, a class or an object with ``__call__``, whose parameters FastAPI or an adapter fills.
        Annotations that cannot be resolved here either are left as they are.
    """
    _resolve(function, set())


def resolve_route_annotations(routes: Iterable[Any]) -> None:
    """Do the same for the endpoints of FastAPI's routes and of the routers among them."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            resolve_route_annotations(inner.routes)
        dependencies = _dependencies_in(getattr(route, "dependencies", None) or ())
        for function in (getattr(route, "endpoint", None), *dependencies):
            if function is not None:
                resolve_annotations(function)


def _resolve(function: Any, seen: set[int]) -> None:
    function = _plain_function(function)
    # ours travel by reference, and image_to_ndarray's would import FastAPI
    if function is None or id(function) in seen or function.__module__.startswith("qserve."):
        return
    seen.add(id(function))
    plain = inspect.unwrap(function)
    if plain is not function:
        _resolve(plain, seen)
    hints = function.__annotations__
    for name, hint in hints.items():
        if isinstance(hint, str):
            hints[name] = _evaluate(hint, plain)
    marks = [part for hint in hints.values() for part in get_args(hint)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for dependency in _dependencies_in([*defaults, *marks]):
        _resolve(dependency, seen)


def _evaluate(hint: str, function: Any) -> Any:
    holder = SimpleNamespace(__annotations__={"it": hint})
    try:
        local = inspect.getclosurevars(function).nonlocals
        return get_type_hints(holder, function.__globals__, dict(local), include_extras=True)["it"]
    except Exception:  # the code that needs the type will report the error
        return hint


def _plain_function(function: Any) -> Any:
    """Return the Python function behind a callable; None when there is none."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isclass(function):
        function = function.__init__
    elif not inspect.isroutine(function):
        function = getattr(type(function), "__call__", None)  # noqa: B004
    function = getattr(function, "__func__", function)
    return function if inspect.isfunction(function) else None


def _dependencies_in(marks: Iterable[Any]) -> Iterator[Any]:
    """Return the functions in ``Depends(...)``, recognised by name because FastAPI may not be imported."""
    for mark in marks:
        if type(mark).__name__ in ("Depends", "Security") and getattr(mark, "dependency", None) is not None:
            yield mark.dependency
