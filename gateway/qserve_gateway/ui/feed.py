"""The events of the live page: one reader of the broker for all who look at this process, and none if nobody does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gevent
from pydantic_core import to_json

from qserve.base.log import get_logger
from qserve.base.turns import Turns
from qserve.overview.picture import Graph, Picture
from qserve_gateway.request.environ import Environ
from qserve_gateway.response.reply import Sending, call_all, paced
from qserve_gateway.ui.ending import is_ending
from qserve_gateway.ui.shapes import shape_of

log = get_logger(__name__)
LOOK_S = 0.5
"""How often the broker is read while somebody looks; with large graphs it takes at most a fifth of the time."""
VIEWERS_LIMIT = 32
"""The most browsers that may look at one process at a time."""
_SHARE = 5
_KEPT_ALIVE_S, _WAIT_S = 10.0, 0.5
_BEGIN = b"retry: 1000\n\n"

Parts = dict[tuple[str, str], bytes]
"""The events that make up a picture, by event and name; those of two pictures that are equal are one object."""


class Feed:
    """Pictures as events, for any number of viewers.

    Parameters:
      look: Returns the picture now.
      look_s: How often it is called at most, in seconds.
    """

    def __init__(self, look: Callable[[], Picture], look_s: float = LOOK_S) -> None:
        self._look = look
        self._look_s = look_s
        self._news = threading.Condition()
        self._parts: Parts = {}
        self._number = 0
        self._viewers: set[object] = set()
        self._is_reading = False
        self._shapes: dict[str, tuple[tuple[Graph, ...], bytes]] = {}
        self._turns = Turns("reading the broker for /-/ui", log, is_quiet=True)

    @property
    def is_full(self) -> bool:
        """Whether no further viewer may join."""
        return len(self._viewers) >= VIEWERS_LIMIT

    def enter(self, viewer: object) -> None:
        """Count a viewer, and begin to read if it is the first."""
        with self._news:
            self._viewers.add(viewer)
            if not self._is_reading:
                self._is_reading = True
                threading.Thread(target=self._read, name="ui", daemon=True).start()

    def leave(self, viewer: object) -> None:
        """Forget a viewer; the last one ends the reading."""
        with self._news:
            self._viewers.discard(viewer)
            self._news.notify_all()

    def newer_than(self, number: int, timeout_s: float) -> tuple[int, Parts]:
        """Wait for a picture after the one of this number; return number and parts of the last that there is."""
        with self._news:
            self._news.wait_for(lambda: self._number > number, timeout_s)
            return self._number, self._parts

    def _read(self) -> None:
        while True:
            began = time.monotonic()
            try:
                parts = self._parts_of(self._look())
                if self._turns.failures:
                    self._turns.recover()
            except Exception as error:  # viewers see that the picture grows old
                self._turns.note(error)
                parts = self._parts
            took = time.monotonic() - began
            with self._news:
                if not self._viewers:
                    self._is_reading, self._parts = False, {}
                    return
                self._parts = {key: _kept(self._parts.get(key), data) for key, data in parts.items()}
                self._number += 1
                self._news.notify_all()
            time.sleep(max(self._look_s - took, took * (_SHARE - 1)))

    def _parts_of(self, picture: Picture) -> Parts:
        names = [app.name for app in picture.applications]
        self._shapes = {name: shaped for name, shaped in self._shapes.items() if name in names}
        parts: Parts = {}
        for app in picture.applications:
            shaped = self._shapes.get(app.name)
            if shaped is None or shaped[0] != app.graphs:
                # a large one takes a second, for which nobody else must wait
                data = gevent.get_hub().threadpool.apply(_shaped, (app.graphs, app.name))
                shaped = self._shapes[app.name] = app.graphs, data
            parts["graphs", app.name] = shaped[1]
            parts["application", app.name] = to_json(replace(app, graphs=()))
        parts["replicas", ""] = to_json({"replicas": picture.replicas})
        parts["hosts", ""] = to_json({"hosts": picture.hosts})
        now = {"at_s": picture.at_s, "broker": picture.broker, "dead_letters": picture.dead_letters}
        parts["now", ""] = to_json(now | {"applications": names})
        return parts


def _kept(before: bytes | None, data: bytes) -> bytes:
    return before if before is not None and before == data else data


def _shaped(graphs: Sequence[Graph], app: str) -> bytes:
    shapes = [
        {
            "name": one.name,
            "nodes": one.nodes,
            "edges": one.edges,
            "wide": shape_of(one, is_tall=False),
            "tall": shape_of(one, is_tall=True),
        }
        for one in graphs
    ]
    return to_json({"application": app, "graphs": shapes})


# -- a viewer --------------------------------------------------------------------------------------


class Viewing:
    """The events of a feed for one viewer, as a WSGI application; a slow one gets fewer pictures.

    Parameters:
      is_allowed: Returns whether the viewer may still look.
    """

    is_long = True
    status = 200

    def __init__(self, feed: Feed, is_allowed: Callable[[], bool], request_id: str) -> None:
        self._feed = feed
        self._is_allowed = is_allowed
        self.headers = [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
            ("x-request-id", request_id),
        ]
        self.when_sent: list[Callable[[], None]] = [partial(feed.leave, self)]
        feed.enter(self)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Send the events; this makes it a WSGI application."""
        start_response("200 OK", self.headers)
        if environ["REQUEST_METHOD"] == "HEAD":
            self.close()
            return []
        return Sending(self._pieces(environ.get("gunicorn.socket")), self.when_sent)

    def close(self) -> None:
        """Give up a response that could not be begun."""
        call_all(self.when_sent)

    def _pieces(self, sock: Any) -> Iterator[bytes]:
        yield _BEGIN
        number, sent = 0, dict[tuple[str, str], bytes]()
        said_at = time.monotonic()
        while self._is_allowed() and not is_ending():
            number, parts = self._feed.newer_than(number, _WAIT_S)
            new = [(key, data) for key, data in parts.items() if sent.get(key) is not data]
            if new or time.monotonic() - said_at > _KEPT_ALIVE_S:
                said_at = time.monotonic()
                sent = parts
                pieces = b"".join([b"event: %b\ndata: %b\n\n" % (event.encode(), data) for (event, _), data in new])
                yield from paced(pieces or b":\n\n", sock)
