"""Which host names a gateway answers to, and which web pages may make it act: one that points its own name at us must
not reach an application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from qserve.http.bad_request import BadRequest

VARIABLE = "QSERVE_ALLOWED_HOSTS"
AllowedHosts = frozenset[str] | None
"""Host names without ports; None for any."""

_READING = frozenset(("GET", "HEAD", "OPTIONS"))
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


def check_origin(environ: dict[str, Any], allowed: AllowedHosts = None) -> None:
    """Refuse a request that changes something and comes from a web page of another host.

    Methods that only read are let through: the browser itself keeps their answers from such a page.

    Parameters:
      environ: The request, as WSGI has it.
      allowed: What ``allowed_hosts`` read; None for the host that the request itself is for.

    Raises:
      BadRequest: Another host's page sent it (403).
    """
    if environ["REQUEST_METHOD"] in _READING:
        return
    origin = environ.get("HTTP_ORIGIN")
    foreign = environ.get("HTTP_SEC_FETCH_SITE", "").strip().lower() == "cross-site"
    if origin is not None and not foreign:
        scheme, _, host = origin.partition("://")
        if allowed is None:
            foreign = not host or host.lower() != environ.get("HTTP_HOST", "").lower()
        else:
            foreign = _name(host) not in allowed
        foreign = foreign or scheme.lower() not in ("http", "https")
    if foreign:
        raise BadRequest("a web page of another host may not do this", "cross_origin", 403, close=True)


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
