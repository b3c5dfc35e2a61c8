"""Cross-origin resource sharing (CORS): which pages of other hosts may send requests, and read the responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qserve.base.numbers import whole_number
from qserve.exceptions import QserveException
from qserve_gateway.handler import handle
from qserve_gateway.request.access import AccessPolicy, AllowedHosts, check_host, check_page
from qserve_gateway.request.environ import Environ, Refused
from qserve_gateway.response.reply import Reply
from qserve_gateway.routes import PLAIN_METHODS

ORIGINS, ORIGIN_REGEX = "QSERVE_CORS_ORIGINS", "QSERVE_CORS_ORIGIN_REGEX"
METHODS, HEADERS, EXPOSE = "QSERVE_CORS_METHODS", "QSERVE_CORS_HEADERS", "QSERVE_CORS_EXPOSE_HEADERS"
CREDENTIALS, MAX_AGE = "QSERVE_CORS_CREDENTIALS", "QSERVE_CORS_MAX_AGE_S"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s,]+")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SAFE_HEADERS = frozenset(("accept", "accept-language", "content-language", "content-type"))
_EXPOSED = "location, retry-after, x-qserve-request-id, x-request-id"
_CORS = "access-control-"
Wsgi = Callable[[Environ, Any], Any]


@dataclass(frozen=True)
class Cors:
    """Which pages may send what.

    Parameters:
      origins: The origins of the pages; ``*`` is any.
      pattern: Further origins.
      methods, headers: What they may send; None for anything.
      exposed: The headers of responses that their scripts may read.
      has_credentials: Whether browsers send cookies with these requests.
      max_age_s: For how long a browser need not ask again.
    """

    origins: frozenset[str]
    pattern: re.Pattern[str] | None = None
    methods: frozenset[str] | None = None
    headers: frozenset[str] | None = None
    exposed: str = _EXPOSED
    has_credentials: bool = False
    max_age_s: int = 600

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Cors | None:
        """Read the rules from environment variables; None if no page of another host may send anything.

        Raises:
          QserveException: A variable has an invalid value; the message names the variable.
        """
        origins = _list(env, ORIGINS, _ORIGIN, "https://shop.example")
        pattern = _pattern(env)
        if not origins and pattern is None:
            return None
        methods = _list(env, METHODS, _NAME, "GET,POST") or ["*"]
        headers = _list(env, HEADERS, _NAME, "authorization,x-tenant") or ["*"]
        exposed = _list(env, EXPOSE, _NAME, "x-request-id")
        return cls(
            frozenset(origin.lower() for origin in origins),
            pattern,
            None if "*" in methods else frozenset(method.upper() for method in methods),
            None if "*" in headers else frozenset(header.lower() for header in headers) | _SAFE_HEADERS,
            ", ".join(exposed) or _EXPOSED,
            _flag(env),
            _seconds(env),
        )

    def names(self, origin: str) -> bool:
        """Return whether an origin is among those that are named, so that its pages are trusted as the own ones."""
        is_alike = self.pattern is not None and self.pattern.fullmatch(origin)
        return bool(origin) and (origin.lower() in self.origins or bool(is_alike))

    def check_page(self, environ: Environ, allowed: AllowedHosts) -> None:
        """Check that the page which opens a WebSocket may send requests; browsers ask nothing before they open one.

        Where pages of any origin may send requests without credentials, these are taken out, which browsers always send
        with a WebSocket.

        Raises:
          BadRequest: It is a page of another host (403).
        """
        origin = environ.get("HTTP_ORIGIN", "")
        if self.names(origin):
            return
        if origin and "*" in self.origins:
            if not self.has_credentials:
                environ.pop("HTTP_COOKIE", None)
                environ.pop("HTTP_AUTHORIZATION", None)
            return
        check_page(environ, allowed)

    def preflight(self, environ: Environ) -> Reply:
        """Return the response to a browser that asks what a page may send.

        Raises:
          Refused: It may not (403).
        """
        origin, method = environ["HTTP_ORIGIN"], environ["HTTP_ACCESS_CONTROL_REQUEST_METHOD"]
        asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
        names = [name.strip().lower() for name in asked.split(",") if name.strip()]
        what = ""
        if not (self.names(origin) or "*" in self.origins):
            what = "pages of this origin may not send requests"
        elif method not in (PLAIN_METHODS if self.methods is None else self.methods):
            what = f"pages of other hosts may not send {method[:20]!r}"
        elif not all(_NAME.fullmatch(name) and (self.headers is None or name in self.headers) for name in names):
            what = "pages of other hosts may not send one of these headers"
        if what:
            raise Refused(what, "cross_origin", 403)
        methods = ", ".join(PLAIN_METHODS if self.methods is None else sorted(self.methods))
        headers = [("access-control-allow-methods", methods), ("access-control-max-age", str(self.max_age_s))]
        if names:
            headers.append(("access-control-allow-headers", ", ".join(names)))
        return Reply(204, headers, b"")

    def for_response(self, origin: str | None) -> list[tuple[str, str]]:
        """Return the headers that a response to a page of this origin has besides; None for a request of no page."""
        is_any = "*" in self.origins and not self.has_credentials
        headers = [] if is_any else [("vary", "Origin")]
        if origin is not None and (is_any or "*" in self.origins or self.names(origin)):
            headers.append(("access-control-allow-origin", "*" if is_any else origin))
            headers.append(("access-control-expose-headers", self.exposed))
            if self.has_credentials:
                headers.append(("access-control-allow-credentials", "true"))
        return headers

    def wrap(self, app: Wsgi, access: AccessPolicy) -> Wsgi:
        """Return a WSGI application that replies to what browsers ask before, and adds the headers to responses."""

        def preflight(environ: Environ, request_id: str) -> Reply:
            check_host(environ, access.hosts)
            reply = self.preflight(environ)
            reply.headers.append(("x-request-id", request_id))
            return reply

        def wrapped(environ: Environ, start_response: Any) -> Any:
            origin = environ.get("HTTP_ORIGIN")
            start = _Start(start_response, self.for_response(origin))
            is_asked = origin is not None and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
            if is_asked and environ["REQUEST_METHOD"] == "OPTIONS":
                return handle(environ, preflight, access.clients)(environ, start)
            return app(environ, start)

        return wrapped


class _Start:
    """A ``start_response`` that adds headers, unless the application has its own rules for pages of other hosts.

    It belongs to the same response of gunicorn, which ``force_close`` looks for.
    """

    __slots__ = ("__self__", "_headers", "_start")

    def __init__(self, start: Any, headers: list[tuple[str, str]]) -> None:
        self._start, self._headers = start, headers
        self.__self__ = getattr(start, "__self__", None)

    def __call__(self, status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        if not any(name.lower().startswith(_CORS + "allow-origin") for name, _ in headers):
            headers = [*headers, *self._headers]
        return self._start(status, headers, *more)


# -- the variables ---------------------------------------------------------------------------------


def _list(env: Mapping[str, str], name: str, kind: re.Pattern[str], example: str) -> list[str]:
    found = [part.strip() for part in env.get(name, "").split(",") if part.strip()]
    for part in found:
        if part != "*" and not kind.fullmatch(part.lower() if kind is _ORIGIN else part):
            raise QserveException(f"{name}: {part!r} is not valid; write {name}={example}, or * for any")
    return found


def _pattern(env: Mapping[str, str]) -> re.Pattern[str] | None:
    text = env.get(ORIGIN_REGEX)
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise QserveException(f"{ORIGIN_REGEX}={text!r} is not a regular expression: {error}") from None


def _flag(env: Mapping[str, str]) -> bool:
    text = env.get(CREDENTIALS) or "0"
    if text not in ("0", "1"):
        raise QserveException(f"{CREDENTIALS}={text!r} must be 1 or 0")
    return text == "1"


def _seconds(env: Mapping[str, str]) -> int:
    text = env.get(MAX_AGE) or "600"
    try:
        return whole_number(text)
    except ValueError:
        raise QserveException(f"{MAX_AGE}={text!r} must be a whole number of seconds, such as {MAX_AGE}=600") from None
