"""What a replica counts of its calls: noted in the thread of its loop, and added up once a second."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Final

from qserve.base.carried import Carried
from qserve.base.clock import clock
from qserve.metrics.recorder import MOST_NOTED, OTHER, Number, Recorder, taken
from qserve.metrics.table import TABLE
from qserve.payloads.store import ValueStore
from qserve.wire.outcome import ENDED
from qserve.wire.replies import entered_ms
from qserve_workers.replica.reader import Work

_MOST_ERRORS = 50
"""How many types of exceptions are told apart."""
_Noted = tuple[str, str, Carried | None, bytes, float, float, bool, str, float]
"""A call: route, ID of the request and what it carries, entry, when it began and ended, whether it failed, the state
that it has ended its request in, and how long the broker took for its commit."""
_ENTRY: Final = 3
_BEGAN: Final = 4
_ENDED: Final = 5
_HAS_FAILED: Final = 6
_STATE: Final = 7
_TOOK: Final = 8


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
        self._waits = recorder.buckets(TABLE["queue_wait_ms"])
        self._commits = recorder.buckets(TABLE["broker_commit_latency_ms"])
        self._ends: dict[str, Number] = {
            state: recorder.number(TABLE["requests_final"], state=state.word) for state in ENDED
        }
        self._retries = recorder.number(TABLE["retries"])
        self._errors: set[str] = set()
        self._noted: list[_Noted] = []
        self._adding = threading.Lock()
        recorder.before_each(self._add_up)
        recorder.before_each(lambda: recorder.set(TABLE["serve_replica_processing_queries"], ongoing()))
        recorder.before_each(lambda: recorder.set(TABLE["stream_backlog"], backlog()))

    def count(self, work: Work, has_failed: bool, ended: float, state: str = "", took_s: float = -1.0) -> None:
        """Count a call, once it is known what has come of it.

        Parameters:
          ended: When its code returned, by the monotonic clock.
          state: The end of its request, if this was its end.
          took_s: How long the broker took for its commit; negative for a call that ended in another way.
        """
        header, entry_id = work.header, work.tag.entry_id
        # texts and numbers only: a header would be kept for a second, and its memory not be used again at once
        self._noted.append(
            (header.route, header.trace_id, header.carried, entry_id, work.began, ended, has_failed, state, took_s)
        )  # fmt: skip
        if len(self._noted) >= MOST_NOTED:
            self._add_up(waits=False)

    def count_end(self, state: str) -> None:
        """Count the end of a request in a state, whose call is counted already."""
        self._noted.append(("", "", None, b"", 0.0, 0.0, True, state, -1.0))

    def _add_up(self, waits: bool = True) -> None:
        """Add up what was noted.

        Parameters:
          waits: Whether to wait if another thread is at it: that which tells the supervisor, and not the loop.
        """
        if not self._adding.acquire(waits):
            return
        try:
            noted = taken(self._noted)
            self._commits.observe_all([1000 * one[_TOOK] for one in noted if one[_TOOK] >= 0])
            for state, count in Counter([one[_STATE] for one in noted]).items():
                if state in self._ends:
                    self._ends[state].add(count)
            by_route = defaultdict[str, list[_Noted]](list)
            for one in noted:
                if one[_BEGAN]:  # otherwise it was ended before it began
                    by_route[one[0]].append(one)
            ahead_ms = clock.judge_ms() - time.monotonic() * 1000
            for route, calls in by_route.items():
                self._add_calls(route, calls, ahead_ms)
        finally:
            self._adding.release()

    def _add_calls(self, route: str, calls: list[_Noted], ahead_ms: float) -> None:
        latencies = self._recorder.buckets(TABLE["serve_deployment_processing_latency_ms"], route=route)
        latencies.observe_all([1000 * (one[_ENDED] - one[_BEGAN]) for one in calls], partial(_request_of, calls))
        returned = self._recorder.number(TABLE["serve_deployment_request_counter"], route=route)
        returned.add(sum(not one[_HAS_FAILED] for one in calls))
        self._waits.observe_all([max(0.0, 1000 * one[_BEGAN] + ahead_ms - entered_ms(one[_ENTRY])) for one in calls])

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


def _request_of(calls: list[_Noted], index: int) -> tuple[str, str]:
    _, trace_id, carried, *_ = calls[index]
    return trace_id, "" if carried is None else carried.traceparent
