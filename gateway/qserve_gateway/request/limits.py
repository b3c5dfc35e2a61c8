"""How many requests may wait here, in all and for one client.

All of this runs in one thread, and no greenlet gives way in the middle of it: nothing needs a lock.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qserve.exceptions import BackPressureError
from qserve.http.bad_request import BadRequest
from qserve_gateway.request.bodies import has_body

WAITING_LIMIT = 512
"""Requests that wait in one process; the rest of its connections stay free for refusals and health."""
_SWEEP_EVERY_S = 1.0


class TooManyRequests(BadRequest):
    """Raised when one client asks for more than its share.

    Parameters:
      message: Of what it has too much.
      retry_after_s: After how many seconds it may ask again.
      close: Whether its body is left unread.
    """

    retryable = True

    def __init__(self, message: str, retry_after_s: int, close: bool) -> None:
        super().__init__(message, "too_many_requests", 429, close)
        self.retry_after_s = retry_after_s


class WaitingRoom:
    """The requests that wait in this process; ``with room:`` takes a place, or raises BackPressureError."""

    def __init__(self) -> None:
        self._taken = 0

    def __enter__(self) -> None:
        if self._taken >= WAITING_LIMIT:
            raise BackPressureError("this gateway has as many requests waiting as it may")
        self._taken += 1

    def __exit__(self, *error: object) -> None:
        self._taken -= 1


@dataclass(slots=True)
class _Client:
    in_flight: int
    credit: float
    """Requests that it may send at once."""
    counted_at: float


class ClientLimits:
    """What one client may have from this process.

    Parameters:
      in_flight: Requests at a time; 0 for any number.
      per_s: Requests a second, of which one second's worth (at least one) may come at once; 0 for any number.
      by_authorization: Tell clients apart by their ``Authorization`` where they send one, and not by address.
      clock: Gives monotonic seconds.
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

    def enter(self, environ: dict[str, Any]) -> Callable[[], None]:
        """Let a request in, and answer what is to be called at its end.

        Raises:
          TooManyRequests: Its client has too many under way, or sent too many just now.
        """
        now = self._clock()
        self._sweep(now)
        client = self._clients.setdefault(self._name(environ), _Client(0, self._burst, now))
        if self._in_flight and client.in_flight >= self._in_flight:
            many = f"this client has {client.in_flight} requests under way, as many as it may"
            raise TooManyRequests(many, 1, has_body(environ))
        if self._per_s:
            client.credit = min(self._burst, client.credit + (now - client.counted_at) * self._per_s)
            client.counted_at = now
            if client.credit < 1:
                wait_s = math.ceil((1 - client.credit) / self._per_s)
                often = f"this client may send {self._per_s:g} requests a second"
                raise TooManyRequests(often, max(1, wait_s), has_body(environ))
            client.credit -= 1
        client.in_flight += 1

        def leave() -> None:
            client.in_flight -= 1

        return leave

    @property
    def _burst(self) -> float:
        return max(1.0, self._per_s)

    def _name(self, environ: dict[str, Any]) -> str:
        shown = environ.get("HTTP_AUTHORIZATION") if self._by_authorization else None
        if shown is None:
            return str(environ.get("REMOTE_ADDR", ""))
        return hashlib.sha256(shown.encode("latin-1")).hexdigest()

    def _sweep(self, now: float) -> None:
        """Forget clients that are as good as new: their number is the attacker's to choose."""
        if now - self._swept_at < _SWEEP_EVERY_S:
            return
        self._swept_at = now
        refill_s = self._burst / self._per_s if self._per_s else 0.0
        self._clients = {
            name: one for name, one in self._clients.items() if one.in_flight or now - one.counted_at < refill_s
        }
