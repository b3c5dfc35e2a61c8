"""The span of an HTTP request, from its head to the end of its reply; nothing here runs in a process without spans."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qserve.base.carried import Carried
from qserve_gateway.request.carried import carried_in
from qserve_gateway.request.environ import Environ, path_of
from qserve_gateway.response.reply import call_when_sent

if TYPE_CHECKING:
    from qserve.tracing.spans import Spans

_SPAN = "qserve.span"
_SHOWN = 1024
_SERVER_ERROR = 500


def traced(spans: Spans, environ: Environ, answer: Callable[[], Any]) -> Any:
    """Return the reply of ``answer`` to a request, whose span ends when the reply is sent or given up."""
    attributes = {
        "url.scheme": environ["wsgi.url_scheme"],
        "url.path": path_of(environ)[:_SHOWN],
        "server.address": environ.get("HTTP_HOST", "")[:_SHOWN],
    }
    span = environ[_SPAN] = spans.serve(environ["REQUEST_METHOD"], carried_in(environ, None), attributes)
    reply = answer()
    span.set_attribute("http.response.status_code", reply.status)
    span.set_attribute("qserve.request_id", dict(reply.headers).get("x-request-id", ""))
    call_when_sent(reply, lambda: spans.served(span, reply.status >= _SERVER_ERROR))
    return reply


def below_span(spans: Spans, environ: Environ, route: str, app: str, carried: Carried | None) -> Carried:
    """Return what the call of a request carries below the span of that, which is now known to be for a route."""
    span = environ[_SPAN]
    span.update_name(f"{environ['REQUEST_METHOD']} {route}")
    span.set_attribute("http.route", route)
    span.set_attribute("qserve.application", app)
    return spans.carried(span, carried)
