"""Pickle values that have no code of their own, by value where other processes cannot import their code.

A pickle runs code in the process that reads it, so one is loaded only after its signature has been verified.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import os
import pickle
import sys
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from types import CodeType, FunctionType
from typing import Any, NewType, ParamSpec, TypeVarTuple

import cloudpickle

from qserve.base.keyring import Keyring
from qserve.exceptions import PayloadError
from qserve.wire.codes import reducers
from qserve.wire.tensors import register_tensors


def dumps(value: Any, keeps: Callable[[pickle.PickleBuffer], bool] | None = None) -> bytes:
    """Pickle a value, by value where other processes cannot import its classes and functions.

    Parameters:
      keeps: Returns of each buffer of an array or table whether the pickle should hold it; None if it always should.
    """
    return _dumps(value, _Pickler, keeps)


def dumps_code(value: Any) -> bytes:
    """Pickle code; the context variables that travel with it keep the values that they have here, as globals do."""
    return _dumps(value, _CodePickler)


def _dumps(value: Any, kind: type[cloudpickle.Pickler], keeps: Callable[[Any], bool] | None = None) -> bytes:
    register_tensors()
    file = io.BytesIO()
    kind(file, buffer_callback=keeps).dump(value)
    return file.getvalue()


def _reduce_code(code: CodeType) -> Any:
    # since 3.1.3 cloudpickle leaves out the file's name, so that pickles are the same on all machines; tracebacks
    # need it
    make, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in parts)


def _reduce_file(file: io.TextIOWrapper) -> Any:
    if "+" in getattr(file, "mode", ""):  # cloudpickle would send its content, and lose what is written
        raise pickle.PicklingError("Cannot pickle files that are opened for writing")
    return cloudpickle.Pickler.dispatch_table[io.TextIOWrapper](file)


_variables: dict[str, ContextVar[Any]] = {}
"""The context variables that were sent or received by value, so that all code of a process finds the same ones."""


def _by_value() -> set[str]:
    """Return the names of modules that other processes cannot import."""
    return {"__main__", "__mp_main__", *cloudpickle.list_registry_pickle_by_value()}


def _reduce_variable(variable: ContextVar[Any]) -> Any:
    place = next((place for place, other in _variables.items() if other is variable), "")
    for name, module in () if place else list(sys.modules.items()):
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                place = f"{name}:{attribute}"
                if name not in _by_value():
                    return _imported_variable, (name, attribute)
    place = place or os.urandom(8).hex()
    _variables[place] = variable
    try:
        return _variable, (place, variable.name, Context().run(variable.get))
    except LookupError:  # it has no default
        return _variable, (place, variable.name)


def _reduce_variable_with_value(variable: ContextVar[Any]) -> Any:
    make, parts = _reduce_variable(variable)
    context = copy_context()
    if make is _imported_variable or variable not in context:
        return make, parts
    try:
        dumps(context[variable])
    except Exception:  # the code may not need it, as it may set it in each call
        return make, parts
    return make, parts, (context[variable],), None, None, _set_variable


def _set_variable(variable: ContextVar[Any], state: tuple[Any]) -> None:
    variable.set(*state)


def _imported_variable(module: str, attribute: str) -> Any:
    return getattr(importlib.import_module(module), attribute)


def _variable(place: str, name: str, *default: Any) -> ContextVar[Any]:
    if place not in _variables:
        _variables[place] = ContextVar(name, default=default[0]) if default else ContextVar(name)
    return _variables[place]


def _reduce_by_name(value: Any) -> Any:
    """Reduce a value to its module and name, or to what it is made of where its module cannot be imported."""
    if value.__module__ in _by_value() or "<locals>" in getattr(value, "__qualname__", ""):
        make, *parts = _PARTS[type(value)](value)
        return make, tuple(parts)
    return value.__reduce__()


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reduce_cached_property(made: functools.cached_property[Any]) -> Any:
    # without its lock, which it has until Python 3.12; its name, because the class does not give it again
    return functools.cached_property, (made.func,), {"attrname": made.attrname}


_CACHED = type(functools.cache(dumps))
_PARTS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    _CACHED: lambda value: (_cached, value.__wrapped__, value.cache_parameters()),
    NewType: lambda value: (NewType, value.__name__, value.__supertype__),
    ParamSpec: lambda value: (ParamSpec, value.__name__),
    TypeVarTuple: lambda value: (TypeVarTuple, value.__name__),
}
"""How the values are made again that Python pickles by their names."""
reducers.update(dict.fromkeys(_PARTS, _reduce_by_name))
reducers[functools.cached_property] = _reduce_cached_property
# what these hold is held by others; singledispatch has a cache of this kind
reducers[weakref.WeakKeyDictionary] = lambda weak: (weakref.WeakKeyDictionary, (dict(weak),))
reducers[weakref.WeakValueDictionary] = lambda weak: (weakref.WeakValueDictionary, (dict(weak),))
reducers[CodeType] = _reduce_code
reducers[ContextVar] = _reduce_variable
reducers[io.TextIOWrapper] = _reduce_file
reducers[memoryview] = lambda view: (bytes, (bytes(view),))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table = ChainMap(reducers, cloudpickle.Pickler.dispatch_table)


class _CodePickler(_Pickler):
    dispatch_table = ChainMap({ContextVar: _reduce_variable_with_value}, _Pickler.dispatch_table)


def unpickle_part(data: bytes, keys: Keyring, name: str) -> Any:
    """Return one value of a signed dict whose values are pickled one by one; errors of user code pass through.

    Raises:
      PayloadError: The signature is missing or wrong.
    """
    body = keys.verify(data)
    if body is None:
        raise PayloadError(
            "the application's code is not signed with this process's key: set QSERVE_SECRET_KEY to the same secret"
            " everywhere"
        )
    return pickle.loads(pickle.loads(body)[name])


# -- what cannot be pickled ------------------------------------------------------------------------

_DEEPEST = 50


def culprit(value: Any, error: Exception, name: str = "", path: str = "", depth: int = 0) -> str:
    """Name the object of the user that keeps a value from being pickled, and say where it is used.

    Parameters:
      error: What pickling it has raised.
      name: What the object is called, and where.
      path: Which part of that object ``value`` is.
    """
    for new_name, step, part in _parts(value) if depth < _DEEPEST else ():
        try:
            dumps(part)
        except Exception as cause:
            if new_name and not (name and _is_of_library(value)):
                return culprit(part, cause, new_name, step, depth + 1)
            return culprit(part, cause, name, path if new_name else path + step, depth + 1)
    shown = f"{path.lstrip('.')}: {error}" if path and path not in name else str(error)
    return f"{name} cannot be pickled: {shown}" if name else shown


def _is_of_library(value: Any) -> bool:
    return getattr(value, "__module__", "__main__") not in _by_value()


def _parts(value: Any) -> Iterator[tuple[str, str, Any]]:
    """Return the parts of a value; a part with a name of its own is described by that, and others by a step to them."""
    if isinstance(value, FunctionType):
        yield from _parts_of_function(value)
    elif inspect.isclass(value):
        for name, member in vars(value).items():
            function = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member)))
            yield f"the attribute {name!r} of the class {value.__qualname__}", name, function
        for base in value.__bases__:
            yield "", "", base
    elif isinstance(value, dict):
        yield from (("", f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (("", f"[{number}]", part) for number, part in enumerate(value))
    else:
        yield from (("", f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
        yield "", "", type(value)


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, str, Any]]:
    who, codes = function.__qualname__, [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    used = {name for code in codes for name in code.co_names} & function.__globals__.keys()
    for name in sorted(used):
        yield f"the global variable {name!r}, which {who} uses,", name, function.__globals__[name]
    for name, enclosed in inspect.getclosurevars(function).nonlocals.items():
        yield f"the variable {name!r} of an enclosing function, which {who} uses,", name, enclosed
    for parameter in inspect.signature(function).parameters.values():
        yield f"the default of {parameter.name!r} in {who}", parameter.name, parameter.default
