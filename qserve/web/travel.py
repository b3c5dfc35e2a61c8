"""Lets web applications travel by value: parts that cannot be pickled are left out and made anew."""

from __future__ import annotations

import copyreg
import importlib
import sys
import threading
from collections.abc import Callable
from typing import Any

from starlette.datastructures import State

from qserve.http.hints import settle_routes
from qserve.web.views import is_a


def let_travel(app: Any) -> None:
    """Teach pickle about the parts of an application that it cannot carry; others are left alone.

    Parameters:
      app: Any application.
    """
    if is_a(app, "fastapi", "FastAPI", "APIRouter"):
        settle_routes(app.routes)
        copyreg.pickle(State, _reduce_state)
        included = getattr(sys.modules.get("fastapi.routing"), "_IncludedRouter", None)
        if included is not None:
            copyreg.pickle(included, _reduce_included)
    if is_a(app, "flask", "Flask"):
        copyreg.pickle(type(app), _reduce_flask)
        copyreg.pickle(type(app.url_map), _reduce_map)
        copyreg.pickle(type(_flask_global("request")), _reduce_proxy)


# Every reduction gives an empty object first and its state after: applications refer to themselves.


def _reduce_state(state: State) -> Any:
    return _blank, (type(state),), {"state": dict(state)}, None, None, _initialise


def _reduce_included(route: Any) -> Any:
    state = {"original_router": route.original_router, "include_context": route.include_context}
    return _blank, (type(route),), state, None, None, _initialise


def _reduce_proxy(proxy: Any) -> Any:
    """``flask.request`` and the like, by name: a view uses them as globals, and what they stand for is a request's."""
    found = next((name for name, value in vars(_flask_globals()).items() if value is proxy), None)
    if found is None:
        raise TypeError(f"cannot pickle {type(proxy).__name__!r} object: it stands for another one in each context")
    return _flask_global, (found,)


def _flask_globals() -> Any:
    return importlib.import_module("flask.globals")


def _flask_global(name: str) -> Any:
    return getattr(_flask_globals(), name)


def _reduce_map(url_map: Any) -> Any:
    state = {name: value for name, value in vars(url_map).items() if name != "_remap_lock"}
    return _blank, (type(url_map),), state, None, None, _restore_map


def _reduce_flask(app: Any) -> Any:
    state = {name: value for name, value in vars(app).items() if name != "json"}
    state["view_functions"] = {name: view for name, view in app.view_functions.items() if not _is_flasks_own(view)}
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


def _is_flasks_own(view: Any) -> bool:
    """Whether a view is the one that Flask adds for static files, which holds a weak reference to it."""
    return getattr(view, "__module__", "") == "flask.app"
