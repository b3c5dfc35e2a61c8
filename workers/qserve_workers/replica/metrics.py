"""What a replica counts of its calls: all in the thread of its loop."""

from __future__ import annotations

import time
from collections.abc import Callable

from qserve.base.clock import clock
from qserve.metrics.recorder import OTHER, Buckets, Number, Recorder
from qserve.metrics.table import TABLE
from qserve.wire.outcome import ENDED, State
from qserve.wire.replies import entered_ms
from qserve_workers.replica.reader import Work

_MOST_ERRORS = 50
"""How many types of exceptions are told apart."""


class CallMetrics:
    """Counts the calls of one replica.

    Parameters:
      ongoing: Returns how many calls run.
      backlog: Returns how many items of streams no reader has taken.
    """

    def __init__(self, recorder: Recorder, ongoing: Callable[[], int], backlog: Callable[[], int]) -> None:
        self._recorder = recorder
        self._by_route: dict[str, tuple[Buckets, Number]] = {}
        self._waits = recorder.buckets(TABLE["queue_wait_ms"])
        self._commits = recorder.buckets(TABLE["broker_commit_latency_ms"])
        self._ends: dict[State, Number] = {
            state: recorder.number(TABLE["requests_final"], state=state.word) for state in ENDED
        }
        self._retries = recorder.number(TABLE["retries"])
        self._errors: set[str] = set()
        recorder.before_each(lambda: recorder.set(TABLE["serve_replica_processing_queries"], ongoing()))
        recorder.before_each(lambda: recorder.set(TABLE["stream_backlog"], backlog()))

    def count(self, work: Work, has_failed: bool) -> None:
        """Count a call that has ended."""
        began = work.began
        if not began:  # it was ended before it began
            return
        header = work.header
        series = self._by_route.get(header.route)
        if series is None:
            series = self._by_route[header.route] = (
                self._recorder.buckets(TABLE["serve_deployment_processing_latency_ms"], route=header.route),
                self._recorder.number(TABLE["serve_deployment_request_counter"], route=header.route),
            )
        latencies, calls = series
        took_ms = (time.monotonic() - began) * 1000
        latencies.observe(took_ms, header.trace_id, "" if header.carried is None else header.carried.traceparent)
        if not has_failed:
            calls.add()
        wait_ms = clock.judge_ms() - took_ms - entered_ms(work.tag.entry_id)
        self._waits.observe(wait_ms if wait_ms > 0 else 0.0)

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

    def count_end(self, state: str, since: float = 0.0) -> None:
        """Count what the broker has acknowledged: the end of a request in a state, or moves to the next steps ("").

        Parameters:
          since: When it was sent, by the monotonic clock; 0 if that is not measured.
        """
        if since:
            self._commits.observe((time.monotonic() - since) * 1000)
        if state:
            end = self._ends.get(State(state))
            if end is not None:
                end.add()
