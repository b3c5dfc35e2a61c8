"""Adapters that users write, run by FastAPI: it fills their parameters, and runs their dependencies.

Only replicas of a driver with such an adapter import this module, because FastAPI takes 7 MB.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from fastapi import Depends, FastAPI, params
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError as FastAPIError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from qserve.base.log import get_logger
from qserve.http.annotations import resolve_annotations
from qserve.http.rejection import MISSING, RequestValidationError, read_form, read_json, unreadable
from qserve.http.request import ReceiveBody, read_body, with_own_json

log: Final = get_logger(__name__)

_RUN, _RESULT, _DOCUMENT = "qserve.run", "qserve.result", "qserve.document"
"""Keys of the scope: the function that runs the graph (until it is called), its result, and the body's JSON."""
_JSON_TYPE = re.compile(rb"application/([^;]*\+)?json\b", re.IGNORECASE)


class UserAdapter:
    """A user's function or pydantic model as the dependency of a route of FastAPI.

    The graph runs inside of the route's endpoint, so that dependencies with ``yield`` end after it, and see its errors.

    Parameters:
      adapter: The function, or the model that the body is parsed as.
      path: The route of the graph, whose ``{parameters}`` are path parameters of the function.

    Attributes:
      changes_response: Whether it has a parameter for the response, which has no effect here.

    Raises:
      TypeError: FastAPI cannot read one of the function's parameters from a request.
    """

    def __init__(self, adapter: Callable[..., Any], path: str) -> None:
        function = _dependency_of(adapter)
        dependency = Depends(function)

        async def endpoint(request: Request, value: Any = dependency) -> Response:
            run = request.scope.pop(_RUN)
            request.scope[_RESULT] = await run(value)
            return Response()

        try:
            route = _Route(path or "/", endpoint)
            self._app = route.app
        except Exception as error:
            name = getattr(function, "__name__", repr(function))
            raise TypeError(
                f"the parameters of the HTTP adapter {name}{inspect.signature(function)} cannot be read from"
                f" a request: {error.__context__ or error}"
            ) from error
        self.changes_response: bool = _changes_response(route.dependant)

    async def __call__(self, request: Request, run: Callable[[Any], Awaitable[Any]]) -> Any:
        """Turn a request into the graph's input, run the graph on it, and return its result.

        Raises:
          RequestValidationError: The request does not match the adapter's parameters.
        """
        body = await read_body(request)
        scope = {**request.scope, _RUN: run}
        try:
            # an application of FastAPI has a middleware for this: files of forms are closed when the stack ends
            async with AsyncExitStack() as scope["fastapi_middleware_astack"]:
                await self._app(scope, ReceiveBody(body), _discard)
        except Exception as error:
            if _RESULT in scope:
                # FastAPI has sent its response before dependencies end
                log.error(
                    "a dependency of the HTTP adapter failed after the graph had ended: %r", error, exc_info=error
                )
                return scope[_RESULT]
            if _RUN not in scope:
                raise  # the graph's own
            if isinstance(error, FastAPIError):
                details, document = jsonable_encoder(error.errors()), scope.get(_DOCUMENT, MISSING)
                # its traceback leads to a frame of FastAPI that refers to it, and to the request: a cycle
                raise RequestValidationError(details, document=document) from error.with_traceback(None)
            if isinstance(error, json.JSONDecodeError) and _is_of(error, bytes(body)):
                raise unreadable(f"the request body is not valid JSON: {error}", "invalid_json") from error
            raise
        return scope[_RESULT]


def _is_of(error: json.JSONDecodeError, body: bytes) -> bool:
    return error.doc in (body, body.decode(errors="replace"))


def openapi_of(adapter: Callable[..., Any], models: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what FastAPI says of an adapter: the operations of each route, and the schemas of the models in them.

    Parameters:
      models: By route, the type of the result; None if it is not known.
    """
    app = FastAPI()
    dependency = Depends(_dependency_of(adapter))
    routes: dict[str, APIRoute] = {}

    def endpoint(value: Any = dependency) -> None:
        raise NotImplementedError

    for path, model in models.items():
        more: dict[str, Any] = {"response_model": model, "responses": {422: {"description": ""}}}
        takes_body = APIRoute(path or "/", endpoint, methods=["POST"]).body_field is not None
        routes[path] = APIRoute(path or "/", endpoint, methods=["POST"] if takes_body else ["GET", "POST"], **more)
    app.router.routes[:] = routes.values()
    document = app.openapi()
    paths = {path: document.get("paths", {})[route.path_format] for path, route in routes.items()}
    return paths, document.get("components", {}).get("schemas", {})


def _changes_response(dependant: Any) -> bool:
    return dependant.response_param_name is not None or any(map(_changes_response, dependant.dependencies))


class _Route(APIRoute):
    """A route that parses JSON by our rules, also where the Content-Type names another type, unless it takes text.

    One that takes anything gets what is not JSON as it was sent.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        field = getattr(self.body_field, "field_info", None)
        expected = getattr(field, "annotation", None)
        choices = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
        # Json is a type, or a mark of another one
        takes_text = any(kind in (*choices, *map(type, getattr(field, "metadata", ()))) for kind in (str, bytes, Json))
        takes_anything = any(kind in choices for kind in (Any, object))

        async def parse_first(request: Request) -> Response:
            with_own_json(request)
            if self.body_field is None:
                pass
            elif isinstance(self.body_field.field_info, params.Form):
                await read_form(request)
            elif takes_text and not _is_json(request.scope["headers"]):
                _check_text(await request.body(), expected)
            else:
                sent = request.scope["headers"]
                request.scope["headers"] = _as_json(sent)
                try:
                    document = await read_json(request)
                except RequestValidationError:
                    if not takes_anything or _is_json(sent):
                        raise
                    request.scope["headers"] = sent
                    vars(request).pop("_headers", None)  # made of those before
                    return await handle(request)  # FastAPI gives it the bytes
                if document is not MISSING:
                    request._json = request.scope[_DOCUMENT] = document  # request.json() returns it from now on
            return await handle(request)

        return parse_first


def _check_text(body: bytes, expected: Any) -> None:
    try:
        body.decode("latin-1" if expected is bytes else "utf-8")
    except UnicodeDecodeError as error:
        message = f"the request body is not valid UTF-8: invalid byte at position {error.start}"
        raise unreadable(message, "invalid_unicode") from error


def _dependency_of(adapter: Callable[..., Any]) -> Callable[..., Any]:
    is_model = inspect.isclass(adapter) and issubclass(adapter, BaseModel)
    function = _body_of(adapter) if is_model else adapter
    resolve_annotations(function)
    return function


def _body_of(model: Any) -> Callable[..., Any]:
    async def adapter(body: Any) -> Any:
        return body

    adapter.__annotations__["body"] = model
    adapter.__name__ = model.__name__
    return adapter


def _is_json(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and _JSON_TYPE.match(value) for name, value in headers)


def _as_json(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return headers with which FastAPI parses the body as JSON; those of `curl -d` say that it is a form."""
    if _is_json(headers):
        return headers
    rest = [(name, value) for name, value in headers if name != b"content-type"]
    return [*rest, (b"content-type", b"application/json")]


async def _discard(message: Message) -> None:
    """Ignore the endpoint's empty response."""
