"""Wait for a change of the registry, and for whatever else wakes a process, without looking again and again."""

from __future__ import annotations

import select
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import redis

from qserve.base.keys import Keys
from qserve.broker.connection import BLOCK_S, CLIENT_ERRORS, SILENT_FOR_S, Client, broker_errors


class ChangeFeed:
    """Waits for changes of a registry over a connection of its own, on which one read is always under way."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._pool = client.connection_pool
        self._key = keys.changes
        self._connection: Any = None
        self._asked_at: float | None = None

    def wait(self, after: str, timeout_s: float, others: Collection[int] = ()) -> set[int] | None:
        """Wait until there is a change, until one of ``others`` can be read, or for so long.

        Parameters:
          after: The change that is known.
          others: File descriptors.

        Returns:
          Those of ``others`` that can be read; None for a change.

        Raises:
          BrokerUnavailable: The broker is away, or silent.
        """
        try:
            with broker_errors():
                return self._wait(after, timeout_s, others)
        except BaseException:
            self.close()
            raise

    def _wait(self, after: str, timeout_s: float, others: Collection[int]) -> set[int] | None:
        if self._connection is None:
            self._connection = self._pool.get_connection()
        if self._asked_at is None:
            self._connection.send_command("XREAD", "BLOCK", int(BLOCK_S * 1000), "STREAMS", self._key, after)
            self._asked_at = time.monotonic()
        own = self._connection._sock.fileno()
        ready = {*select.select([own, *others], [], [], timeout_s)[0]}
        if own in ready and self._connection.can_read(0):  # TLS has messages of its own
            self._asked_at = None
            if self._connection.read_response() is not None:
                return None
        elif self._asked_at is not None and time.monotonic() - self._asked_at > SILENT_FOR_S:
            raise redis.ConnectionError(f"it has been silent for {SILENT_FOR_S:.0f} s")
        return ready - {own}

    def close(self) -> None:
        """Close the connection; the next wait opens another."""
        connection, self._connection, self._asked_at = self._connection, None, None
        if connection is not None:
            with suppress(*CLIENT_ERRORS):
                connection.disconnect()
                self._pool.release(connection)
