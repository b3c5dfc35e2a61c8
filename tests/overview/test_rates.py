"""Rates are the difference of what a worker has published at two times, whenever that was read."""

from __future__ import annotations

from qserve.metrics.table import TABLE
from qserve.overview.rates import Rate, Rates
from qserve.wire.totals import Distribution, Family, Published, Snapshot

STALE_S = 30.0
TIMES, ERRORS = "serve_deployment_processing_latency_ms", "serve_deployment_error_counter"


def counted(calls: int, errors: int = 0, bucket: int = 4) -> Snapshot:
    """So many calls of shop's Model, each of which has taken from 10 to 20 ms."""
    counts = [0] * (len(TABLE[TIMES].bounds) + 1)
    counts[bucket] = calls
    return {
        TIMES: Family(TABLE[TIMES], {("shop", "Model", "/"): Distribution(tuple(counts), 15.0 * calls)}),
        ERRORS: Family(TABLE[ERRORS], {("shop", "Model", "/", "ValueError"): float(errors)}),
    }


def at(seconds: float, snapshot: Snapshot) -> Published:
    return Published(1000 * (seconds + STALE_S), False, snapshot)


def take(rates: Rates, seconds: float, **published: Published) -> Rate:
    rates.take(published, STALE_S, 1000 * seconds)
    return rates.of("shop", "Model")


def test_nothing_is_known_before_a_worker_has_published_twice() -> None:
    rates = Rates()

    assert take(rates, 0.5, a=at(0, counted(100))) == Rate()
    assert take(rates, 1.5, a=at(0, counted(100))) == Rate()
    assert take(rates, 2.5, a=at(2, counted(120))).per_s == 10.0


def test_rate_errors_and_latencies_are_those_of_the_last_seconds() -> None:
    rates = Rates()
    take(rates, 0, a=at(0, counted(1000, errors=500)))
    found = take(rates, 2, a=at(2, counted(1100, errors=510)))

    assert (found.per_s, found.errors_per_s) == (50.0, 5.0)
    assert (found.p50_ms, found.wait_p50_ms) == (15.0, None)
    assert found.p99_ms is not None and 19 < found.p99_ms <= 20


def test_workers_are_added_up_each_by_its_own_times() -> None:
    rates = Rates()
    take(rates, 3, a=at(0, counted(0)), b=at(1, counted(0)))

    assert take(rates, 3, a=at(2, counted(20)), b=at(3, counted(40))).per_s == 10 + 20


def test_a_worker_that_is_silent_has_counted_nothing_since() -> None:
    rates = Rates()
    take(rates, 0, a=at(0, counted(0)))
    take(rates, 2, a=at(2, counted(100)))

    assert take(rates, 10, a=at(2, counted(100))).per_s == 10.0
    assert take(rates, 20, a=at(12, counted(100))).per_s == 0.0
    assert rates.of("shop", "Other") == Rate(0.0, 0.0)


def test_a_worker_that_was_started_again_counts_from_zero() -> None:
    rates = Rates()
    take(rates, 0, a=at(0, counted(1000, errors=7)))
    found = take(rates, 2, a=at(2, counted(10, errors=4)))

    assert (found.per_s, found.errors_per_s) == (5.0, 2.0)


def test_a_worker_that_is_gone_is_forgotten() -> None:
    rates = Rates()
    take(rates, 0, a=at(0, counted(0)))
    take(rates, 2, a=at(2, counted(100)))

    assert take(rates, 3) == Rate()


def test_commits_are_those_of_all_deployments() -> None:
    rates, commits = Rates(), TABLE["broker_commit_latency_ms"]

    def committed(count: int) -> Snapshot:
        counts = (0, 0, count, *[0] * (len(commits.bounds) - 2))
        values = {("shop", name): Distribution(counts, 0.0) for name in ("Model", "Other")}
        return {commits.name: Family(commits, {**values})}

    take(rates, 0, a=at(0, committed(0)))
    take(rates, 2, a=at(2, committed(10)))

    assert rates.commits_ms[0] == 0.35
