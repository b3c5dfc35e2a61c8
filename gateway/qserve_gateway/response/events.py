"""The progress of a request as server-sent events, which browsers read by ``EventSource``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from zlib import crc32

from qserve.calls.client import ASK_TIMEOUT_S, ClientPlane
from qserve.calls.ref import Ref
from qserve.exceptions import RequestCancelled
from qserve.http.render import to_json
from qserve.wire.outcome import ANNOUNCED, State
from qserve.wire.progress import Progress
from qserve_gateway.request.waiting import wait_for_result
from qserve_gateway.response.reply import Sending, call_all

INTERVAL_S = 0.5
"""How often the broker is asked."""
_KEPT_ALIVE_S = 15.0
_BEGIN = b"retry: 1000\n\n"
"""The first piece, with which the head is sent: when a client that has lost its connection asks again, in ms."""
END_ID = "end"
"""The ID of the last event."""


def progress_of(plane: ClientPlane, request_id: str) -> Progress | None:
    """Return the progress of a request; None also while the broker does not tell it."""
    asked = plane.progress(request_id)
    found = asked.get_nowait() if asked.wait(ASK_TIMEOUT_S) else None
    return found if isinstance(found, Progress) else None


class Events:
    """An event for each new progress of a request and one for its end, as a WSGI application.

    Parameters:
      last_id: The ID of the last event that the client has; it does not get that one again.
    """

    is_long = True
    status = 200

    def __init__(self, plane: ClientPlane, request_id: str, last_id: str, trace_id: str) -> None:
        self._plane = plane
        self._request_id = request_id
        self._last_id = last_id
        self.headers = [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
            ("x-request-id", trace_id),
        ]
        self.when_sent: list[Callable[[], None]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Send the events; this makes it a WSGI application."""
        start_response("200 OK", self.headers)
        if environ["REQUEST_METHOD"] == "HEAD":
            self.close()
            return []
        return Sending(self._events(environ.get("gunicorn.socket")), self.when_sent)

    def close(self) -> None:
        """Give up a response that could not be begun."""
        call_all(self.when_sent)

    def _events(self, sock: Any) -> Iterator[bytes]:
        ref: Ref[Any] = Ref(self._request_id, self._plane)
        self._plane.follow(ref)
        try:
            yield _BEGIN
            said_at, is_over = time.monotonic(), False
            while not is_over:
                data = self._new_progress()
                if data or time.monotonic() - said_at > _KEPT_ALIVE_S:
                    said_at = time.monotonic()
                    yield data or b":\n\n"  # proxies end what is silent
                is_over = wait_for_result(ref, INTERVAL_S, sock)
            state = ref.outcome().state
            # only the length of a long result comes; failures are short
            name = State.DONE.name if state == ANNOUNCED else State(state).name
            yield _event("end", END_ID, to_json({"status": name.lower()}))
        except RequestCancelled:
            pass  # the client has left, and the request goes on
        finally:
            self._plane.mailbox.remove(ref)

    def _new_progress(self) -> bytes:
        """Return the event for a progress that the client does not have; b"" for none."""
        progress = progress_of(self._plane, self._request_id)
        if progress is None:
            return b""
        data = to_json(progress._asdict())
        event_id = f"{crc32(data):08x}"
        if event_id == self._last_id:
            return b""
        self._last_id = event_id
        return _event("progress", event_id, data)


def _event(name: str, event_id: str, data: bytes) -> bytes:
    return b"event: %b\nid: %b\ndata: %b\n\n" % (name.encode(), event_id.encode(), data)
