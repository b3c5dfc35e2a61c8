"""``StreamReply``: an HTTP response whose body is sent item by item as the items arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgpack

from qserve.calls.ref import ItemRef
from qserve.exceptions import DeadlineExceeded, GetTimeoutError, RequestCancelled
from qserve_gateway.request.waiting import POLL_INTERVAL_S, is_disconnected
from qserve_gateway.response.reply import status_line


class StreamReply:
    """An HTTP response that is still being produced, as a WSGI application.

    Parameters:
      ref: The request. Its first item holds status and headers, the others are the body.
      request_id: The ``X-Request-ID`` for the headers.
      timeout_s: Seconds from now within which the body must be complete.
      cancel: Cancels the request when the client disconnects.
    """

    __slots__ = ("_cancel", "_end", "_ref", "_sock", "headers", "on_close", "status")

    def __init__(self, ref: ItemRef, request_id: str, timeout_s: float, cancel: Callable[[ItemRef], None]) -> None:
        first = ref.next_nowait()
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
        """Send the response; this makes it a WSGI application."""
        self._sock = environ.get("gunicorn.socket")
        start_response(status_line(self.status), self.headers)
        if environ["REQUEST_METHOD"] == "HEAD":
            self.close()  # the server closes only a body that it has iterated
            return []
        return self

    def __iter__(self) -> Iterator[bytes]:
        while (item := self._next()) is not None:
            yield item
        # an error must not look like the end of the body: raising closes the connection without the last chunk
        self._ref.raise_for_end()

    def _next(self) -> bytes | None:
        while True:
            left_s = self._end - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded("the response was not complete before the request's deadline")
            try:
                return self._ref.next(min(POLL_INTERVAL_S, left_s))
            except GetTimeoutError:
                if is_disconnected(self._sock):
                    raise RequestCancelled("the client closed the connection") from None

    def close(self) -> None:
        """Cancel what is left of the request; the server calls this at the end, also when sending failed."""
        if not self._ref.done.is_set():
            self._cancel(self._ref)
        if self.on_close is not None:
            self.on_close()
