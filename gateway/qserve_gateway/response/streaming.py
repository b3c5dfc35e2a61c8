"""Answers whose body comes item by item: relayed as they arrive, stopped when the client leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgpack

from qserve.calls.items import ItemRef
from qserve.exceptions import DeadlineExceeded, GetTimeoutError, RequestCancelled
from qserve_gateway.request.clients import LOOK_EVERY_S, is_gone
from qserve_gateway.response.reply import status_line


class StreamReply:
    """An HTTP answer in the making, as a WSGI application.

    Parameters:
      ref: Its first item is status and headers, the others are the body.
      request_id: Goes into the headers.
      timeout_s: Until when the next item must have come, from now.
      cancel: Ends the request when the client leaves.
    """

    __slots__ = ("_cancel", "_end", "_ref", "_sock", "headers", "on_close", "status")

    def __init__(self, ref: ItemRef, request_id: str, timeout_s: float, cancel: Callable[[ItemRef], None]) -> None:
        first = ref.take_nowait()
        assert first is not None
        self.status, named = msgpack.unpackb(first)
        self.headers = [(name, value) for name, value in named]
        self.headers.append(("x-request-id", request_id))
        self._ref = ref
        self._cancel = cancel
        self._end = time.monotonic() + timeout_s
        self._sock: Any = None
        self.on_close: Callable[[], None] | None = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Send it, as WSGI has it."""
        self._sock = environ.get("gunicorn.socket")
        start_response(status_line(self.status), self.headers)
        if environ["REQUEST_METHOD"] == "HEAD":
            self.close()  # the server would close only what it has taken items from
            return []
        return self

    def __iter__(self) -> Iterator[bytes]:
        while (item := self._next()) is not None:
            yield item
        # what ends a stream early must not look like its end: the connection is closed without the last chunk
        self._ref.raise_for_end()

    def _next(self) -> bytes | None:
        while True:
            left_s = self._end - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded("the response was not finished within the request's deadline")
            try:
                return self._ref.take(min(LOOK_EVERY_S, left_s))
            except GetTimeoutError:
                if is_gone(self._sock):
                    raise RequestCancelled("the client closed the connection") from None

    def close(self) -> None:
        """Called by the server at the end, also when sending failed: a producer without reader stops."""
        if not self._ref.done.is_set():
            self._cancel(self._ref)
        if self.on_close is not None:
            self.on_close()
