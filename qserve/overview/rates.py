"""Rates and latencies over the last seconds, from the totals that workers publish in the broker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from qserve.metrics.exposition import quantile
from qserve.metrics.table import TABLE
from qserve.wire.totals import Distribution, Labels, Published, Snapshot

WINDOW_S = 5.0
"""Rates and latencies are those of at least so many seconds."""
_SILENT_S = 4.0
"""A worker publishes every two seconds what changes: one that was silent for longer has counted nothing since."""
_TIMES, _WAITS, _COMMITS = "serve_deployment_processing_latency_ms", "queue_wait_ms", "broker_commit_latency_ms"
_ERRORS = "serve_deployment_error_counter"

Place = tuple[str, str]
"""An application and a deployment."""


class Rate(NamedTuple):
    """What a deployment has done over the last seconds; the parameters are those of ``picture.Deployment``."""

    per_s: float | None = None
    errors_per_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    wait_p50_ms: float | None = None


class _Look(NamedTuple):
    at_ms: float
    snapshot: Snapshot


class Rates:
    """Compares what workers have published with what they had published some seconds before.

    Each worker is compared by the times at which it has published, so a rate does not depend on when it was read.
    """

    def __init__(self) -> None:
        self._looks: dict[str, list[_Look]] = {}
        self._found: dict[Place, Rate] = {}
        self._commits: tuple[float | None, float | None] = None, None
        self.is_known: bool = False

    def take(self, published: Mapping[str, Published], stale_s: float, now_ms: float) -> None:
        """Take in what each worker has published last.

        Parameters:
          published: By worker.
          stale_s: For how long what a worker has published holds.
          now_ms: By the broker's clock.
        """
        for worker in self._looks.keys() - published.keys():
            del self._looks[worker]
        for worker, said in published.items():
            looks = self._looks.setdefault(worker, [])
            at_ms = said.until_ms - 1000 * stale_s
            if not looks or at_ms > looks[-1].at_ms:
                looks.append(_Look(at_ms, said.snapshot))
            end_ms = _end_ms(looks[-1].at_ms, now_ms)
            while len(looks) > 2 and looks[1].at_ms <= end_ms - 1000 * WINDOW_S:
                del looks[0]
        self._compute(now_ms)

    def of(self, app: str, deployment: str) -> Rate:
        """Return the rates of a deployment; zeros if none of its calls has ended, None before they are known."""
        return self._found.get((app, deployment), Rate(0.0, 0.0) if self.is_known else Rate())

    @property
    def commits_ms(self) -> tuple[float | None, float | None]:
        """The median and the 99th percentile of how long replicas waited for commits."""
        return self._commits

    def _compute(self, now_ms: float) -> None:
        sums: dict[str, dict[Place, Distribution]] = {name: {} for name in (_TIMES, _WAITS, _COMMITS)}
        rates: defaultdict[Place, float] = defaultdict(float)
        errors: defaultdict[Place, float] = defaultdict(float)
        self.is_known = False
        for looks in self._looks.values():
            if len(looks) < 2:
                continue
            self.is_known = True
            first, last = looks[0], looks[-1]
            seconds = max(0.001, (_end_ms(last.at_ms, now_ms) - first.at_ms) / 1000)
            for name, found in sums.items():
                for place, added in _added(name, first.snapshot, last.snapshot):
                    found[place] = found[place].plus(added) if place in found else added
                    if name == _TIMES:
                        rates[place] += sum(added.counts) / seconds
            for place, count in _added_numbers(_ERRORS, first.snapshot, last.snapshot):
                errors[place] += count / seconds
        self._found = {
            place: Rate(
                rates[place],
                errors[place],
                _quantile(sums[_TIMES].get(place), _TIMES, 0.5),
                _quantile(sums[_TIMES].get(place), _TIMES, 0.99),
                _quantile(sums[_WAITS].get(place), _WAITS, 0.5),
            )
            for place in {*rates, *errors}
        }
        commits: Distribution | None = None
        for one in sums[_COMMITS].values():
            commits = one if commits is None else commits.plus(one)
        self._commits = _quantile(commits, _COMMITS, 0.5), _quantile(commits, _COMMITS, 0.99)


def _end_ms(at_ms: float, now_ms: float) -> float:
    """Return up to when a worker has told all that it has counted."""
    return now_ms if now_ms - at_ms > 1000 * _SILENT_S else at_ms


def _added(name: str, first: Snapshot, last: Snapshot) -> Iterator[tuple[Place, Distribution]]:
    before = first[name].values if name in first else {}
    for labels, value in last[name].values.items() if name in last else ():
        if isinstance(value, Distribution):
            yield _place(labels), _less(value, before.get(labels))


def _less(value: Distribution, before: object) -> Distribution:
    """Return what was observed since; all of it if the worker was started again and counts from 0."""
    if not isinstance(before, Distribution) or len(before.counts) != len(value.counts):
        return Distribution(value.counts, value.sum)
    counts = tuple(now - then for now, then in zip(value.counts, before.counts, strict=True))
    if min(counts, default=0) < 0:
        return Distribution(value.counts, value.sum)
    return Distribution(counts, value.sum - before.sum)


def _added_numbers(name: str, first: Snapshot, last: Snapshot) -> Iterator[tuple[Place, float]]:
    before = first[name].values if name in first else {}
    for labels, value in last[name].values.items() if name in last else ():
        then = before.get(labels, 0.0)
        if not isinstance(value, Distribution) and not isinstance(then, Distribution):
            yield _place(labels), value - then if value >= then else value


def _place(labels: Labels) -> Place:
    return labels[0], labels[1]


def _quantile(distribution: Distribution | None, name: str, share: float) -> float | None:
    return None if distribution is None else quantile(distribution, TABLE[name].bounds, share)
