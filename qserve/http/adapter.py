"""HTTP adapters: check them when they are bound, and run them on replicas to turn requests into a graph's input."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response

from qserve.base.context import get_request_context
from qserve.exceptions import QserveException
from qserve.http.message import BadRequest
from qserve.http.parameters import Parameter, Source, body_of, parameters_of
from qserve.http.render import to_json
from qserve.http.strict_json import loads

AdapterLike = Callable[..., Any] | type[BaseModel] | str | None
"""What ``DAGDriver.bind`` accepts as ``http_adapter``; a string is an import path."""

_MISSING: Any = object()
_LOCATION = {Source.FORM: "body", Source.FILE: "body"}


# -- when it is bound ------------------------------------------------------------------------------


def check_adapter(adapter: Any) -> None:
    """Refuse what cannot be an HTTP adapter.

    Parameters:
      adapter: A function, a pydantic model class, an import string (imported later) or None.

    Raises:
      ValueError: It is not callable, or one of its parameters has no annotation.
    """
    if adapter is None or isinstance(adapter, str) or _is_model(adapter):
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


def _is_model(adapter: Any) -> bool:
    return inspect.isclass(adapter) and issubclass(adapter, BaseModel)


# -- on a replica ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapter:
    """An adapter with its signature parsed; ``await adapter(request)`` returns the graph's input.

    Parameters:
      function: The user's function; None when the request or its body is the input.
      parameters: Where its arguments come from.
      dependencies: The adapters of parameters marked ``Depends``, by name.
    """

    function: Callable[..., Any] | None
    parameters: tuple[Parameter, ...]
    dependencies: dict[str, Adapter]

    @classmethod
    def of(cls, adapter: Any) -> Adapter:
        """Prepare what was given to ``DAGDriver.bind`` as ``http_adapter``.

        Parameters:
          adapter: A function, a pydantic model class, an import string, or None for the request itself.

        Raises:
          ValueError: It is none of these, or a parameter has no annotation.
          TypeError: A parameter's type cannot be read from a request.
        """
        loaded = load_adapter(adapter)
        if loaded is None:
            return cls(None, (Parameter("", Source.REQUEST),), {})
        if inspect.isclass(loaded) and issubclass(loaded, BaseModel):
            return cls(None, (body_of(loaded),), {})
        parameters = parameters_of(loaded)
        dependencies = {
            parameter.name: cls.of(parameter.dependency)
            for parameter in parameters
            if parameter.source is Source.DEPENDENCY
        }
        return cls(loaded, parameters, dependencies)

    async def __call__(self, request: Request) -> Any:
        """Turn a request into the graph's input.

        Raises:
          RequestValidationError: The request does not match the adapter's parameters.
        """
        form = await _form(request) if self._takes(Source.FORM, Source.FILE) else FormData()
        try:
            arguments = await self._arguments(request, form)
            return arguments[""] if self.function is None else await self._run(request, arguments)
        finally:
            await form.close()

    async def _run(self, request: Request, arguments: dict[str, Any]) -> Any:
        assert self.function is not None
        try:
            if _is_async(self.function):
                return await self.function(**arguments)
            # in a thread, as in FastAPI: decoding an image must not block the replica
            return await asyncio.to_thread(self.function, **arguments)
        except json.JSONDecodeError as error:
            body = await request.body()
            if error.doc not in (body, body.decode(errors="replace")):
                raise
            message = f"the request body is not valid JSON: {error}"
            raise _unreadable(BadRequest(message, "invalid_json")) from error

    async def _arguments(self, request: Request, form: FormData) -> dict[str, Any]:
        found: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        body = await _json_body(request) if self._takes(Source.BODY) else _MISSING
        embed = self._embeds()
        for parameter in self.parameters:
            if parameter.source is Source.REQUEST:
                found[parameter.name] = request
            elif parameter.source is Source.DEPENDENCY:
                found[parameter.name] = await self.dependencies[parameter.name](request)
            elif parameter.source is Source.BODY:
                location, value = _from_body(parameter, body, embed)
                _accept(parameter, location, value, found, errors)
            else:
                source = _source_in(parameter, request)
                location = (_LOCATION.get(source, source.value), parameter.alias)
                value = await _look_up(parameter, source, request, form)
                _accept(parameter, location, value, found, errors)
        if errors:
            raise RequestValidationError(errors, body=body)
        return found

    def _takes(self, *sources: Source) -> bool:
        return any(parameter.source in sources for parameter in self.parameters)

    def _embeds(self) -> bool:
        bodies = [parameter for parameter in self.parameters if parameter.source is Source.BODY]
        return len(bodies) > 1 or any(parameter.embed for parameter in bodies)


def _is_async(function: Callable[..., Any]) -> bool:
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _accept(
    parameter: Parameter,
    location: tuple[Any, ...],
    value: Any,
    found: dict[str, Any],
    errors: list[dict[str, Any]],
) -> None:
    """Add a validated value to ``found``, or what is wrong with it to ``errors``."""
    if value is _MISSING:
        if parameter.default is not None:
            found[parameter.name] = parameter.default()
            return
        errors.append({"type": "missing", "loc": list(location), "msg": "Field required", "input": None})
        return
    if parameter.check is None:
        found[parameter.name] = value
        return
    try:
        found[parameter.name] = parameter.check.validate_python(value)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            errors.append({**detail, "loc": [*location, *detail["loc"]]})


# -- reading the request ---------------------------------------------------------------------------


def _from_body(parameter: Parameter, body: Any, embed: bool) -> tuple[tuple[Any, ...], Any]:
    if not embed:
        return ("body",), body
    location = ("body", parameter.alias)
    if isinstance(body, dict):
        return location, body.get(parameter.alias, _MISSING)
    return location, _MISSING


def _source_in(parameter: Parameter, request: Request) -> Source:
    # a parameter without a marker comes from the path when the route names it
    in_path = parameter.source is Source.QUERY and parameter.alias in request.path_params
    return Source.PATH if in_path else parameter.source


async def _look_up(parameter: Parameter, source: Source, request: Request, form: FormData) -> Any:
    alias = parameter.alias
    if source in (Source.FORM, Source.FILE):
        items = form.getlist(alias)
        values = [await _content(parameter, item) for item in items]
    elif source is Source.QUERY:
        values = request.query_params.getlist(alias)
    elif source is Source.HEADER:
        values = request.headers.getlist(alias)
    else:
        named = request.cookies if source is Source.COOKIE else request.path_params
        values = [named[alias]] if alias in named else []
    if not values:
        return _MISSING
    return values if parameter.many else values[-1]


async def _content(parameter: Parameter, item: Any) -> Any:
    # a parameter that is not validated is annotated UploadFile, and gets the file itself
    if isinstance(item, UploadFile) and parameter.check is not None:
        return await item.read()
    return item


async def _json_body(request: Request) -> Any:
    body = await request.body()
    if not body:
        return _MISSING
    try:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise BadRequest("a JSON body must not be compressed", "unsupported_encoding", 415)
        return loads(body)
    except BadRequest as error:
        raise _unreadable(error) from error


async def _form(request: Request) -> FormData:
    try:
        return await request.form()
    except (HTTPException, MultiPartException, ValueError, KeyError) as error:
        raise _unreadable(BadRequest(f"the form cannot be read: {error}", "invalid_form")) from error


# -- requests that do not match --------------------------------------------------------------------


class RequestValidationError(QserveException):
    """Raised when a request does not match an adapter's parameters.

    Parameters:
      errors: What is wrong, in FastAPI's form: dicts with ``loc``, ``msg``, ``type`` and ``input``.
      status: 422, or another status when the body could not be read at all.
      code: Names the kind of error for programs.
      body: The JSON document that was sent, if there was one.
    """

    def __init__(
        self, errors: list[dict[str, Any]], status: int = 422, code: str = "invalid_request", body: Any = _MISSING
    ) -> None:
        super().__init__("; ".join(str(error["msg"]) for error in errors))
        self.errors = errors
        self.body = body
        self.status = status
        self.code = code


def _unreadable(error: BadRequest) -> RequestValidationError:
    detail = {"type": error.code, "loc": ["body"], "msg": str(error), "input": None}
    return RequestValidationError([detail], error.status, error.code)


def validation_response(error: RequestValidationError) -> Response:
    """Return the HTTP response for a request that does not match its adapter."""
    described: dict[str, Any] = {
        "code": error.code,
        "message": str(error),
        "request_id": get_request_context().request_id,
        "retryable": False,
    }
    first = next((detail for detail in error.errors if detail["loc"][0] == "body"), None)
    if error.body is not _MISSING and first is not None:
        described["pointer"] = _pointer_to(first["loc"][1:], first["type"] == "missing", error.body)
    return Response(
        to_json({"detail": error.errors, "error": described}), status_code=error.status, media_type="application/json"
    )


def _pointer_to(loc: Sequence[Any], is_missing: bool, document: Any) -> str:
    """Return the JSON pointer (RFC 6901) of an error in a document.

    Parameters:
      loc: pydantic's path to the error. It may contain words that are not part of the document, such as the member of
        a union that pydantic tried; these are left out.
      is_missing: Whether the last part of ``loc`` is missing in the document.
      document: The JSON document.
    """
    found = []
    for number, part in enumerate(loc, 1):
        if _has(document, part):
            document = document[part]
        elif number < len(loc) or not is_missing:
            continue
        found.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in found)


def _has(document: Any, part: Any) -> bool:
    if isinstance(document, dict):
        return part in document
    return isinstance(document, list) and isinstance(part, int) and 0 <= part < len(document)
