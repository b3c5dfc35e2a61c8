"""Who may see the live page, and who may act there: two tokens, and the cookies that they are exchanged for."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from qserve.exceptions import QserveException
from qserve_gateway.request.access import digest_of
from qserve_gateway.request.environ import Environ

UI_PATH = "/-/ui"
TOKEN, ACTIONS_TOKEN = "QSERVE_UI_TOKEN", "QSERVE_UI_ACTIONS_TOKEN"
BROKER_URL = "QSERVE_UI_BROKER_URL"
OFF = f"the live page is off: set {TOKEN}, or {ACTIONS_TOKEN}, for this gateway"
COOKIE = "qserve_ui"
SESSION_S = 12 * 3600
"""After so long the token has to be entered again."""
_SHORTEST = 16
SEE, ACT = "see", "act"


@dataclass(frozen=True)
class Sessions:
    """Exchanges tokens for cookies, which any process of a gateway with the same tokens can check.

    A cookie says what its owner may do and until when, with a MAC by the token: another token ends it.

    Parameters:
      tokens: By what they allow: ``see`` and ``act``; the page is off without any.
    """

    tokens: Mapping[str, bytes] = field(repr=False)
    now: Callable[[], float] = time.time

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Sessions:
        """Read the tokens from environment variables.

        Raises:
          QserveException: One is too short, or cannot be entered.
        """
        tokens = {}
        for right, variable in ((SEE, TOKEN), (ACT, ACTIONS_TOKEN)):
            token = env.get(variable, "")
            if token and not (token.isascii() and token.isprintable() and " " not in token and len(token) >= _SHORTEST):
                raise QserveException(
                    f"{variable} must have {_SHORTEST} or more characters of printable ASCII without spaces, as from"
                    " `openssl rand -hex 32`"
                )
            if token:
                tokens[right] = token.encode()
        if len(set(tokens.values())) < len(tokens):
            raise QserveException(f"{TOKEN} and {ACTIONS_TOKEN} are the same: leave out the one that is not needed")
        return cls(tokens)

    def open(self, token: str) -> tuple[str, str] | None:
        """Return what a token allows, and the value of a cookie for it; None for a wrong one."""
        given = digest_of(token)
        found = [right for right, known in self.tokens.items() if hmac.compare_digest(given, digest_of(known.decode()))]
        if not found:
            return None
        until = int(self.now()) + SESSION_S
        return found[0], f"{found[0]}.{until}.{self._mac(found[0], str(until))}"

    def right_of(self, environ: Environ) -> str:
        """Return what a request's cookie allows; "" for nothing."""
        try:
            morsel = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(COOKIE)
        except CookieError:
            return ""
        right, _, rest = ("" if morsel is None else morsel.value).partition(".")
        until, _, mac = rest.partition(".")
        if right not in self.tokens or not (until.isascii() and until.isdigit() and len(until) < 16):
            return ""
        is_ours = hmac.compare_digest(mac.encode(), self._mac(right, until).encode())
        return right if is_ours and self.now() < int(until) else ""

    def _mac(self, right: str, until: str) -> str:
        return hmac.new(self.tokens[right], f"qserve-ui|{right}|{until}".encode(), hashlib.sha256).hexdigest()


def cookie_of(value: str, environ: Environ) -> str:
    """Return the header that sets the cookie, for this page alone: it has no path, so it holds for that of the page."""
    age = SESSION_S if value else 0
    secure = "; Secure" if environ.get("wsgi.url_scheme") == "https" else ""
    return f"{COOKIE}={value}; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"
