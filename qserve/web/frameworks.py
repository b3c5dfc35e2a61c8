"""Support for FastAPI and Flask: routes bound to an instance, and applications pickled.

Routes whose functions are methods of a class get their ``self`` in a copy of the application, one for each instance.
The user's own application stays as it is, so that several instances, or several classes, can share it. Neither
FastAPI nor Flask is imported here, because a replica needs them only for such an application.
"""

from __future__ import annotations

import copyreg
import dataclasses
import importlib
import inspect
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from starlette.datastructures import State

from qserve.calls.responses import RESPONSES, get
from qserve.http.annotations import resolve_route_annotations

_SETUP = ".setup.<locals>."
"""Part of the qualified names of FastAPI's own pages, which describe the application that made them."""


def is_a(app: Any, module: str, *kinds: str) -> bool:
    """Return whether an object is an instance of one of the classes of an optional module.

    Parameters:
      module: The module; nothing is an instance while it is not imported.
      kinds: The names of the classes.
    """
    found = sys.modules.get(module)
    classes = tuple(getattr(found, kind) for kind in kinds if hasattr(found, kind))
    return isinstance(app, classes)


def bound_app(app: Any, cls: type, instance: Any) -> Any:
    """Return an application whose class-based views have their ``self``.

    Parameters:
      app: A FastAPI or Flask application or an ``APIRouter``; any other is returned as it is.
      cls: The user's class; functions defined in it and in its bases are its views.
      instance: The ``self`` of the views.
    """
    _resolve_returned_refs()
    views = _Views(cls, instance)
    if is_a(app, "fastapi", "FastAPI"):
        return views.of_fastapi(app)
    if is_a(app, "fastapi", "APIRouter"):
        # an application handles errors and dependencies; a router alone would crash on them
        whole = sys.modules["fastapi"].FastAPI()
        whole.include_router(views.of_router(app))
        return whole
    if is_a(app, "flask", "Flask"):
        return views.of_flask(app)
    return app


def document_of(app: Any, cls: type) -> dict[str, Any] | None:
    """Return the OpenAPI document of a FastAPI application, as that of an instance of the user's class would be.

    The application stays as it is: FastAPI keeps the document that it has made, and would not see later routes.

    Returns:
      None for other applications, and where ``openapi_url=None`` hides it.
    """
    if not is_a(app, "fastapi", "FastAPI", "APIRouter") or getattr(app, "openapi_url", "") is None:
        return None
    own = vars(app).get("openapi")  # FastAPI's way to extend the document
    if own is not None:
        kept, app.openapi_schema = app.openapi_schema, None
        try:
            return own()  # type: ignore[no-any-return]
        finally:
            app.openapi_schema = kept
    twin = _twin(bound_app(app, cls, _Nobody()))
    twin.openapi_schema = None
    return twin.openapi()  # type: ignore[no-any-return]


class _Nobody:
    """The ``self`` of routes that are only described."""


def _resolve_returned_refs() -> None:
    """Let routes of FastAPI return what ``handle.remote(...)`` returned, as other deployments may.

    FastAPI has no hook between an endpoint and the encoder of its result. Routes travel with the functions that they
    call, so this is done before they are pickled, and again where an application may have been made on the replica.
    """
    global _run_endpoint
    routing: Any = sys.modules.get("fastapi.routing")
    if routing is not None and routing.run_endpoint_function is not run_and_resolve:
        _run_endpoint, routing.run_endpoint_function = routing.run_endpoint_function, run_and_resolve


_run_endpoint: Callable[..., Any]
"""FastAPI's own function, which ``run_and_resolve`` replaces."""


async def run_and_resolve(**given: Any) -> Any:
    """Call an endpoint of FastAPI, and wait for the value of a ref that it returned; FastAPI calls this."""
    value = await _run_endpoint(**given)
    while isinstance(value, RESPONSES):
        value = await value
    return value


class _Views:
    def __init__(self, cls: type, instance: Any) -> None:
        self._owners = [base for base in cls.__mro__ if base is not object]
        self._instance = instance

    def of_fastapi(self, app: Any) -> Any:
        if not self._has_methods(app.router.routes):
            return app
        twin = _twin(app)
        twin.router = self.of_router(app.router)
        bound = [route for route in twin.router.routes if _SETUP not in getattr(_endpoint(route), "__qualname__", "")]
        twin.router.routes = []
        twin.middleware_stack = twin.openapi_schema = None
        twin.setup()
        twin.router.routes += bound
        return twin

    def of_router(self, router: Any) -> Any:
        if not self._has_methods(router.routes):
            return router
        twin = _twin(router)
        twin.routes = []
        twin.middleware_stack = twin.app  # the original's stack leads to the original's routes
        for route in router.routes:
            if _is_included(route):
                inner = self.of_router(route.original_router)
                context = dataclasses.replace(route.include_context, included_router=inner)
                twin.routes.append(type(route)(original_router=inner, include_context=context))
            elif self._is_mine(_endpoint(route)):
                twin.routes.append(_rebuilt(route, MethodType(route.endpoint, self._instance)))
            elif not _is_method(_endpoint(route)):
                twin.routes.append(route)
            # a method of another class has no instance here
        return twin

    def of_flask(self, app: Any) -> Any:
        twin = _twin(app)
        twin.view_functions = {
            name: MethodType(view, self._instance) if self._is_mine(view) else view
            for name, view in app.view_functions.items()
        }
        kind = type(app)
        twin.handle_exception = partial(_raise_unhandled, partial(kind.handle_exception, twin))
        twin.make_response = lambda value: kind.make_response(
            twin, get(value) if isinstance(value, RESPONSES) else value
        )
        return twin

    def _has_methods(self, routes: list[Any]) -> bool:
        return any(
            self._has_methods(route.original_router.routes) if _is_included(route) else _is_method(_endpoint(route))
            for route in routes
        )

    def _is_mine(self, endpoint: Any) -> bool:
        if not _is_method(endpoint):
            return False
        home = (endpoint.__module__, endpoint.__qualname__.rpartition(".")[0])
        return any(
            home == (owner.__module__, owner.__qualname__) or endpoint in vars(owner).values() for owner in self._owners
        )


def _twin(original: Any) -> Any:
    # not copy.copy, which would use the reductions that pickle has for these classes
    twin = object.__new__(type(original))
    vars(twin).update(vars(original))
    return twin


def _raise_unhandled(handle: Callable[[Exception], Any], error: Exception) -> Any:
    """Handle an exception of a Flask view as Flask does, but raise it again instead of sending Flask's own page.

    The page would hide from the gateway what has failed, and whether the request may be sent again.
    """
    response = handle(error)
    page = importlib.import_module("werkzeug.exceptions").InternalServerError().get_body().encode()
    if response.status_code == 500 and response.content_length == len(page) and response.get_data() == page:
        raise error
    return response


def _endpoint(route: Any) -> Any:
    return getattr(route, "endpoint", None)


def _is_method(endpoint: Any) -> bool:
    """Return whether an endpoint is a plain function, defined in a class, whose first parameter is ``self``."""
    if not inspect.isfunction(endpoint):
        return False
    owner = endpoint.__qualname__.rpartition(".")[0]
    names = list(inspect.signature(endpoint).parameters)
    return bool(owner) and not owner.endswith("<locals>") and names[:1] == ["self"]


def _is_included(route: Any) -> bool:
    """Return whether a route represents an included router: newer versions of FastAPI keep them nested."""
    return hasattr(route, "original_router") and hasattr(route, "include_context")


def _rebuilt(route: Any, endpoint: Callable[..., Any]) -> Any:
    """Return the same route for another endpoint; a route keeps its constructor's arguments as attributes."""
    parameters: dict[str, None] = {}
    for base in type(route).__mro__:
        init = vars(base).get("__init__")
        if init is not None and base is not object:
            parameters |= dict.fromkeys(inspect.signature(init).parameters)
    given = {name: getattr(route, name) for name in parameters if name != "self" and hasattr(route, name)}
    if getattr(route, "stream_item_type", None) is not None:
        # an endpoint that yields has no response model: FastAPI finds the type of the items when none is given
        given.pop("response_model", None)
    return type(route)(**{**given, "endpoint": endpoint})


def make_picklable(app: Any) -> None:
    """Register reductions for the parts of a Starlette, FastAPI or Flask application that pickle cannot handle."""
    _resolve_returned_refs()
    copyreg.pickle(State, _reduce_state)
    if is_a(app, "fastapi", "FastAPI", "APIRouter"):
        resolve_route_annotations(app.routes)
        included = getattr(sys.modules.get("fastapi.routing"), "_IncludedRouter", None)
        if included is not None:
            copyreg.pickle(included, _reduce_included)
    if is_a(app, "flask", "Flask"):
        copyreg.pickle(type(app), _reduce_flask)
        copyreg.pickle(type(app.url_map), _reduce_map)
        copyreg.pickle(type(_flask_global("request")), _reduce_proxy)


# Every reduction creates an empty object first and sets its state after, because applications refer to themselves.


def _reduce_state(state: State) -> Any:
    return _blank, (type(state),), {"state": dict(vars(state)["_state"])}, None, None, _initialise


def _reduce_included(route: Any) -> Any:
    state = {"original_router": route.original_router, "include_context": route.include_context}
    return _blank, (type(route),), state, None, None, _initialise


def _reduce_proxy(proxy: Any) -> Any:
    """Pickle ``flask.request`` and other proxies by name: views use them as globals."""
    found = next((name for name, value in vars(sys.modules["flask.globals"]).items() if value is proxy), None)
    if found is None:
        raise TypeError(f"cannot pickle {type(proxy).__name__!r} object: it stands for another object in each context")
    return _flask_global, (found,)


def _flask_global(name: str) -> Any:
    return getattr(importlib.import_module("flask.globals"), name)


def _reduce_map(url_map: Any) -> Any:
    state = {name: value for name, value in vars(url_map).items() if name != "_remap_lock"}
    return _blank, (type(url_map),), state, None, None, _restore_map


def _reduce_flask(app: Any) -> Any:
    state = {name: value for name, value in vars(app).items() if name != "json"}
    # Flask's own view for static files holds a weak reference to the application
    state["view_functions"] = {
        name: view for name, view in app.view_functions.items() if getattr(view, "__module__", "") != "flask.app"
    }
    return _blank, (type(app),), {**state, "json": type(app.json)}, None, None, _restore_flask


def _blank(kind: Any) -> Any:
    return kind.__new__(kind)


def _initialise(empty: Any, state: dict[str, Any]) -> None:
    type(empty).__init__(empty, **state)


def _restore_map(url_map: Any, state: dict[str, Any]) -> None:
    vars(url_map).update(state)
    url_map._remap_lock = getattr(url_map, "lock_class", threading.Lock)()


def _restore_flask(app: Any, state: dict[str, Any]) -> None:
    make_json: Callable[[Any], Any] = state.pop("json")
    vars(app).update(state)
    app.json = make_json(app)
    app.view_functions.setdefault("static", lambda **given: app.send_static_file(**given))
