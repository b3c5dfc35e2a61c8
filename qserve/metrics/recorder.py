"""What one process has counted, and what of it is new since it was last asked."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Final, TypeVar

from qserve.base.log import get_logger
from qserve.base.trace_context import trace_id_in
from qserve.wire.totals import LONGEST_LABEL, Description, Distribution, Exemplar, Family, Kind, Labels, Snapshot

log: Final = get_logger(__name__)
T = TypeVar("T")
MOST_SETS = 500
"""How many sets of label values one metric has at most; further ones are counted together."""
MOST_METRICS = 300
"""How many metrics user code may make."""
MOST_NOTED = 1000
"""How many events are noted at most before they are added up."""
OTHER = "other"
"""The value of the labels of what is counted together."""


def taken(noted: list[T]) -> list[T]:
    """Remove what was noted until now, and return it; other threads may append more meanwhile, but not take."""
    found = noted[:]
    del noted[: len(found)]
    return found


class Number:
    """A counter, or a gauge, with one set of label values."""

    __slots__ = ("sent", "value")

    def __init__(self) -> None:
        self.value: float = 0.0
        self.sent: float = 0.0

    def add(self, value: float = 1.0) -> None:
        self.value += value

    def taken(self) -> float | None:
        """Return what was added since the last time; None for nothing."""
        value, before = self.value, self.sent
        self.sent = value
        return value - before if value != before else None


class Buckets:
    """A histogram with one set of label values."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sent", "_sent_sum", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sent = [*self._counts]
        self._sum = self._sent_sum = 0.0
        self._exemplars: dict[int, tuple[str, float, str]] = {}

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_all(self, values: Sequence[float], request_of: Callable[[int], tuple[str, str]] | None = None) -> None:
        """Count many values at once, which takes less than half of the time: they are sorted first.

        Parameters:
          request_of: Returns the ID of the request that a value belongs to, by its index, and its ``traceparent``; one
            request of each bucket is kept.
        """
        ordered, begin = sorted(values), 0
        for index, bound in enumerate((*self._bounds, inf)):
            end = bisect_right(ordered, bound, begin)
            if end > begin:
                self._counts[index] += end - begin
                if request_of is not None:
                    value = ordered[end - 1]
                    request_id, traceparent = request_of(values.index(value))
                    if request_id:
                        self._exemplars[index] = request_id, value, traceparent
            if end == len(ordered):
                break
            begin = end
        self._sum += sum(ordered)

    def taken(self) -> Distribution | None:
        """Return what was added since the last time; None for nothing."""
        counts, total = [*self._counts], self._sum
        if counts == self._sent:
            return None
        added = tuple(now - before for now, before in zip(counts, self._sent, strict=True))
        found, self._exemplars = self._exemplars, {}
        now = time.time()
        exemplars = {i: Exemplar(name, value, now, trace_id_in(parent)) for i, (name, value, parent) in found.items()}
        distribution = Distribution(added, total - self._sent_sum, exemplars)
        self._sent, self._sent_sum = counts, total
        return distribution


Series = Number | Buckets


class Recorder:
    """Counts for one process. What is asked for by ``number`` and ``buckets`` may be kept, and counts for ever.

    Parameters:
      labels: The values of labels that all metrics of this process share, by name: of a replica its application,
        deployment and replica.
    """

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self.labels: Final = dict(labels or {})
        self._series: dict[str, tuple[Description, dict[Labels, Series]]] = {}
        self._gauges: dict[str, Family] = {}
        self._changed: set[str] = set()
        self._before: list[Callable[[], object]] = []

    def number(self, about: Description, **labels: str) -> Number:
        """Return the counter with these labels, beside those that this process's metrics share."""
        found = self._find(about, labels)
        assert isinstance(found, Number)
        return found

    def buckets(self, about: Description, **labels: str) -> Buckets:
        """Return the histogram with these labels, beside those that this process's metrics share."""
        found = self._find(about, labels)
        assert isinstance(found, Buckets)
        return found

    def _find(self, about: Description, given: Mapping[str, str]) -> Series:
        values = {**self.labels, **given}
        labels = tuple(values[name][:LONGEST_LABEL] for name in about.labels)
        _, series = self._series.setdefault(about.name, (about, {}))
        found = series.get(labels)
        if found is None:
            labels = limited(about, labels, series, self.labels)
            new: Series = Buckets(about.bounds) if about.kind is Kind.HISTOGRAM else Number()
            found = series.setdefault(labels, new)
        return found

    def set(self, about: Description, value: float, **given: str) -> None:
        """Set a gauge."""
        values = self.labels | given
        labels = tuple(values[name][:LONGEST_LABEL] for name in about.labels)
        gauge = self._gauges.setdefault(about.name, Family(about))
        if gauge.values.get(labels) != value:
            gauge.values[limited(about, labels, gauge.values, self.labels)] = value
            self._changed.add(about.name)

    def replace(self, about: Description, values: Mapping[Labels, float]) -> None:
        """Set all values of a gauge; label values that are not among them are gone."""
        gauge = self._gauges.get(about.name)
        if values or gauge is not None:
            found = dict(list(values.items())[:MOST_SETS])
            if gauge is None or gauge.values != found:
                self._gauges[about.name] = Family(about, {**found})
                self._changed.add(about.name)

    def before_each(self, callback: Callable[[], object]) -> None:
        """Have something called before each ``take``, which sets gauges."""
        self._before.append(callback)

    def take(self) -> Snapshot:
        """Return what was added since the last time, and all values of the gauges that have changed."""
        for callback in self._before:
            callback()
        found: Snapshot = {}
        with lock:
            for name, (about, series) in [*self._series.items()]:
                added = {labels: one.taken() for labels, one in [*series.items()]}
                values: dict[Labels, float | Distribution] = {
                    labels: value for labels, value in added.items() if value is not None
                }
                if values:
                    found[name] = Family(about, values)
            changed, self._changed = self._changed, set()
            for name in changed:
                gauge = self._gauges[name]
                found[name] = Family(gauge.about, dict(gauge.values))
        return found


_full: set[str] = set()


def limited(about: Description, labels: Labels, known: Mapping[Labels, object], shared: Mapping[str, str]) -> Labels:
    """Return labels that may be added to those that are known: the same, or those of what is counted together.

    Parameters:
      shared: The labels that keep their value.
    """
    if labels in known or len(known) < MOST_SETS or labels == ():
        return labels
    if about.name not in _full:
        _full.add(about.name)
        text = "the metric %s has more than %d sets of label values: further ones are counted together as %r"
        log.warning(text, about.name, MOST_SETS, OTHER)
    return tuple(value if name in shared else OTHER for name, value in zip(about.labels, labels, strict=True))


lock: threading.Lock = threading.Lock()
"""Held while user code counts, which may have threads; qserve itself counts in one."""
here: Recorder | None = None
"""What this process counts with; None where nothing is counted."""


def install(recorder: Recorder | None) -> None:
    """Count with ``recorder`` in this process from now on."""
    global here
    here = recorder


def _leave_to_parent() -> None:
    """In a forked child: nobody takes what is counted there, and a thread of the parent may have held the lock."""
    global lock
    lock = threading.Lock()
    install(None)


os.register_at_fork(after_in_child=_leave_to_parent)
