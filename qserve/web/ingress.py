"""``@serve.ingress(app)``: a web application of any framework answers the HTTP requests of a deployment.

    app = FastAPI()

    @serve.deployment
    @serve.ingress(app)
    class Api:
        @app.get("/double")
        def double(self, n: int) -> int:
            return 2 * n

The application runs in the replicas, so its routes get the instance as ``self``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

from starlette.requests import Request
from starlette.responses import Response

from qserve.base.loop_at_hand import loop_at_hand
from qserve.define.deployments import Deployment
from qserve.exceptions import WebSocketNotSupported
from qserve.http.websocket import NO_WEBSOCKETS
from qserve.web import routes
from qserve.web.asgi import Exchange, Lifespan
from qserve.web.frameworks import bound_app, document_of, is_a, make_picklable
from qserve.web.routes import Entry
from qserve.web.websocket import WebSocketConversation
from qserve.web.wsgi import WsgiAdapter
from qserve.wire.outcome import SESSION

Cls = TypeVar("Cls", bound=type)
_DEFINITION = "_qserve_ingress"
_LIFESPAN = "_qserve_lifespan"
_ASGI, _WSGI, _BUILDER = "ASGI", "WSGI", "builder"
_KIND_BY_ARGUMENTS = {3: _ASGI, 2: _WSGI, 0: _BUILDER}
_ORDER = (
    "Write\n\n    @serve.deployment\n    @serve.ingress(app)\n    class {name}: ...\n\n"
    "with @serve.deployment as the first line."
)


@dataclass(frozen=True)
class _Definition:
    """The decorated class and its application; pickled with the class."""

    cls: type
    app: Any


class ASGIIngressDeployment:
    """The class of ``serve.ingress(app)()``; what it is bound to is deployed with it, and not used otherwise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class _Decorator(Protocol):
    @overload
    def __call__(self, cls: Cls, /) -> Cls: ...

    @overload
    def __call__(self) -> type[ASGIIngressDeployment]: ...


def ingress(app: Any) -> _Decorator:
    """Let a web application answer the requests of a deployment: ``@serve.deployment`` above ``@serve.ingress(app)``.

    The class must not define ``__call__``: the decorator adds one that passes requests to the application. Without a
    class of your own, write ``serve.deployment(serve.ingress(app)()).bind()``.

    Parameters:
      app: A FastAPI application or ``APIRouter``, any ASGI application, a Flask or any WSGI application, or
        a function (``def`` or ``async def``) without parameters that creates one on each replica. Routes whose
        functions are methods of the class get the replica's instance as ``self`` (FastAPI and Flask).

    Returns:
      A decorator for a class; called without one, it returns a class that only serves the application.

    Raises:
      TypeError: It is not an application, or the decorator is used on a deployment.
      ValueError: The decorator is used on something other than a class, or the class has a ``__call__``.

    Example:
      from fastapi import FastAPI

      app = FastAPI()

      @serve.deployment
      @serve.ingress(app)
      class Api:
          @app.get("/double")
          def double(self, number: int) -> int:
              return 2 * number

      node = Api.bind()  # qserve.run(node) answers GET /double?number=21 with 42
    """
    kind_of(app)

    def decorate(cls: Any = ASGIIngressDeployment) -> Any:
        _check_class(cls)
        make_picklable(app)  # only now, because the body of the class adds routes
        members = {
            "__call__": _call,
            "__qserve_start__": _start,
            "__qserve_stop__": _stop,
            SESSION: _websocket,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            _DEFINITION: _Definition(cls, app),
        }
        return type(cls)(cls.__name__, (cls,), members)

    return decorate


def kind_of(app: Any) -> str:
    """Return the kind of an application (``"ASGI"``, ``"WSGI"``, ``"builder"``); raises TypeError for other objects."""
    if isinstance(app, Deployment) or inspect.isclass(app):
        name = app.name if isinstance(app, Deployment) else app.__name__
        raise TypeError(
            f"@serve.ingress must be called with an application, and got {app!r}. {_ORDER.format(name=name)}"
        )
    if is_a(app, "flask", "Flask"):
        return _WSGI
    if is_a(app, "fastapi", "FastAPI", "APIRouter"):
        return _ASGI
    kind = _KIND_BY_ARGUMENTS.get(_arguments(app)) if callable(app) else None
    if kind is None:
        raise TypeError(
            "@serve.ingress takes a FastAPI, APIRouter or Flask object, any ASGI application (scope, receive, send),"
            f" any WSGI application (environ, start_response), or a function without parameters that makes one."
            f" Got {app!r} of type {type(app).__name__}."
        )
    return kind


def _arguments(app: Callable[..., Any]) -> int:
    """Return how many arguments a callable requires; -1 when that is unknown."""
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return -1
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return -1
    return sum(
        parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters
    )


def _check_class(cls: Any) -> None:
    if isinstance(cls, Deployment):
        raise TypeError(
            f"@serve.ingress must come below @serve.deployment, and {cls.name!r} is a deployment already. "
            + _ORDER.format(name=cls.name)
        )
    if not inspect.isclass(cls):
        name = getattr(cls, "__name__", repr(cls))
        raise ValueError(f"@serve.ingress must be used with a class, and {name!r} is a {type(cls).__name__}.")
    if _DEFINITION in vars(cls):
        raise ValueError(f"{cls.__name__!r} has an @serve.ingress already; a class serves one application.")
    owner = next((base for base in cls.__mro__ if "__call__" in vars(base)), None)
    if owner is not None:
        where = "" if owner is cls else f" (from {owner.__name__!r})"
        raise ValueError(
            f"Class passed to @serve.ingress may not have __call__ method, and {cls.__name__!r} has one{where}:"
            " the application answers the requests. Rename it, or make it a route of the application."
        )


def openapi_of(cls: Any) -> dict[str, Any] | None:
    """Return the OpenAPI document of an ingress class with a FastAPI application; None if it has none, or hides it.

    A function that makes the application is not called: it runs on replicas.
    """
    definition = getattr(cls, _DEFINITION, None)
    return None if definition is None else document_of(definition.app, definition.cls)


def entries_of(cls: Any) -> list[Entry]:
    """Return the operations of an ingress class with a Flask or Starlette application; none of any other."""
    definition = getattr(cls, _DEFINITION, None)
    return [] if definition is None else routes.entries_of(definition.app)


async def _start(self: Any) -> None:
    """Start the application of an instance, with its routes bound to it; called once it is constructed."""
    definition: _Definition = getattr(self, _DEFINITION)
    app, kind = definition.app, kind_of(definition.app)
    if kind == _BUILDER:
        app, kind = await _built(app)
    app = bound_app(app, definition.cls, self)
    lifespan = Lifespan(WsgiAdapter(app) if kind == _WSGI else app)
    setattr(self, _LIFESPAN, lifespan)
    await lifespan.start()


async def _built(builder: Callable[[], Any]) -> tuple[Any, str]:
    """Return the application that a function makes, and its kind; the function may be a coroutine function."""
    with loop_at_hand(asyncio.get_running_loop()):
        app = builder()
    while inspect.isawaitable(app):
        app = await app
    try:
        kind = kind_of(app)
    except TypeError:
        kind = _BUILDER
    if kind == _BUILDER:
        name = getattr(builder, "__qualname__", repr(builder))
        raise TypeError(f"{name}, the function given to @serve.ingress, must return an application, not {app!r}")
    return app, kind


async def _call(self: Any, request: Request) -> Response:
    """Pass an HTTP request to the application."""
    if not isinstance(request, Request):
        raise TypeError(
            f"an @serve.ingress class is called with an HTTP request, not {type(request).__name__!r};"
            " by handle, call a method of it: handle.method.remote(...)"
        )
    lifespan: Lifespan = getattr(self, _LIFESPAN)
    return await Exchange(lifespan.app, lifespan.state).answer(request)


async def _websocket(self: Any, request: Request) -> WebSocketConversation:
    """Return the conversation of the application with a client that opens a WebSocket."""
    lifespan: Lifespan = getattr(self, _LIFESPAN)
    if isinstance(lifespan.app, WsgiAdapter):
        raise WebSocketNotSupported(NO_WEBSOCKETS)
    return WebSocketConversation(lifespan.app, request, lifespan.state)


async def _stop(self: Any) -> None:
    """Shut the application of an instance down; called before its ``__del__``."""
    lifespan: Lifespan = getattr(self, _LIFESPAN)
    await lifespan.stop()
