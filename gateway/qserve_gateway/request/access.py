"""Decide from its headers whether a request is allowed: host, token, origin, and the limits of its client."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from qserve.base.numbers import number, whole_number
from qserve.exceptions import QserveException
from qserve.http.message import BadRequest
from qserve_gateway.request.environ import Environ, Refused, has_body

ALLOWED_HOSTS = "QSERVE_ALLOWED_HOSTS"
TOKEN = "QSERVE_API_TOKEN"
IN_FLIGHT, RATE, CLIENT_BY = "QSERVE_CLIENT_IN_FLIGHT", "QSERVE_CLIENT_REQUESTS_PER_S", "QSERVE_CLIENT_BY"

AllowedHosts = frozenset[str] | None
"""Host names without ports; None allows any."""

_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_SWEEP_INTERVAL_S = 1.0
_TOLERANCE_S = 1e-9  # of sums of fractions


@dataclass(frozen=True)
class AccessPolicy:
    """The rules of a gateway for the requests that it accepts.

    Parameters:
      hosts: The host names that it serves.
      token: The digest of the token that every request must carry; None when no token is required.
      clients: The limits of one client; None when there are none.
    """

    hosts: AllowedHosts = None
    token: bytes | None = None
    clients: ClientLimits | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str], variable: str = TOKEN) -> AccessPolicy:
        """Read the policy from environment variables.

        Parameters:
          variable: The one that has the token.

        Raises:
          QserveException: A variable has an invalid value; the message names the variable.
        """
        token = env.get(variable, "")
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise QserveException(f"{variable} must be printable ASCII without spaces, as from `openssl rand -hex 32`")
        names = (_host_in(part.strip()) for part in env.get(ALLOWED_HOSTS, "").split(","))
        hosts = frozenset(name for name in names if name) or None
        if env.get(ALLOWED_HOSTS) and hosts is None:
            raise QserveException(f"{ALLOWED_HOSTS}={env[ALLOWED_HOSTS]!r} names no host; leave it out to allow all")
        return cls(hosts, digest_of(token) if token else None, ClientLimits.from_env(env))

    def check(self, environ: Environ) -> None:
        """Check host and token.

        Raises:
          BadRequest: The host is not served (400, 421), or the token is missing or wrong (401).
        """
        check_host(environ, self.hosts)
        if self.token is not None:
            # removed because the token is the gateway's: replicas, which run user code, must not see it
            scheme, _, shown = environ.pop("HTTP_AUTHORIZATION", "").partition(" ")
            if not hmac.compare_digest(digest_of(shown.strip()), self.token) or scheme.lower() != "bearer":
                message, headers = "send the header 'Authorization: Bearer <token>'", (("www-authenticate", "Bearer"),)
                raise Refused(message, "unauthorized", 401, has_body(environ), headers=headers)


def digest_of(token: str) -> bytes:
    """Return the digest of a token; all have one length, so the time of a comparison reveals nothing about it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


# -- hosts and origins -----------------------------------------------------------------------------


def check_host(environ: Environ, allowed: AllowedHosts = None) -> None:
    """Refuse a request for a host that this gateway does not serve.

    Without this check, a web page could reach an application by pointing its own host name at this gateway.

    Raises:
      BadRequest: The request names no host (400), or one that is not served here (421).
    """
    named = environ.get("HTTP_HOST")
    if named is None and environ.get("SERVER_PROTOCOL") == "HTTP/1.1":
        raise BadRequest("the request has no Host header", "missing_host", close=True)
    foreign = allowed is not None and named is not None and ("@" in named or _host_in(named) not in allowed)
    target: str = environ.get("RAW_URI", "/")
    if not target.startswith("/") and "://" in target:  # the form for proxies, and this is not a proxy
        sock = environ.get("gunicorn.socket")
        own = _LOOPBACK if sock is None else _LOOPBACK | {str(sock.getsockname()[0])}
        foreign = foreign or _host_in(target) not in (allowed or own)
    if foreign:
        raise BadRequest("this gateway does not serve that host", "misdirected_request", 421, close=True)


def check_origin(environ: Environ, allowed: AllowedHosts = None) -> None:
    """Refuse a request that may change something and was sent by a web page of another host.

    Methods that only read are allowed: the browser itself hides their responses from such a page.

    Parameters:
      allowed: The hosts whose pages may send it; None for the host that the request itself names.

    Raises:
      BadRequest: A page of another host sent it (403).
    """
    if environ["REQUEST_METHOD"] not in _SAFE_METHODS:
        check_page(environ, allowed)


def check_page(environ: Environ, allowed: AllowedHosts = None) -> None:
    """Refuse any request of a web page of another host, such as a WebSocket, from which that page could read.

    For the parameter and the error see ``check_origin``.
    """
    origin = environ.get("HTTP_ORIGIN")
    foreign = environ.get("HTTP_SEC_FETCH_SITE", "").strip().lower() == "cross-site"
    if origin is not None and not foreign:
        scheme, _, host = origin.partition("://")
        if allowed is None:
            foreign = not host or host.lower() != environ.get("HTTP_HOST", "").lower()
        else:
            foreign = _host_in(host) not in allowed
        foreign = foreign or scheme.lower() not in ("http", "https")
    if foreign:
        raise BadRequest("web pages of other hosts may not send this request", "cross_origin", 403, close=True)


def _host_in(text: str) -> str:
    try:
        return urlsplit(text if "://" in text else f"//{text}").hostname or ""
    except ValueError:
        return ""


# -- the limits of one client ----------------------------------------------------------------------


@dataclass(slots=True)
class _Client:
    """A client: its requests in flight, and the moment from which on it may send a whole burst again."""

    in_flight: int = 0
    rested_at: float = 0.0


class ClientLimits:
    """Limits what one client may request from this process.

    No lock is needed: there is one thread, and no greenlet switches in the middle of a method.

    Parameters:
      in_flight: Requests at a time; 0 for no limit.
      per_s: Requests per second, of which one second's worth (at least one) may come at once; 0 for no limit.
      by_authorization: Identify clients by their ``Authorization`` header where they send one, and not by address.
      clock: Returns monotonic seconds.
    """

    def __init__(
        self, in_flight: int, per_s: float, by_authorization: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._in_flight = in_flight
        self._per_s = per_s
        self._by_authorization = by_authorization
        self._clock = clock
        self._clients: dict[str, _Client] = {}
        self._swept_at = clock()

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ClientLimits | None:
        """Read the limits from environment variables; None when they set none."""
        in_flight, per_s = _number(env, IN_FLIGHT, whole_number), _number(env, RATE, number)
        by = env.get(CLIENT_BY) or "address"
        if by not in ("address", "authorization"):
            raise QserveException(f"{CLIENT_BY}={by!r} must be 'address' or 'authorization'")
        if by == "authorization" and env.get(TOKEN):
            raise QserveException(
                f"{CLIENT_BY}=authorization cannot tell clients apart: all of them send the same {TOKEN}"
            )
        return cls(int(in_flight), per_s, by == "authorization") if in_flight or per_s else None

    def enter(self, environ: Environ) -> Callable[[], None]:
        """Count a request for its client, and return what must be called when it ends.

        Raises:
          Refused: The client has too many requests in flight, or has just sent too many (429).
        """
        now = self._clock()
        self._sweep(now)
        client = self._clients.setdefault(self._name(environ), _Client())
        if self._in_flight and client.in_flight >= self._in_flight:
            limit = f"(limit {self._in_flight}, set by {IN_FLIGHT})"
            raise _too_many(environ, f"this client already has {client.in_flight} requests in flight {limit}", 1)
        if self._per_s:
            # each request of a burst moves the moment by its share of a second
            burst_s = (max(1.0, self._per_s) - 1) / self._per_s
            wait_s = client.rested_at - now - burst_s
            if wait_s > _TOLERANCE_S:
                message = f"this client sends more than {self._per_s:g} requests per second (set by {RATE})"
                raise _too_many(environ, message, math.ceil(wait_s))
            client.rested_at = max(now, client.rested_at) + 1 / self._per_s
        client.in_flight += 1

        def leave() -> None:
            client.in_flight -= 1

        return leave

    def _name(self, environ: Environ) -> str:
        shown = environ.get("HTTP_AUTHORIZATION") if self._by_authorization else None
        if shown is None:
            return str(environ.get("REMOTE_ADDR", ""))
        return hashlib.sha256(shown.encode("latin-1")).hexdigest()

    def _sweep(self, now: float) -> None:
        """Forget clients whose limits are fully restored; an attacker may send under any number of names."""
        if now - self._swept_at < _SWEEP_INTERVAL_S:
            return
        self._swept_at = now
        self._clients = {
            name: client for name, client in self._clients.items() if client.in_flight or client.rested_at > now
        }


def _too_many(environ: Environ, message: str, after_s: int) -> Refused:
    return Refused(message, "too_many_requests", 429, has_body(environ), retry_after_s=after_s)


def _number(env: Mapping[str, str], name: str, read: Callable[[str], float]) -> float:
    text = env.get(name)
    if not text:
        return 0.0
    try:
        value = read(text)
    except ValueError:
        value = 0
    if not value:
        kind = "whole number" if read is whole_number else "number"
        raise QserveException(f"{name}={text!r} must be a {kind} above 0, such as {name}=10")
    return value
