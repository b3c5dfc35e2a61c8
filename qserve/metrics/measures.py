"""What replicas measure beside their calls: batches, models, and the methods that qserve itself calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from qserve.metrics import recorder
from qserve.metrics.recorder import Recorder
from qserve.metrics.table import TABLE


@contextmanager
def timed(name: str, **labels: str) -> Iterator[None]:
    """Observe in milliseconds how long the body of the ``with`` takes; nothing where nothing is counted.

    Parameters:
      name: The histogram.
    """
    began = time.monotonic()
    try:
        yield
    finally:
        observe(name, (time.monotonic() - began) * 1000, **labels)


def observe(name: str, value: float, **labels: str) -> None:
    """Count a value of a histogram; nothing where nothing is counted."""
    if recorder.here is not None:
        recorder.here.buckets(TABLE[name], **labels).observe(value)


def count(name: str, value: float = 1, **labels: str) -> None:
    """Add to a counter; nothing where nothing is counted."""
    if value and recorder.here is not None:
        recorder.here.number(TABLE[name], **labels).add(value)


class BatchMetrics:
    """Measures the batches of one function."""

    def __init__(self, function: str, here: Recorder) -> None:
        self._waits = here.buckets(TABLE["serve_batch_wait_time_ms"], function_name=function)
        self._runs = here.buckets(TABLE["serve_batch_execution_time_ms"], function_name=function)
        self._sizes = here.buckets(TABLE["serve_actual_batch_size"], function_name=function)
        self._uses = here.buckets(TABLE["serve_batch_utilization_percent"], function_name=function)
        self._count = here.number(TABLE["serve_batches_processed"], function_name=function)

    @classmethod
    def of(cls, function: str) -> BatchMetrics | None:
        """Return those of a function; None where nothing is counted."""
        return None if recorder.here is None else cls(function, recorder.here)

    def ended(self, size: int, limit: int, waited_s: float, ran_s: float) -> None:
        """Count a batch.

        Parameters:
          size, limit: Its items, and how many there may be.
          waited_s: How long its first item has waited.
          ran_s: How long its body has run.
        """
        self._waits.observe(1000 * waited_s)
        self._runs.observe(1000 * ran_s)
        self._sizes.observe(size)
        self._uses.observe(100 * size / limit)
        self._count.add()
