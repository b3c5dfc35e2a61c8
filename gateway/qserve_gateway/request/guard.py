"""Who may ask this gateway, and for how much: host names, the token, limits of one client."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qserve.exceptions import QserveException
from qserve.http.bad_request import BadRequest
from qserve_gateway.request.bodies import has_body
from qserve_gateway.request.hosts import AllowedHosts, allowed_hosts, check_host
from qserve_gateway.request.incoming import Environ
from qserve_gateway.request.limits import ClientLimits

TOKEN = "QSERVE_API_TOKEN"
IN_FLIGHT, RATE, TOLD_APART = "QSERVE_CLIENT_IN_FLIGHT", "QSERVE_CLIENT_REQUESTS_PER_S", "QSERVE_CLIENT_BY"


class Unauthorized(BadRequest):
    """Raised when a request does not carry the token.

    Parameters:
      close: Whether its body is left unread.
    """

    headers = (("www-authenticate", "Bearer"),)

    def __init__(self, close: bool) -> None:
        super().__init__("this needs the header 'Authorization: Bearer <token>'", "unauthorized", 401, close)


@dataclass(frozen=True)
class Guard:
    """Refuses requests before anything of them is read but their head.

    Parameters:
      hosts: The host names that are answered.
      token: The digest of the token that every request must carry; None when there is none.
      clients: The limits of one client; None when there are none.
    """

    hosts: AllowedHosts = None
    token: bytes | None = None
    clients: ClientLimits | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Guard:
        """Read the gateway's variables.

        Raises:
          QserveException: The value of one is not what it must be; the message names it.
        """
        token = env.get(TOKEN, "")
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise QserveException(f"{TOKEN} must be printable ASCII without spaces, as from `openssl rand -hex 32`")
        return cls(allowed_hosts(env), _digest(token) if token else None, _clients(env))

    def check(self, environ: Environ) -> None:
        """Look at host and token.

        Raises:
          BadRequest: The host is not served (400, 421), or the token is missing or wrong (401).
        """
        check_host(environ, self.hosts)
        if self.token is not None:
            # it is the gateway's: replicas, where user code runs, do not get to see it
            scheme, _, shown = environ.pop("HTTP_AUTHORIZATION", "").partition(" ")
            if not hmac.compare_digest(_digest(shown.strip()), self.token) or scheme.lower() != "bearer":
                raise Unauthorized(has_body(environ))

    def enter(self, environ: Environ) -> Callable[[], None] | None:
        """Count a request for its client; what this answers is to be called at its end.

        Raises:
          TooManyRequests: The client has its share.
        """
        return None if self.clients is None else self.clients.enter(environ)


def _digest(token: str) -> bytes:
    # of one length, whatever was sent: the time of the comparison says nothing
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _clients(env: Mapping[str, str]) -> ClientLimits | None:
    in_flight, per_s = _number(env, IN_FLIGHT, whole=True), _number(env, RATE)
    told_apart = env.get(TOLD_APART) or "address"
    if told_apart not in ("address", "authorization"):
        raise QserveException(f"{TOLD_APART}={told_apart!r} must be 'address' or 'authorization'")
    if told_apart == "authorization" and env.get(TOKEN):
        raise QserveException(f"{TOLD_APART}=authorization tells nobody apart where all carry the same {TOKEN}")
    if not in_flight and not per_s:
        return None
    return ClientLimits(int(in_flight), per_s, told_apart == "authorization")


def _number(env: Mapping[str, str], name: str, whole: bool = False) -> float:
    text = env.get(name)
    if not text:
        return 0.0
    try:
        value = float(int(text) if whole else float(text))
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise QserveException(f"{name}={text!r} must be a {'whole ' if whole else ''}number above 0, such as {name}=10")
    return value
