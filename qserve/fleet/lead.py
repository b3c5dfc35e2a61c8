"""Which worker leads: the one whose counter grows.

Clocks are not compared. Whoever leads renews a sealed counter in one key twice a second, and the others watch it with
their own monotonic clocks. Taking and renewing are one act in the broker, which does nothing if the value is not the
one that the caller has read.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from qserve.base.keys import BEAT_TTL_MS, Keys
from qserve.broker import functions
from qserve.broker.connection import Client, broker_errors, is_unknown_function, without_strangers
from qserve.broker.functions import Reply
from qserve.exceptions import BrokerError, PayloadError
from qserve.wire.fleet import Lead
from qserve.wire.replies import warn_once
from qserve.wire.sealing import Seal

RENEW_S, ALONE_RENEW_S = 0.5, 1.0
"""How often the counter is renewed, and how often where there is no other worker to lead."""
STILL_S = 2.5
"""How long the counter may stand still before another worker leads."""
_PLACE = b"lead"


class Leadership:
    """One worker's part in the election.

    Parameters:
      worker: Its id.
      monotonic: Seconds; replaced in tests.

    Attributes:
      mine: What the key holds while this worker leads, by which ``assign`` checks that it still does; b"" otherwise.
    """

    def __init__(
        self, client: Client, keys: Keys, seal: Seal, worker: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.mine: bytes = b""
        self._client = client
        self._key = keys.lead
        self._seal = seal
        self._worker = worker
        self._clock = monotonic
        self._due_at = 0.0
        self._seen, self._since = b"", 0.0

    def renew(self, every_s: float = RENEW_S) -> bool:
        """Become or stay the leader when that is due, and return whether this worker leads.

        Parameters:
          every_s: When the next renewal is due.

        Crash before the act: the counter stands still, and another worker takes the lead. Crash after: the same.

        Raises:
          BrokerError: It is not known who leads; this worker decides nothing until it has renewed.
        """
        now = self._clock()
        if now < self._due_at:
            return self.mine != b""
        self._due_at = now + every_s
        mine, self.mine = self.mine, b""
        if mine and self._swap(mine):
            return True
        found = self._read()
        if found != self._seen:
            self._seen, self._since = found, now
        who = self._who(found) if found else ""
        # its own name is one from before it was started again: nobody else has it
        if who not in ("", self._worker) and now - self._since < STILL_S:
            return False
        return self._swap(found)

    def lose(self) -> None:
        """Note that this worker may not lead any more; the next renewal, which is due at once, tells."""
        self.mine = b""
        self._due_at = 0.0

    def resign(self) -> None:
        """Stop leading, so that another worker takes over at once."""
        if self.mine:
            with broker_errors():
                self._client.execute_command(*functions.lead(self._key, self.mine, b"", 0))
            self.mine = b""

    def _read(self) -> bytes:
        with broker_errors():
            found: bytes | None = without_strangers(self._client, lambda: self._client.get(self._key), self._key)
        return found or b""

    def _swap(self, was: bytes) -> bool:
        now = self._seal.seal(_PLACE, Lead(self._worker, time.time_ns()).encode())
        try:
            with broker_errors():
                reply = self._client.execute_command(*functions.lead(self._key, was, now, BEAT_TTL_MS))
        except BrokerError as error:
            if not is_unknown_function(error.__cause__):
                raise
            self._due_at, reply = 0.0, b""  # before the first deploy there are no functions, and nothing to lead
        self.mine = now if reply == Reply.OK else b""
        return self.mine != b""

    def _who(self, found: bytes) -> str:
        try:
            return Lead.decode(self._seal.open(_PLACE, found)).worker
        except PayloadError as error:
            warn_once(f"it is not known which worker leads, and this one tries: {error}")
            return ""
