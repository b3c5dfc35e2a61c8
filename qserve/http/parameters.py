"""Where each parameter of an HTTP adapter comes from: its signature, parsed once by FastAPI's rules.

| parameter                                           | comes from                       |
| --------------------------------------------------- | -------------------------------- |
| annotated ``Request``                               | the request itself               |
| a scalar (int, str, bool, enum, date, ...)          | the query                        |
| a pydantic model, dataclass, dict, list, ...        | the JSON body                    |
| ``bytes``, ``UploadFile``                           | a file in a form                 |
| marked ``Query``, ``Header``, ``Form``, ``Depends``, ... | what FastAPI's marker says  |
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from starlette.datastructures import UploadFile
from starlette.requests import HTTPConnection


class Source(enum.Enum):
    """Where a parameter's value is read from; the value is the first part of ``loc`` in errors."""

    REQUEST = "request"
    QUERY = "query"
    HEADER = "header"
    COOKIE = "cookie"
    PATH = "path"
    BODY = "body"
    FORM = "form"
    FILE = "file"
    DEPENDENCY = "dependency"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of an adapter.

    Parameters:
      name: Its name in the function.
      source: Where its value comes from.
      alias: Its name in the request.
      many: Whether the request may contain several values.
      default: Returns its value when the request has none; None when it is required.
      check: Converts and validates the value; None when it is passed on as it is.
      embed: Whether a body parameter always has its own key in the body.
      dependency: Another adapter function, for ``DEPENDENCY``.
    """

    name: str
    source: Source
    alias: str = ""
    many: bool = False
    default: Callable[[], Any] | None = None
    check: TypeAdapter[Any] | None = None
    embed: bool = False
    dependency: Callable[..., Any] | None = None


# FastAPI's markers are recognised by name, because FastAPI need not be installed
_MARKERS = {
    "Query": Source.QUERY,
    "Header": Source.HEADER,
    "Cookie": Source.COOKIE,
    "Path": Source.PATH,
    "File": Source.FILE,
    "Form": Source.FORM,
    "Body": Source.BODY,
    "Depends": Source.DEPENDENCY,
}
_CONTAINERS = (
    BaseModel, dict, list, tuple, set, frozenset, collections.deque, collections.abc.Mapping,
    collections.abc.Sequence, collections.abc.Set,
)  # fmt: skip
_SEQUENCES = (list, tuple, set, frozenset, collections.deque)


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the parameters of an adapter function.

    Raises:
      TypeError: pydantic cannot validate a parameter's type; the message names the parameter.
    """
    hints = _hints(function)
    return tuple(
        _parameter(parameter, hints.get(name, parameter.annotation))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    )


def body_of(model: type[BaseModel]) -> Parameter:
    """Return the only parameter of a pydantic class that is used as an adapter: the whole body."""
    return Parameter("", Source.BODY, check=TypeAdapter(model))


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    try:
        # a function inside another one may use names of that one, which typing does not find by itself
        local = inspect.getclosurevars(inspect.unwrap(function)).nonlocals
        return typing.get_type_hints(function, localns=dict(local) or None, include_extras=True)
    except (NameError, TypeError, ValueError):
        return dict(getattr(function, "__annotations__", {}))


def _parameter(parameter: inspect.Parameter, annotation: Any) -> Parameter:
    marker, annotation, metadata = _marker_of(parameter.default, annotation)
    default = _default_of(parameter.default, marker)
    source = _source_of(annotation, marker)
    if source is Source.REQUEST:
        return Parameter(parameter.name, source)
    if source is Source.DEPENDENCY:
        dependency = getattr(marker, "dependency", None) or annotation
        return Parameter(parameter.name, source, dependency=dependency)
    many = _is_kind(annotation, _SEQUENCES) and source not in (Source.BODY, Source.PATH)
    return Parameter(
        parameter.name,
        source,
        _alias(parameter.name, source, marker),
        many,
        default,
        _check_of(parameter.name, annotation, metadata),
        bool(getattr(marker, "embed", False)),
    )


def _marker_of(default: Any, annotation: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    metadata: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *found = get_args(annotation)
        metadata = tuple(found)
    candidates = [part for part in (*metadata, default) if _marked_source(part) is not None]
    marker = candidates[-1] if candidates else None
    rest = tuple(part for part in metadata if part is not marker)
    return marker, annotation, (*rest, *getattr(marker, "metadata", ()))


def _marked_source(value: Any) -> Source | None:
    names = (kind.__name__ for kind in type(value).__mro__)
    source = next((_MARKERS[name] for name in names if name in _MARKERS), None)
    is_marker = isinstance(value, FieldInfo) or hasattr(value, "dependency")
    return source if is_marker else None


def _default_of(default: Any, marker: Any) -> Callable[[], Any] | None:
    if (default is marker and isinstance(marker, FieldInfo)) or default is inspect.Parameter.empty:
        factory = getattr(marker, "default_factory", None)
        if factory is not None:
            return factory  # type: ignore[no-any-return]
        default = getattr(marker, "default", PydanticUndefined)
    if default is PydanticUndefined or default is ...:
        return None
    return lambda: default


def _source_of(annotation: Any, marker: Any) -> Source:
    marked = _marked_source(marker)
    if marked is not None:
        return marked
    if _is_kind(annotation, (HTTPConnection,)):
        return Source.REQUEST
    if _holds(annotation, bytes) or _holds(annotation, UploadFile):
        return Source.FILE
    if _is_kind(annotation, _CONTAINERS) or _is_dataclass(annotation):
        return Source.BODY
    return Source.QUERY


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _is_kind(annotation: Any, kinds: tuple[type, ...]) -> bool:
    for alternative in _alternatives(annotation):
        kind = get_origin(alternative) or alternative
        if isinstance(kind, type) and issubclass(kind, kinds) and not issubclass(kind, str | bytes):
            return True
    return False


def _is_dataclass(annotation: Any) -> bool:
    return any(map(dataclasses.is_dataclass, _alternatives(annotation)))


def _holds(annotation: Any, kind: type) -> bool:
    """Return whether an annotation is ``kind``, a list of it, or a union with one of these."""
    for alternative in _alternatives(annotation):
        items = get_args(alternative) if get_origin(alternative) in _SEQUENCES else (alternative,)
        if any(isinstance(item, type) and issubclass(item, kind) for item in items):
            return True
    return False


def _alias(name: str, source: Source, marker: Any) -> str:
    alias = getattr(marker, "alias", None)
    if alias:
        return str(alias)
    return name.replace("_", "-") if source is Source.HEADER else name


def _check_of(name: str, annotation: Any, metadata: tuple[Any, ...]) -> TypeAdapter[Any] | None:
    if annotation is Any or annotation is inspect.Parameter.empty:
        return None
    if _holds(annotation, UploadFile):
        return None
    try:
        kind: Any = Annotated[(annotation, *metadata)] if metadata else annotation
        return TypeAdapter(kind)
    except Exception as error:
        raise TypeError(
            f"parameter {name!r} of the HTTP adapter is annotated {annotation!r}, which cannot be read from "
            f"a request: {error}"
        ) from error
