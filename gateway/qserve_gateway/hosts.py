"""Which host names a gateway answers to: a web page that points its own name at us must not reach an application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from qserve.http.bad_request import BadRequest

VARIABLE = "QSERVE_ALLOWED_HOSTS"
AllowedHosts = frozenset[str] | None
"""Host names without ports; None for any."""

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


def allowed_hosts(env: Mapping[str, str]) -> AllowedHosts:
    """Read ``QSERVE_ALLOWED_HOSTS``: names separated by commas; unset or empty for any."""
    names = (_name(part.strip()) for part in env.get(VARIABLE, "").split(","))
    return frozenset(name for name in names if name) or None


def check_host(environ: dict[str, Any], allowed: AllowedHosts = None) -> None:
    """Refuse a request that does not say which host it means, or means another one.

    Parameters:
      environ: The request, as WSGI has it.
      allowed: What ``allowed_hosts`` read.

    Raises:
      BadRequest: It names no host (400), or one that is not served here (421).
    """
    named = environ.get("HTTP_HOST")
    if named is None and environ.get("SERVER_PROTOCOL") == "HTTP/1.1":
        raise BadRequest("the request has no Host header", "missing_host", close=True)
    if allowed is not None and named is not None and ("@" in named or _name(named) not in allowed):
        raise _misdirected()
    target: str = environ.get("RAW_URI", "/")
    if not target.startswith("/") and "://" in target and _name(target) not in (allowed or _own(environ)):
        # a request as it is sent to a proxy, which this is not
        raise _misdirected()


def _name(text: str) -> str:
    try:
        return urlsplit(text if "://" in text else f"//{text}").hostname or ""
    except ValueError:
        return ""


def _own(environ: dict[str, Any]) -> frozenset[str]:
    sock = environ.get("gunicorn.socket")
    return _LOOPBACK if sock is None else _LOOPBACK | {str(sock.getsockname()[0])}


def _misdirected() -> BadRequest:
    return BadRequest("this host is not served here", "misdirected_request", 421, close=True)
