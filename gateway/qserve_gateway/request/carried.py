"""What an HTTP request carries to user code beside its body: chosen headers, the tenant, and W3C Trace Context."""

from __future__ import annotations

from dataclasses import dataclass

from qserve.base.carried import Carried, TooLongError, checked_headers, checked_value
from qserve.base.settings import Settings
from qserve.base.trace_context import read_traceparent, read_tracestate
from qserve.http.message import BadRequest
from qserve_gateway.request.environ import Environ, key_of

_ASKS_FOR_TIMING = "HTTP_X_SERVER_TIMING"


@dataclass(frozen=True)
class Forwarded:
    """The headers that requests carry, each with its key in the environment; ``timing``: see the settings."""

    headers: tuple[tuple[str, str], ...] = ()
    tenant: str = ""
    timing: str = "off"

    @classmethod
    def of(cls, settings: Settings) -> Forwarded | None:
        """Return what the settings name; None for nothing."""
        headers = tuple((name, key_of(name)) for name in settings.forward_headers)
        tenant = key_of(settings.tenant_header) if settings.tenant_header else ""
        timing = settings.server_timing
        return cls(headers, tenant, timing) if headers or tenant or timing != "off" else None


def carried_in(environ: Environ, forwarded: Forwarded | None) -> Carried | None:
    """Return what a request carries; None for nothing. A malformed trace context is ignored, as its standard says.

    Raises:
      BadRequest: A header that is to be forwarded is too long (431), or has control characters (400).
    """
    parent = read_traceparent(environ.get("HTTP_TRACEPARENT", ""))
    state = read_tracestate(environ.get("HTTP_TRACESTATE", "")) if parent else ""
    headers: dict[str, str] = {}
    tenant, is_timed = "", False
    if forwarded is not None:
        asked = forwarded.timing == "asked" and environ.get(_ASKS_FOR_TIMING) == "1"
        is_timed = asked or forwarded.timing == "on"
        given = {name: environ[key] for name, key in forwarded.headers if environ.get(key)}
        try:
            headers = checked_headers(given)
            tenant = checked_value("the header of the tenant", environ.get(forwarded.tenant, ""))
        except ValueError as error:
            is_long = isinstance(error, TooLongError)
            raise BadRequest(str(error), "invalid_header", 431 if is_long else 400) from error
    found = Carried(parent, state, tenant, headers, is_timed=is_timed)
    return found if parent or tenant or headers or is_timed else None
