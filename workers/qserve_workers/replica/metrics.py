"""What a replica counts of its calls: noted in the thread of its loop, and added up once a second."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from qserve.base.clock import clock
from qserve.metrics.recorder import MOST_NOTED, OTHER, Buckets, Number, Recorder, taken
from qserve.metrics.table import TABLE
from qserve.payloads.store import ValueStore
from qserve.wire.envelope import Header
from qserve.wire.outcome import ENDED
from qserve.wire.replies import entered_ms
from qserve_workers.replica.reader import Work

_MOST_ERRORS = 50
"""How many types of exceptions are told apart."""


def count_fallbacks(recorder: Recorder, store: ValueStore) -> None:
    """Count the large values that a store had no room for, as this process has noted them."""
    for name, puts in [*store.puts.items()]:
        if puts.fallbacks:
            number = recorder.number(TABLE["payload_fallbacks"], store=name)
            number.add(puts.fallbacks - number.value)


class CallMetrics:
    """Counts the calls of one replica.

    What a call leaves is only noted on its way, and added up later for many calls at once. Counting each of them by
    itself took four times as long, because nothing that it needs was in the processor's caches any more.

    Parameters:
      ongoing: Returns how many calls run.
      backlog: Returns how many items of streams no reader has taken.
    """

    def __init__(self, recorder: Recorder, ongoing: Callable[[], int], backlog: Callable[[], int]) -> None:
        self._recorder = recorder
        self._by_route: dict[str, tuple[Buckets, Number]] = {}
        self._waits = recorder.buckets(TABLE["queue_wait_ms"])
        self._commits = recorder.buckets(TABLE["broker_commit_latency_ms"])
        self._ends: dict[str, Number] = {
            state: recorder.number(TABLE["requests_final"], state=state.word) for state in ENDED
        }
        self._retries = recorder.number(TABLE["retries"])
        self._errors: set[str] = set()
        self._noted: deque[tuple[Header, bytes, float, float, bool]] = deque()
        self._acknowledged: deque[tuple[str, float]] = deque()
        self._adding = threading.Lock()
        recorder.before_each(self._add_up)
        recorder.before_each(lambda: recorder.set(TABLE["serve_replica_processing_queries"], ongoing()))
        recorder.before_each(lambda: recorder.set(TABLE["stream_backlog"], backlog()))

    def count(self, work: Work, has_failed: bool, now: float) -> None:
        """Count a call that has ended, unless it was ended before it began.

        Parameters:
          now: The monotonic clock.
        """
        if work.began:
            self._noted.append((work.header, work.tag.entry_id, work.began, now, has_failed))
            if len(self._noted) >= MOST_NOTED:
                self._add_up(waits=False)

    def count_end(self, state: str, since: float = 0.0) -> None:
        """Count what the broker has acknowledged: the end of a request in a state, or moves to the next steps ("").

        Parameters:
          since: When it was sent, by the monotonic clock; 0 if that is not measured.
        """
        self._acknowledged.append((state, time.monotonic() - since if since else -1.0))
        if len(self._acknowledged) >= MOST_NOTED:
            self._add_up(waits=False)

    def _add_up(self, waits: bool = True) -> None:
        """Add up what was noted.

        Parameters:
          waits: Whether to wait if another thread is at it: that which tells the supervisor, and not the loop.
        """
        if not self._adding.acquire(waits):
            return
        try:
            ahead_ms = clock.judge_ms() - time.monotonic() * 1000
            for header, entry_id, began, ended, has_failed in taken(self._noted):
                latencies, calls = self._by_route.get(header.route) or self._series_of(header.route)
                traceparent = "" if header.carried is None else header.carried.traceparent
                latencies.observe((ended - began) * 1000, header.trace_id, traceparent)
                if not has_failed:
                    calls.add()
                self._waits.observe(max(0.0, began * 1000 + ahead_ms - entered_ms(entry_id)))
            for state, took_s in taken(self._acknowledged):
                if took_s >= 0:
                    self._commits.observe(took_s * 1000)
                if state in self._ends:
                    self._ends[state].add()
        finally:
            self._adding.release()

    def _series_of(self, route: str) -> tuple[Buckets, Number]:
        found = self._by_route[route] = (
            self._recorder.buckets(TABLE["serve_deployment_processing_latency_ms"], route=route),
            self._recorder.number(TABLE["serve_deployment_request_counter"], route=route),
        )
        return found

    def count_error(self, work: Work, error: BaseException) -> None:
        """Count what user code has raised."""
        name = type(error).__qualname__
        if name not in self._errors:
            if len(self._errors) >= _MOST_ERRORS:
                name = OTHER
            self._errors.add(name)
        about, route = TABLE["serve_deployment_error_counter"], work.header.route
        self._recorder.number(about, route=route, exception_type=name).add()

    def count_retry(self) -> None:
        """Count a call that is going to be tried again."""
        self._retries.add()

    def count_dead_letter(self, reason: str) -> None:
        """Count a call that becomes a dead letter."""
        self._recorder.number(TABLE["calls_dead_lettered"], reason=reason).add()
