"""The Flask application: its own pages below ``/-/``, and everything else for the applications."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Flask, request
from werkzeug.exceptions import HTTPException

from qserve.base.log import get_logger
from qserve.base.settings import CHECKED, Settings
from qserve.broker.connection import broker_errors
from qserve.calls.client import ClientPlane
from qserve.exceptions import QserveException
from qserve.http.bad_request import BadRequest
from qserve.machine.doctor import check_or_raise, look_again
from qserve_gateway.invoke import Front
from qserve_gateway.request.guard import Guard
from qserve_gateway.request.hosts import check_host, check_origin
from qserve_gateway.request.incoming import Environ, request_id_of
from qserve_gateway.response.answers import PLACE
from qserve_gateway.response.problems import of_error, problem, unavailable
from qserve_gateway.response.reply import Reply
from qserve_gateway.watcher import Watcher

access_log = get_logger("qserve.access")

_RESERVED = "/-/"
_HEALTH = "/-/healthz"
_TEXT = "text/plain; charset=utf-8"


class Gateway(Flask):
    """A Flask application for the pages below ``/-/``; requests of applications go past it.

    Those are routed by the applications' prefixes, and need no response object, contexts or sessions: Flask's way
    would cost each of them some 30 us.
    """

    def __init__(self, front: Front) -> None:
        super().__init__("qserve_gateway", static_folder=None)
        self._front = front

    def wsgi_app(self, environ: Environ, start_response: Any) -> Any:
        """Answer a request, as WSGI has it."""
        path = environ["PATH_INFO"]
        if path.startswith(PLACE):
            answer = self._page
        elif path.startswith(_RESERVED):
            return super().wsgi_app(environ, start_response)
        else:
            answer = self._front.answer
        if access_log.isEnabledFor(logging.INFO):
            answer = partial(_logged, answer, path)
        return answer(environ)(environ, start_response)

    def full_dispatch_request(self) -> Any:
        """Answer the current request for one of the pages."""
        return self._page(request.environ)

    def _page(self, environ: Environ) -> Any:
        path, guard = environ["PATH_INFO"], self._front.guard
        leave = None
        try:
            if path == _HEALTH:
                check_host(environ)  # whoever looks after our health may know no more than an address
            else:
                leave = guard.enter(environ)
                guard.check(environ)
            check_origin(environ, guard.hosts)
            return self._front.jobs.answer(environ) if path.startswith(PLACE) else super().full_dispatch_request()
        except BadRequest as error:
            return of_error(error, request_id_of(environ))
        finally:
            if leave is not None:
                leave()


def _logged(answer: Callable[[Environ], Any], path: str, environ: Environ) -> Any:
    began = time.perf_counter()
    reply = answer(environ)
    took_ms = (time.perf_counter() - began) * 1000
    # a path may hold anything once it is decoded, and a terminal would obey some of it
    shown = path if path.isascii() and path.isprintable() else ascii(path)[1:-1]
    access_log.info("%s %s %s %.1fms", environ["REQUEST_METHOD"], shown, reply.status, took_ms)
    return reply


def create_app(settings: Settings, plane: ClientPlane | None = None, watch: bool = True) -> Gateway:
    """Make the gateway's application; in a prefork server, after the fork.

    Parameters:
      settings: Names the broker, the default deadline and whether tracebacks are shown.
      plane: Carries the calls; None connects to the broker of the settings.
      watch: Whether to follow the registry; False reads it once.
    """
    plane = plane or ClientPlane(settings)
    connected = plane
    watcher = Watcher(plane, lambda: _check(connected, settings), lambda: look_again(connected.client, settings))
    if watch:
        watcher.start()
    else:
        watcher.refresh()
    app = Gateway(Front(settings, plane, watcher.current, Guard.from_env(os.environ)))
    _add_pages(app, plane, watcher)
    return app


def _check(plane: ClientPlane, settings: Settings) -> None:
    if not os.environ.get(CHECKED):
        check_or_raise(plane.client, settings)


def _add_pages(app: Gateway, plane: ClientPlane, watcher: Watcher) -> None:
    def healthz() -> Any:
        request_id = request_id_of(request.environ)
        try:
            if watcher.current() is None:
                return unavailable("the applications are not known yet", request_id)
            with broker_errors():
                plane.client.ping()
        except QserveException as error:
            return of_error(error, request_id)
        return Reply(200, [("content-type", _TEXT), ("x-request-id", request_id)], b"success")

    def routes() -> Any:
        request_id = request_id_of(request.environ)
        if watcher.table is None:
            return unavailable("the applications are not known yet", request_id)
        return watcher.table.listing(), 200, {"x-request-id": request_id}

    def refuse(error: HTTPException) -> Any:
        status = error.code or 500
        code = error.name.lower().replace(" ", "_")
        reply = problem(status, code, error.name, request_id_of(request.environ))
        valid_methods = getattr(error, "valid_methods", None)
        if valid_methods:
            reply.headers.append(("allow", ", ".join(sorted(valid_methods))))
        # Flask keeps the error on its request, and the frames of a traceback would keep the request
        error.__traceback__ = error.__context__ = None
        return reply

    app.add_url_rule("/-/healthz", view_func=healthz)
    app.add_url_rule("/-/routes", view_func=routes)
    app.register_error_handler(HTTPException, refuse)
