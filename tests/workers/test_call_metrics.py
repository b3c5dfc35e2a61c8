"""What a replica counts of its calls, which are noted first and added up later."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

from qserve_workers.replica.metrics import CallMetrics

from qserve.metrics.recorder import MOST_NOTED, Recorder
from qserve.wire.envelope import Header
from qserve.wire.outcome import State
from qserve.wire.totals import Distribution, Snapshot

CALLS = 3 * MOST_NOTED + 7
COUNTED = ("serve_deployment_processing_latency_ms", "queue_wait_ms", "broker_commit_latency_ms")


def counted(told: Snapshot, name: str) -> float:
    values = told[name].values.values() if name in told else ()
    return sum(sum(one.counts) if isinstance(one, Distribution) else one for one in values)


def count_calls(metrics: CallMetrics) -> None:
    work: Any = SimpleNamespace(
        began=time.monotonic(), header=Header("0" * 32, "shop", None, 0), tag=SimpleNamespace(entry_id=b"17-0")
    )
    for _ in range(CALLS):
        metrics.count(work, False, work.began, State.DONE, 0.001)


def recorder() -> Recorder:
    return Recorder({"application": "shop", "deployment": "Model", "replica": "Model-1"})


def test_each_call_is_counted_once_while_another_thread_takes_what_was_counted() -> None:
    here = recorder()
    counting = threading.Thread(target=count_calls, args=(CallMetrics(here, int, int),))

    counting.start()
    told = []
    while counting.is_alive():
        told.append(here.take())
    told.append(here.take())

    for name in (*COUNTED, "serve_deployment_request_counter", "requests_final"):
        assert sum(counted(one, name) for one in told) == CALLS, name


def test_calls_that_nobody_takes_are_added_up_all_the_same_so_that_they_take_no_memory() -> None:
    here = recorder()
    metrics = CallMetrics(here, int, int)

    count_calls(metrics)

    assert len(metrics._noted) < MOST_NOTED
