"""The page of ``qserve worker --metrics-port``, which Prometheus reads."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from qserve.metrics.totals import Totals

_OPEN_LIMIT, _OPEN_S, _REQUEST_LIMIT = 32, 5.0, 8192
"""How many scrapes may be open, for how long, and how long the head of one may be."""


class Page:
    """Answers Prometheus from a loop that must not wait: it has no thread, because this process forks.

    Parameters:
      listener: A socket that listens.
    """

    def __init__(self, listener: socket.socket, prefix: str, totals: Totals) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._prefix = prefix
        self._totals = totals
        self._open: dict[socket.socket, _Scrape] = {}

    def fileno(self) -> int:
        return self._listener.fileno()

    @property
    def is_busy(self) -> bool:
        """Whether a scrape is under way."""
        return bool(self._open)

    def close(self) -> None:
        """End all connections."""
        for connection in (*self._open, self._listener):
            connection.close()

    def turn(self) -> None:
        """Accept, read and write what is possible now."""
        with contextlib.suppress(OSError):
            while len(self._open) < _OPEN_LIMIT:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._open[connection] = _Scrape(connection, time.monotonic() + _OPEN_S)
        for connection, scrape in [*self._open.items()]:
            try:
                is_done = scrape.go_on(self._answer)
            except (BlockingIOError, InterruptedError):
                is_done = time.monotonic() > scrape.until
            except OSError:
                is_done = True
            if is_done:
                del self._open[connection]
                connection.close()

    def _answer(self, head: str) -> bytes:
        line, *fields = head.split("\r\n")
        method, _, rest = line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD") or path not in ("/metrics", "/-/metrics"):
            return _response("404 Not Found", "text/plain; charset=utf-8", b"GET /metrics\n")
        accept = ",".join(field.partition(":")[2] for field in fields if field.lower().startswith("accept:"))
        render: Any = import_module("qserve.metrics.exposition").render
        body, kind = render([(self._totals.snapshot(), {})], self._prefix, accept)
        return _response("200 OK", kind, body, is_head=method == "HEAD")


class _Scrape:
    """A connection: what was read of its request, and what is left to write."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self.until = until
        self._connection = connection
        self._head = b""
        self._left = b""

    def go_on(self, answer: Callable[[str], bytes]) -> bool:
        """Read or write, and return whether it is done; BlockingIOError when it has to wait."""
        while not self._left:
            part = self._connection.recv(_REQUEST_LIMIT)
            self._head += part
            if b"\r\n\r\n" in self._head:
                self._left = answer(self._head.decode("latin-1"))
            elif not part or len(self._head) > _REQUEST_LIMIT:
                return True
        while self._left:
            self._left = self._left[self._connection.send(self._left) :]
        return True


def _response(status: str, kind: str, body: bytes, is_head: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if is_head else body)
