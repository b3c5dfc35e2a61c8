"""What a gateway counts, and its page ``/-/metrics``, which any of its processes serves for all of them."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import gevent
from gevent.socket import wait_read

from qserve.base.log import get_logger
from qserve.base.promise import Promise
from qserve.base.settings import Settings
from qserve.base.turns import Turns
from qserve.broker import functions
from qserve.broker.connection import if_permitted
from qserve.calls.client import ClientPlane
from qserve.metrics import totals
from qserve.metrics.recorder import MOST_NOTED, OTHER, Recorder, taken
from qserve.metrics.table import TABLE
from qserve.metrics.totals import Channel, Reporter, Totals, ask
from qserve.wire.replies import ends
from qserve.wire.totals import Family, Published, Snapshot
from qserve_gateway.request.environ import FOUND, REQUEST_ID, TRACEPARENT, Environ
from qserve_gateway.request.waiting import InFlightLimit
from qserve_gateway.response.reply import call_when_sent
from qserve_gateway.routes import PLAIN_METHODS, Route

log = get_logger(__name__)
METRICS_PATH = "/-/metrics"
_FLUSH_S = 1.0
_FACTS_S = 1.0
"""How long what the broker said holds, and how long the page waits for it."""
_LATENCY, _IN_FLIGHT = TABLE["serve_http_request_latency_ms"], TABLE["serve_num_ongoing_http_requests"]
_METHODS = frozenset((*PLAIN_METHODS, "WEBSOCKET"))
_NOT_FOUND: tuple[Route | None, str] = None, ""
_Noted = tuple[Route | None, str, str, int, str, str, float]
"""A request: route, graph, method, status, ID, traceparent, and how many milliseconds it took."""


class GatewayMetrics:
    """Counts the requests of one process. One observation for each is all; the other numbers follow from it."""

    def __init__(self, in_flight: InFlightLimit) -> None:
        self._recorder = Recorder()
        self._recorder.before_each(self._add_up)
        self._recorder.before_each(self._count_in_flight)
        self._in_flight = in_flight
        self._noted: list[_Noted] = []
        self._is_due = channel is None
        self._reporter = None if channel is None else Reporter(self._recorder, str(os.getpid()), channel.told)
        self._own = Totals()  # where no process adds up
        self._last: Snapshot = {}
        totals.install(self._reporter)

    def timed(self, answer: Callable[[Environ], Any], environ: Environ) -> Any:
        """Answer a request and count it, once its response is sent."""
        if not self._is_due:
            self._is_due = True
            gevent.spawn_later(_FLUSH_S, self._flush)
        began = time.perf_counter()
        reply = answer(environ)
        if reply.is_long:
            call_when_sent(reply, lambda: self._count(environ, reply, began))
        else:
            self._count(environ, reply, began)
        return reply

    def _count(self, environ: Environ, reply: Any, began: float) -> None:
        """Note a request. Many are added up at once: by itself, each would find nothing in the processor's caches."""
        took_ms = 1000 * (time.perf_counter() - began)
        route, graph = environ.get(FOUND, _NOT_FOUND)
        request_id, parent = environ.get(REQUEST_ID, ""), environ.get(TRACEPARENT, "")
        self._noted.append((route, graph, environ["REQUEST_METHOD"], reply.status, request_id, parent, took_ms))
        if len(self._noted) >= MOST_NOTED:
            self._add_up()

    def _add_up(self) -> None:
        alike = defaultdict[tuple[int, str, str, int], list[_Noted]](list)
        for one in taken(self._noted):
            route, graph, method, status, *_ = one
            alike[id(route), graph, method, status].append(one)
        for (_, graph, method, status), noted in alike.items():
            series = self._recorder.buckets(_LATENCY, **_labels(noted[0][0], graph, method, status))
            series.observe_all([one[-1] for one in noted], partial(_request_of, noted))

    def count_ends(self, app: str, state: str, count: int) -> None:
        """Count requests that have ended in a state, which no replica has counted."""
        self._recorder.number(TABLE["requests_final"], application=app, state=state).add(count)

    def count_webhook(self, came_of_it: str) -> None:
        """Count a try to deliver a webhook."""
        self._recorder.number(TABLE["webhook_tries"], outcome=came_of_it).add()

    def _count_in_flight(self) -> None:
        self._recorder.replace(_IN_FLIGHT, {(name,): held for name, held in self._in_flight.held_by_route().items()})

    def _flush(self) -> None:
        self._is_due = False
        if self._reporter is not None:
            self._reporter.flush()
        if self._in_flight.held and not self._is_due:  # the end of what is in flight is told as well
            self._is_due = True
            gevent.spawn_later(_FLUSH_S, self._flush)

    def snapshot(self) -> Snapshot:
        """Return what all processes of this gateway have counted until now.

        Where the first of them does not reply within a second it is what it said last.
        """
        if channel is None or self._reporter is None:
            self._own.add("", self._recorder.take())
            return self._own.snapshot()
        self._reporter.flush()
        self._last = ask(channel.told) or self._last
        return self._last


def _request_of(noted: list[_Noted], index: int) -> tuple[str, str]:
    return noted[index][4:6]


def _labels(route: Route | None, graph: str, method: str, status: int) -> dict[str, str]:
    """Return the labels of a request. The route is a pattern, never a path, and is empty where none was found."""
    pattern = "" if route is None else route.prefix if graph in ("", "/") else route.root_path + graph
    app = "" if route is None else route.record.name
    name = method if method in _METHODS else OTHER
    return {"route": pattern, "method": name, "application": app, "status_code": str(status)}


class Page:
    """The page ``/-/metrics``: what this gateway has counted, what workers have, and what the broker knows.

    The broker is read at most once a second, however many ask, and by this process alone. While it does not reply the
    page is written without its facts, with what the workers said last.

    Parameters:
      counted: What this gateway counts.
    """

    def __init__(self, settings: Settings, plane: ClientPlane, counted: GatewayMetrics) -> None:
        self._settings = settings
        self._plane = plane
        self._counted = counted
        self._reading: Promise[None] | None = None
        self._read_again_at = 0.0
        self._facts: Snapshot = {}
        self._workers: dict[str, Published] = {}
        self._turns = Turns("reading the broker for /-/metrics", log, is_quiet=True)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the body of the page and its content type.

        Parameters:
          accept: The header of the request.
        """
        # with its library, which a gateway that is not asked does not need
        render: Any = import_module("qserve.metrics.exposition").render
        facts = self.facts()
        workers = [(said.snapshot, {"worker": name}) for name, said in self._workers.items() if not said.has_page]
        page: tuple[bytes, str] = render(
            [(self._counted.snapshot(), {}), (facts, {}), *workers], self._settings.metrics_prefix, accept
        )
        return page

    def facts(self) -> Snapshot:
        """Return what the broker knows; of one that does not reply within a second only that."""
        if self._reading is None and time.monotonic() >= self._read_again_at:
            self._reading = Promise()
            threading.Thread(target=self._read, args=(self._reading,), name="metrics", daemon=True).start()
        reading = self._reading
        if reading is None or reading.wait(_FACTS_S):
            return self._facts
        return _AWAY

    def _read(self, reading: Promise[None]) -> None:
        try:
            plane = self._plane
            facts: Snapshot = import_module("qserve.fleet.facts").broker_facts(
                plane.client, plane.keys, plane.seal, plane.registry
            )
            worker_totals: Any = import_module("qserve.fleet.totals").worker_totals
            self._workers = if_permitted(lambda: worker_totals(plane.client, plane.keys, plane.seal))
            self._facts = facts
            self._take_ends()
        except Exception as error:
            self._facts = _AWAY
            self._turns.note(error)
        else:
            if self._turns.failures:
                self._turns.recover()
        self._read_again_at = time.monotonic() + _FACTS_S
        self._reading = None
        reading.set(None)

    def _take_ends(self) -> None:
        """Count the ends of requests that no replica has counted.

        Crash after the command: these ends are not counted.
        """
        reply = self._plane.execute(functions.take_ends(self._plane.keys.ends))
        for end in () if isinstance(reply, Exception) else ends(reply):  # an old ACL does not permit it
            self._counted.count_ends(*end)


_AWAY: Snapshot = {"broker_up": Family(TABLE["broker_up"], {(): 0.0})}


# -- the first process -----------------------------------------------------------------------------

channel: Channel | None = None
"""By which the processes of this gateway tell the first what they have counted; None in programs without a server."""
_adding: gevent.Greenlet | None = None


def open_channel() -> None:
    """Add up what the processes count that this one starts from now on."""
    global channel
    channel = Channel(Totals())


def hooks() -> Mapping[str, Callable[..., None]]:
    """Return the functions that gunicorn is to call in the life of its processes."""
    return {"when_ready": _begin, "post_fork": _leave, "child_exit": _forget, "worker_exit": _tell_last}


def _begin(server: Any) -> None:
    global _adding
    _adding = gevent.spawn(_add_up, os.getpid())


def _add_up(owner: int) -> None:
    """Receive while gunicorn waits for signals; this process has no thread, since it forks."""
    while channel is not None:
        wait_read(channel.heard.fileno())
        if os.getpid() != owner:
            return
        channel.receive()


def _leave(server: Any, worker: Any) -> None:
    if _adding is not None:
        _adding.kill(block=False)


def _forget(server: Any, worker: Any) -> None:
    if channel is not None:
        channel.receive()
        channel.totals.forget(str(worker.pid))


def _tell_last(server: Any, worker: Any) -> None:
    totals.flush()
