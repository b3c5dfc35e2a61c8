"""HTTP adapters: check them when they are bound, and run them on replicas to turn requests into a graph's input."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from qserve.exceptions import QserveException
from qserve.http import builtin_adapters as built_in
from qserve.http.rejection import MISSING, RequestValidationError, missing, read_form, read_json, unreadable

AdapterLike = Callable[..., Any] | type[BaseModel] | str | None
"""The values that ``DAGDriver.bind`` accepts as ``http_adapter``; a string is an import path."""

Run = Callable[[Any], Awaitable[Any]]
"""Runs a graph on its input, and returns its result."""
Adapter = Callable[[Request, Run], Coroutine[Any, Any, Any]]
"""Turns a request into a graph's input, runs the graph on it, and returns its result."""


def check_adapter(adapter: Any) -> None:
    """Refuse what cannot be an HTTP adapter.

    Parameters:
      adapter: A function, a pydantic model class, an import string (imported later) or None.

    Raises:
      ValueError: It is not callable, or one of its parameters has no annotation or is a response.
    """
    if adapter is None or isinstance(adapter, str) or (inspect.isclass(adapter) and issubclass(adapter, BaseModel)):
        return
    if not callable(adapter) or hasattr(adapter, "func_or_class"):  # a deployment cannot be called with a request
        raise ValueError(
            f"input schema must be a callable function or pydantic model class. Got {adapter!r} as http_adapter."
        )
    name = getattr(adapter, "__name__", repr(adapter))
    try:
        parameters = inspect.signature(adapter).parameters.values()
    except ValueError as error:
        raise ValueError(
            f"input schema function's signature should be type annotated, and {name!r} shows none. "
            "Wrap it in a function with annotations."
        ) from error
    for parameter in parameters:
        if parameter.annotation is inspect.Parameter.empty:
            raise ValueError(
                "input schema function's signature should be type annotated. Parameter "
                f"{parameter.name!r} of {name!r} is not: write {parameter.name}: Request for the "
                "request itself, or its type for a query parameter."
            )
        kind = parameter.annotation
        if issubclass(kind, Response) if inspect.isclass(kind) else kind == "Response":
            raise ValueError(_cannot_change_response(adapter))


def _cannot_change_response(adapter: Any) -> str:
    name = getattr(adapter, "__name__", repr(adapter))
    return (
        f"the HTTP adapter {name!r} has a parameter of type Response, and it runs before the graph, which makes the"
        " response: return a Response from the graph's last step, or serve a FastAPI application with @serve.ingress"
    )


def load_adapter(adapter: AdapterLike) -> Callable[..., Any] | type[BaseModel] | None:
    """Return the adapter itself, and import it if it was given as a string.

    Raises:
      ValueError: The string is not an import path, or what it names cannot be an adapter.
      ImportError: The module cannot be imported.
      AttributeError: The module does not have it.
    """
    if isinstance(adapter, str):
        module, _, name = adapter.rpartition(":" if ":" in adapter else ".")
        if not module or not name:
            raise ValueError(
                f"http_adapter {adapter!r} is not an import path. Write 'package.module.function' "
                "or 'package.module:function'."
            )
        adapter = getattr(importlib.import_module(module), name)
    check_adapter(adapter)
    return adapter  # type: ignore[return-value]


# -- on a replica ----------------------------------------------------------------------------------


def make_adapter(adapter: AdapterLike, path: str = "") -> Adapter:
    """Return what runs an adapter and then a graph; it raises RequestValidationError for requests that do not match.

    Parameters:
      adapter: A function, a pydantic model class, an import string, or None for the request itself.
      path: The route of the graph, whose ``{parameters}`` the adapter can take.

    Raises:
      ValueError: It is none of these, or a parameter has no annotation.
      TypeError: A parameter's type cannot be read from a request, or is a response.
    """
    loaded = load_adapter(adapter)
    if loaded is None:
        loaded = built_in.starlette_request
    if inspect.isfunction(loaded) and loaded in _BUILT_IN:
        return partial(_run_built_in, loaded, _BUILT_IN[loaded])
    user_adapter = importlib.import_module("qserve.http.user_adapter")  # it imports FastAPI
    made = user_adapter.UserAdapter(loaded, path)
    if made.changes_response:
        raise TypeError(_cannot_change_response(loaded))
    return made  # type: ignore[no-any-return]


async def _run_built_in(
    adapter: Callable[[Any], Any], read: Callable[[Request], Awaitable[Any]], request: Request, run: Run
) -> Any:
    argument = await read(request)
    try:
        if inspect.iscoroutinefunction(adapter):
            value = await adapter(argument)
        else:
            # in a thread, because decoding an image must not block the replica
            value = await asyncio.to_thread(adapter, argument)
    except json.JSONDecodeError as error:
        raise unreadable(f"the request body is not valid JSON: {error}", "invalid_json") from error
    except (ImportError, QserveException):
        raise
    except Exception as error:  # of numpy or Pillow, about a shape, a type, or the bytes of an image
        detail = {"type": "value_error", "loc": ["body"], "msg": str(error), "input": None}
        raise RequestValidationError([detail]) from error
    return await run(value)


async def _itself(request: Request) -> Request:
    return request


async def _document(expected: TypeAdapter[Any], request: Request) -> Any:
    document = await read_json(request)
    if document is MISSING:
        raise RequestValidationError([missing("body")])
    try:
        return expected.validate_python(document, from_attributes=True)
    except ValidationError as error:
        details = [{**detail, "loc": ["body", *detail["loc"]]} for detail in error.errors(include_url=False)]
        raise RequestValidationError(details, document=document) from error


async def _file(field: str, request: Request) -> bytes:
    form = await read_form(request)
    try:
        found = form.get(field)
        if found is None or found == "":
            raise RequestValidationError([missing("body", field)])
        return await found.read() if isinstance(found, UploadFile) else found.encode()
    finally:
        await form.close()


_BUILT_IN: dict[Callable[..., Any], Callable[[Request], Awaitable[Any]]] = {
    built_in.starlette_request: _itself,
    built_in.json_request: _itself,
    built_in.pandas_read_json: _itself,
    built_in.json_to_ndarray: partial(_document, TypeAdapter(built_in.NdArray)),
    built_in.json_to_multi_ndarray: partial(_document, TypeAdapter(dict[str, built_in.NdArray])),
    built_in.image_to_ndarray: partial(_file, "img"),
}
"""The adapters that come with qserve, and what reads the one argument of each; they need no FastAPI."""
