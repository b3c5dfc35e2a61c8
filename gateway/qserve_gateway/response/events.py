"""The events of a request as server-sent events, which browsers read by ``EventSource``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qserve.calls.client import ASK_TIMEOUT_S, ClientPlane
from qserve.calls.events import EventReader, Logged
from qserve.calls.ref import Ref
from qserve.exceptions import RequestCancelled
from qserve.http.render import to_json
from qserve.wire.events import Event
from qserve.wire.progress import Progress
from qserve_gateway.request.waiting import wait_for_result
from qserve_gateway.response.reply import Sending, call_all

_KEPT_ALIVE_S = 15.0
_BEGIN = b"retry: 1000\n\n"
"""The first piece, with which the head is sent: when a client that has lost its connection asks again, in ms."""


def progress_of(plane: ClientPlane, request_id: str) -> Progress | None:
    """Return the progress of a request; None also while the broker does not tell it."""
    asked = plane.progress(request_id)
    found = asked.get_nowait() if asked.wait(ASK_TIMEOUT_S) else None
    return found if isinstance(found, Progress) else None


class Events:
    """The events of a request that is known, from its acceptance to its end, as a WSGI application.

    Parameters:
      last_id: The ID of the last event that the client has; it gets those behind it.
    """

    is_long = True
    status = 200

    def __init__(self, plane: ClientPlane, request_id: str, last_id: str, trace_id: str) -> None:
        self._plane = plane
        self._request_id = request_id
        self._reader = EventReader(last_id)
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
        reader, said_at = self._reader, time.monotonic()
        try:
            yield _BEGIN
            new = reader.begin()
            while True:
                is_over = ref.done.is_set()  # what is read after this is all that there is
                found = self._read()
                new += [] if found is None else reader.take(found)
                if new or time.monotonic() - said_at > _KEPT_ALIVE_S:
                    said_at = time.monotonic()
                    yield b"".join(map(_encoded, new)) or b":\n\n"  # proxies end what is silent
                    new = []
                if is_over and found is not None:
                    break
                if wait_for_result(ref, reader.pause_s, sock) and is_over:
                    time.sleep(reader.pause_s)  # the broker is away
            yield b"".join(map(_encoded, reader.end(ref.outcome().state)))
        except RequestCancelled:
            pass  # the client has left, and the request goes on
        finally:
            self._plane.mailbox.remove(ref)

    def _read(self) -> Logged | None:
        """Return the events that were not read yet; None while the broker does not tell them."""
        asked = self._plane.events(self._request_id, self._reader.read)
        found = asked.get_nowait() if asked.wait(ASK_TIMEOUT_S) else None
        return found if isinstance(found, Logged) else None


def _encoded(event: Event) -> bytes:
    return b"event: %b\nid: %b\ndata: %b\n\n" % (event.name.encode(), event.id.encode(), to_json(event.data()))
