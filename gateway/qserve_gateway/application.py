"""The Flask application: it serves the pages below ``/-/``, and hands all other requests to the ``RequestHandler``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from flask import Flask, request
from werkzeug.exceptions import HTTPException

from qserve.base.environment import read_environment
from qserve.base.log import get_logger, of_request
from qserve.base.settings import Settings
from qserve.broker.connection import broker_errors
from qserve.broker.doctor import check_unless_parent_did, recheck
from qserve.calls.client import ClientPlane
from qserve.tracing.start import start as start_tracing
from qserve_gateway.cors import Cors
from qserve_gateway.docs import DOCS_PATH, PAGE, file_of
from qserve_gateway.handler import RequestHandler, handle
from qserve_gateway.jobs import JOBS_PATH, Jobs
from qserve_gateway.metrics import METRICS_PATH, GatewayMetrics, Page
from qserve_gateway.openapi import OPENAPI_PATH, OpenApi
from qserve_gateway.queues import QUEUES_PATH, Queues
from qserve_gateway.request.access import AccessPolicy, check_host, check_origin, check_page
from qserve_gateway.request.carried import Forwarded
from qserve_gateway.request.environ import Environ, Refused, line_of, must_close, request_id_of
from qserve_gateway.request.receivers import Receivers
from qserve_gateway.request.waiting import InFlightLimit
from qserve_gateway.response.errors import errors, problem_reply
from qserve_gateway.response.reply import call_when_sent, force_close, lingering
from qserve_gateway.routes import RouteWatcher
from qserve_gateway.ui.sessions import BROKER_URL, OFF, UI_PATH, Sessions
from qserve_gateway.webhooks import Unsent, Webhooks

access_log = get_logger("qserve.access")

_RESERVED = "/-/"
_HEALTH = "/-/healthz"
NO_APPLICATION = "no_application"
"""The code of a gateway that works and has nothing to serve."""
_TEXT = "text/plain; charset=utf-8"


class Gateway(Flask):
    """A Flask application for the pages below ``/-/``; requests for applications bypass Flask.

    Flask's routing, contexts and response objects would add about 30 us to each of them, and they need none of it.
    """

    def __init__(
        self, handler: RequestHandler, metrics: GatewayMetrics | None = None, cors: Cors | None = None, ui: Any = None
    ) -> None:
        super().__init__("qserve_gateway", static_folder=None)
        self.url_map.merge_slashes = False  # redirects are pages of HTML
        self._handler = handler
        self._ui = ui
        self._answer = handler.handle if metrics is None else partial(metrics.timed, handler.handle)
        self._cors = cors
        if cors is not None:
            self.wsgi_app = cors.wrap(self.wsgi_app, handler.access)  # type: ignore[assignment,method-assign]

    def wsgi_app(self, environ: Environ, start_response: Any) -> Any:
        """Handle a request; the server calls this."""
        path = environ["PATH_INFO"]
        if path.startswith(JOBS_PATH) or _is_ui(path):
            answer = self._handle_page
        elif path.startswith(_RESERVED):
            page = super().wsgi_app(environ, start_response)
            if must_close(environ):
                force_close(start_response)
                return lingering(b"".join(page), environ.get("gunicorn.socket"))
            return page
        else:
            answer = self._answer
        if access_log.isEnabledFor(logging.INFO):
            answer = partial(_logged, answer, path)
        reply = answer(environ)
        try:
            return reply(environ, start_response)
        except BaseException:  # a header that HTTP does not allow, from a replica of an older release
            reply.close()  # the server will not close what it was not given
            raise

    def full_dispatch_request(self) -> Any:
        """Handle the current request for a page; Flask calls this."""
        return self._handle_page(request.environ)

    def _handle_page(self, environ: Environ) -> Any:
        clients = None if environ["PATH_INFO"] == _HEALTH else self._handler.access.clients
        return handle(environ, self._serve_page, clients)

    def _serve_page(self, environ: Environ, request_id: str) -> Any:
        access, path = self._handler.access, environ["PATH_INFO"]
        if path == _HEALTH:
            check_host(environ)  # a health check may know only an address: any host, and no token
        elif _is_ui(path):
            check_host(environ, access.hosts)  # it has tokens of its own, and no page of another host is allowed
            if self._ui is None:
                raise Refused(OFF, "ui_off", 404)
            return self._ui.serve(environ, request_id)
        elif path == DOCS_PATH or path.startswith(DOCS_PATH + "/"):
            check_host(environ, access.hosts)  # it asks for the token, and has nothing else of this installation
        else:
            access.check(environ)
        if self._cors is None or not self._cors.names(environ.get("HTTP_ORIGIN", "")):
            check_origin(environ, access.hosts)
        if path.startswith(JOBS_PATH):
            return self._handler.jobs.serve(environ, request_id)
        return super().full_dispatch_request()


def _is_ui(path: str) -> bool:
    return path == UI_PATH or path.startswith(UI_PATH + "/")


def _logged(answer: Callable[[Environ], Any], path: str, environ: Environ) -> Any:
    """Answer a request, and write its line of the access log once its response was handed over to be sent."""
    began = time.perf_counter()
    reply = answer(environ)

    def write() -> None:
        took_ms = (time.perf_counter() - began) * 1000
        request_id = next((value for name, value in reply.headers if name == "x-request-id"), "")
        fields = {"method": environ["REQUEST_METHOD"], "path": path, "status": reply.status}
        of = of_request(request_id, **fields, latency_ms=round(took_ms, 3), client=environ.get("REMOTE_ADDR"))
        access_log.info("%s %s %.1fms", line_of(environ), reply.status, took_ms, extra=of)

    call_when_sent(reply, write)
    return reply


def create_app(settings: Settings, plane: ClientPlane | None = None, watch: bool = True) -> Gateway:
    """Create the gateway's application; a prefork server must call this after the fork.

    Parameters:
      plane: Carries the calls; None connects to the broker that the settings name.
      watch: Whether to keep the routes up to date; False reads them once.
    """
    start_tracing(settings, "gateway")
    plane = plane or ClientPlane(settings, counts_results=True)
    access, in_flight = AccessPolicy.from_env(read_environment()), InFlightLimit(settings.body_memory)
    metrics = GatewayMetrics(in_flight) if settings.metrics else None
    receivers = Receivers.from_env(read_environment())
    count = None if metrics is None else metrics.count_webhook
    webhooks = None if receivers is None else Webhooks(settings, plane, receivers, count)
    watcher = RouteWatcher(
        plane,
        partial(check_unless_parent_did, plane.client, settings),
        partial(recheck, plane.client, settings),
        Unsent(plane).look if webhooks is None else webhooks.send_due,
    )
    if watch:
        watcher.start()
    else:
        watcher.refresh()
    jobs = Jobs(settings, plane, in_flight, receivers, bool if webhooks is None else webhooks.look)
    forwarded = Forwarded.of(settings)
    cors = Cors.from_env(read_environment())
    check = partial(check_page if cors is None else cors.check_page, allowed=access.hosts)
    handler = RequestHandler(settings, plane, watcher.current, access, in_flight, jobs, check, forwarded=forwarded)
    app = Gateway(handler, metrics, cors, _ui(settings, access))
    _add_pages(app, plane, watcher)
    if metrics is not None:
        _add_metrics(app, Page(settings, plane, metrics))
    if settings.api_page:
        without = () if settings.metrics else (METRICS_PATH,)
        _add_api_page(app, watcher, OpenApi(access.token is not None, without))
    return app


def _ui(settings: Settings, access: AccessPolicy) -> Any:
    env = read_environment()
    sessions = Sessions.from_env(env)
    if not sessions.tokens:
        return None
    # with what it shows, which a gateway without it does not need
    create: Any = import_module("qserve_gateway.ui.page").create_ui
    return create(settings, sessions, access.hosts, env.get(BROKER_URL, ""))


def _add_pages(app: Gateway, plane: ClientPlane, watcher: RouteWatcher) -> None:
    @app.route(_HEALTH, provide_automatic_options=False)
    def healthz() -> Any:
        table = watcher.current()
        with broker_errors():
            plane.client.ping()
        if not table.routes:  # its replicas are still being constructed, or nothing is deployed
            raise Refused("no application is served here yet", NO_APPLICATION, 503, retry_after_s=1)
        return "success", 200, {"content-type": _TEXT, "x-request-id": request_id_of(request.environ)}

    @app.route("/-/routes", provide_automatic_options=False)
    def routes() -> Any:
        table = watcher.table or watcher.current()  # the last one also while the broker is not well
        return table.listing(), 200, {"x-request-id": request_id_of(request.environ)}

    backlog = Queues(plane)

    @app.route(QUEUES_PATH, provide_automatic_options=False)
    def queues() -> Any:
        return backlog.page(request.args), 200, {"x-request-id": request_id_of(request.environ)}

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Any:
        status = error.code or 500
        code = error.name.lower().replace(" ", "_")
        request_id = request_id_of(request.environ)
        errors.note(status, code, error.name, request_id, line_of(request.environ))
        reply = problem_reply(status, code, error.name, request_id)
        valid_methods = getattr(error, "valid_methods", None)
        if valid_methods:
            reply.headers.append(("allow", ", ".join(sorted(valid_methods))))
        # Flask keeps the error on its request, and the frames of a traceback would keep the request
        error.__traceback__ = error.__context__ = None
        return reply


def _add_api_page(app: Gateway, watcher: RouteWatcher, openapi: OpenApi) -> None:
    def answer(data: bytes, headers: dict[str, str]) -> Any:
        headers = headers | {"x-request-id": request_id_of(request.environ)}
        if headers["etag"] in request.headers.get("if-none-match", ""):
            del headers["content-type"]
            return b"", 304, headers
        return data, 200, headers

    @app.route(OPENAPI_PATH, provide_automatic_options=False)
    def document() -> Any:
        return answer(*openapi.document(watcher.table or watcher.current()))

    @app.route(DOCS_PATH, provide_automatic_options=False)
    @app.route(f"{DOCS_PATH}/<path:name>", provide_automatic_options=False)
    def docs(name: str = PAGE) -> Any:
        return answer(*file_of(name))


def _add_metrics(app: Gateway, page: Page) -> None:
    @app.route(METRICS_PATH, provide_automatic_options=False)
    def metrics() -> Any:
        body, kind = page.render(request.headers.get("accept", ""))
        return body, 200, {"content-type": kind, "x-request-id": request_id_of(request.environ)}
