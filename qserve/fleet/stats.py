"""What the replicas of a deployment report for its scaling policy, remembered over the look-back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, NamedTuple

from qserve.fleet.decide import AGGREGATES
from qserve.wire.application import Scaling
from qserve.wire.replies import each
from qserve.wire.status import RUNNING, ReplicaStatus, decode_stats

_READ_S = 1.0
_KEPT = 15
"""About this many values of each replica are kept, however long the look-back is."""
_RAW_LIMIT = 2000
"""A policy is told so many values at most, beside their aggregates."""


class _Value(NamedTuple):
    at: float
    timestamp: float
    stats: Mapping[str, float]


class Stats:
    """The numbers of a deployment's replicas that run, the oldest first."""

    def __init__(self) -> None:
        self._next_at = -inf
        self._values: dict[str, list[_Value]] = {}

    def is_due(self, now: float) -> bool:
        """Return whether reports are to be read again."""
        return now >= self._next_at

    def add(self, replicas: Iterable[ReplicaStatus], scaling: Scaling, now: float, timestamp: float) -> None:
        """Take in the reports of a deployment's replicas; what those said that have ended is forgotten."""
        self._next_at = now + _READ_S
        running = [(one.name, one.stats) for one in replicas if one.state == RUNNING]
        read = dict(each(running, lambda item: (item[0], decode_stats(item[1]))))
        self._values = {name: self._values.get(name, []) for name in sorted(read)}
        for name, values in self._values.items():
            values[:] = [value for value in values if value.at >= now - scaling.look_back_period_s]
            if len(values) > 1 and now - values[-2].at < scaling.look_back_period_s / _KEPT:
                values.pop()
            values.append(_Value(now, timestamp, read[name]))

    def told(self, scaling: Scaling) -> dict[str, Any]:
        """Return what a policy is told of them, in Ray Serve's words."""
        raw: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for name, values in self._values.items():
            for value in values:
                for metric, number in value.stats.items():
                    raw.setdefault(metric, {}).setdefault(name, []).append((value.timestamp, number))
        aggregate = AGGREGATES[scaling.aggregation_function]
        count = sum(len(values) for of in raw.values() for values in of.values())
        return {
            "running_replicas": [*self._values],
            "aggregated_metrics": {
                metric: {name: aggregate([number for _, number in values]) for name, values in of.items()}
                for metric, of in raw.items()
            },
            "raw_metrics": raw if count <= _RAW_LIMIT else {},
        }
