"""HTTP adapters at work: a starlette request in, a graph's input out, by FastAPI's rules.

This runs user code, so it runs on replicas.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
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
from qserve.http.adapter import load_adapter
from qserve.http.bad_request import BadRequest
from qserve.http.parameters import Parameter, Source, body_of, parameters_of
from qserve.http.pointers import pointer_to
from qserve.http.render import to_json
from qserve.http.strict_json import loads

_MISSING: Any = object()
_LOCATION = {Source.FORM: "body", Source.FILE: "body"}


class RequestValidationError(QserveException):
    """Raised when a request does not fit an adapter.

    Parameters:
      errors: What is wrong, as FastAPI describes it: dicts with ``loc``, ``msg``, ``type``, ``input``.
      status: 422, or another when the body could not be read at all.
      code: The word for programs.
      body: The JSON document that was sent, where there was one.
    """

    def __init__(
        self, errors: list[dict[str, Any]], status: int = 422, code: str = "invalid_request", body: Any = _MISSING
    ) -> None:
        super().__init__("; ".join(str(error["msg"]) for error in errors))
        self.errors = errors
        self.body = body
        self.status = status
        self.code = code


def validation_response(error: RequestValidationError) -> Response:
    """The HTTP answer for a request that does not fit its adapter."""
    told: dict[str, Any] = {
        "code": error.code,
        "message": str(error),
        "request_id": get_request_context().request_id,
        "retryable": False,
    }
    first = next((one for one in error.errors if one["loc"][0] == "body"), None)
    if error.body is not _MISSING and first is not None:
        told["pointer"] = pointer_to({**first, "loc": first["loc"][1:]}, error.body)
    return Response(
        to_json({"detail": error.errors, "error": told}), status_code=error.status, media_type="application/json"
    )


@dataclass(frozen=True)
class Adapter:
    """One adapter, its signature read once; ``await adapter(request)`` gives the graph's input.

    Parameters:
      function: The user's function; None when the body itself is the input.
      parameters: Where its arguments come from.
      dependencies: The adapters of parameters marked ``Depends``, by name.
    """

    function: Callable[..., Any] | None
    parameters: tuple[Parameter, ...]
    dependencies: dict[str, Adapter]

    @classmethod
    def of(cls, adapter: Any) -> Adapter:
        """Prepare whatever ``DAGDriver.bind`` takes as ``http_adapter``.

        Parameters:
          adapter: A function, a pydantic model class, an import string, or None for the request itself.

        Raises:
          ValueError: It is none of these, or a parameter has no annotation.
          TypeError: A parameter's annotation cannot be read from a request.
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
        """Turn one request into the graph's input.

        Raises:
          RequestValidationError: The request does not fit.
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
            # in a thread, as FastAPI does: decoding an image must not stop the replica
            return await asyncio.to_thread(self.function, **arguments)
        except json.JSONDecodeError as error:
            body = await request.body()
            if error.doc not in (body, body.decode(errors="replace")):
                raise
            raise _unreadable(BadRequest(f"the body is not JSON: {error}", "invalid_json")) from error

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
        bodies = [one for one in self.parameters if one.source is Source.BODY]
        return len(bodies) > 1 or any(one.embed for one in bodies)


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
    """Put a checked value into ``found``, or what is wrong with it into ``errors``."""
    if value is _MISSING:
        if parameter.default is not None:
            found[parameter.name] = parameter.default()
            return
        wrong = {"type": "missing", "loc": list(location), "msg": "Field required", "input": None}
        errors.append(wrong)
        return
    if parameter.check is None:
        found[parameter.name] = value
        return
    try:
        found[parameter.name] = parameter.check.validate_python(value)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            one["loc"] = (*location, *one["loc"])
            errors.append({**one, "loc": list(one["loc"])})


def _from_body(parameter: Parameter, body: Any, embed: bool) -> tuple[tuple[Any, ...], Any]:
    if not embed:
        return ("body",), body
    location = ("body", parameter.alias)
    if isinstance(body, dict):
        return location, body.get(parameter.alias, _MISSING)
    return location, _MISSING


def _source_in(parameter: Parameter, request: Request) -> Source:
    # a plain parameter that the route's path names comes from there
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
    # without a check the parameter is annotated UploadFile, and gets the file itself
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


def _unreadable(error: BadRequest) -> RequestValidationError:
    wrong = {"type": error.code, "loc": ["body"], "msg": str(error), "input": None}
    return RequestValidationError([wrong], error.status, error.code)
