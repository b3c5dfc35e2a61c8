"""The number of replicas follows the load as Ray Serve's options say: tables, invented days, and what always holds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qserve.fleet.decide import decide, desired, remember
from qserve.fleet.values import Decision, Load
from qserve.wire.application import Scaling

ROUND_S = 0.25
FREE = Scaling(min_replicas=1, max_replicas=100)
QUICK = Scaling(min_replicas=1, max_replicas=20, look_back_period_s=10, upscale_delay_s=0, downscale_delay_s=20)
TO_ZERO = replace(QUICK, min_replicas=0, downscale_to_zero_delay_s=60)

Trace = Callable[[float, int], int | Load]
"""The ongoing calls at a time, with so many replicas."""


def play(trace: Trace, scaling: Scaling, seconds: float, start: int = 1) -> list[tuple[float, int]]:
    """Let time pass; return each change of the number of replicas, with its time."""
    history: list[Load] = []
    changes: list[tuple[float, int]] = []
    decision: Decision | None = None
    count = start
    for turn in range(int(seconds / ROUND_S)):
        now = 1000 + turn * ROUND_S
        found = trace(now - 1000, count)
        remember(history, replace(found, at=now) if isinstance(found, Load) else Load(now, 0, found), scaling)
        decision = decide(history, count, scaling, decision, now)
        if decision.count != count:
            changes.append((now - 1000, decision.count))
        count = decision.count
    return changes


def steady(total: int, scaling: Scaling, start: int = 1) -> list[tuple[float, int]]:
    return play(lambda at, count: total, scaling, 700, start)


@pytest.mark.parametrize(
    ("total", "current", "changed", "count"),
    [
        (0, 3, {}, 1),
        (6, 3, {}, 3),
        (12, 3, {}, 6),
        (7, 3, {}, 4),
        (5, 3, {}, 3),
        (4, 3, {}, 2),
        (9, 1, {"target_ongoing_requests": 0.9}, 10),
        (300, 3, {"max_replicas": 8}, 8),
        (0, 3, {"min_replicas": 2}, 2),
        # a factor makes the way to the number that the load asks for longer or shorter
        (40, 4, {"upscaling_factor": 0.5}, 12),
        (40, 4, {"upscaling_factor": 2.0}, 36),
        (10, 4, {"upscaling_factor": 0.01}, 5),
        (8, 20, {"downscaling_factor": 0.5}, 12),
        (8, 20, {"downscaling_factor": 2.0}, 1),
        (18, 10, {"downscaling_factor": 0.05}, 9),
        (19, 10, {"downscaling_factor": 0.05}, 10),
        (10, 4, {"target_ongoing_requests": 5e-324, "upscaling_factor": 1e308}, 100),
        (0, 4, {"downscaling_factor": 1e308}, 1),
        # without a replica there is nothing to multiply
        (0, 0, {"min_replicas": 0}, 0),
        (1, 0, {"min_replicas": 0}, 1),
        (50, 0, {"min_replicas": 0}, 1),
        (50, 0, {"min_replicas": 0, "upscaling_factor": 2.5}, 3),
        (50, 0, {"min_replicas": 0, "upscaling_factor": 0.1}, 1),
        (50, 0, {"min_replicas": 0, "upscaling_factor": 9.0, "max_replicas": 4}, 4),
    ],
)
def test_the_load_asks_for_so_many_replicas(total: float, current: int, changed: dict[str, Any], count: int) -> None:
    assert desired(total, current, replace(FREE, **changed)) == count


def test_defaults_wait_half_a_minute_for_more_and_ten_for_fewer() -> None:
    assert steady(12, FREE) == [(30, 6)]
    assert steady(12, FREE, start=9) == [(600, 6)]


def test_a_short_peak_is_no_reason_for_more() -> None:
    assert play(lambda at, count: 40 if 100 <= at < 115 else 2, FREE, 300) == []


def test_a_burst_brings_all_replicas_within_two_seconds_if_no_delay_forbids_it() -> None:
    changes = play(lambda at, count: 40 if at >= 5 else 2, QUICK, 30)

    assert changes[-1][1] == 20
    assert changes[-1][0] <= 7
    assert all(at >= 5 for at, _ in changes)


def test_after_a_burst_all_go_at_once_when_the_delay_is_over() -> None:
    changes = play(lambda at, count: 40 if at < 10 else 2, QUICK, 120)

    ups, downs = [at for at, count in changes if count > 1], [at for at, count in changes if count == 1]
    assert max(ups) < 2
    assert [at > 10 + QUICK.downscale_delay_s for at in downs] == [True]


def test_a_day_of_traffic_is_followed_up_once_and_down_once() -> None:
    def day(at: float, count: int) -> int:  # a day in an hour
        return round(20 - 20 * math.cos(2 * math.pi * at / 3600))

    counts = [count for _, count in play(day, replace(QUICK, downscale_delay_s=60), 3600)]

    top = counts.index(max(counts))
    assert max(counts) == 20
    assert counts[: top + 1] == sorted(counts[: top + 1])
    assert counts[top:] == sorted(counts[top:], reverse=True)


def test_a_stuck_step_gets_all_replicas_and_keeps_them() -> None:
    changes = play(lambda at, count: Load(0, int(at * 5), count, oldest_s=at), QUICK, 600)

    counts = [count for _, count in changes]
    assert counts == sorted(counts)
    assert counts[-1] == 20


def test_no_replica_goes_while_a_call_has_waited_for_long() -> None:
    late = play(lambda at, count: Load(0, 1, 1, oldest_s=5 if at < 300 else 0), QUICK, 400, start=4)

    assert late == [(300, 1)]


def test_the_first_call_wakes_a_deployment_at_once_and_the_last_replica_has_a_delay_of_its_own() -> None:
    patient = replace(TO_ZERO, upscale_delay_s=30)

    changes = play(lambda at, count: Load(0, 1, 0) if 50 <= at < 52 else 0, patient, 200, start=0)

    assert [count for _, count in changes] == [1, 0]
    assert changes[0][0] == 50
    assert 52 + 60 <= changes[1][0] <= 52 + 60 + patient.look_back_period_s + 1


def test_several_replicas_do_not_go_to_zero_in_one_step() -> None:
    changes = play(lambda at, count: 0, TO_ZERO, 200, start=5)

    assert [count for _, count in changes] == [1, 0]
    assert changes[1][0] - changes[0][0] >= 60


@pytest.mark.parametrize("load", [Load(0.0, 1, 0), Load(0.0, 0, 1)])
def test_the_last_replica_stays_while_there_is_a_call(load: Load) -> None:
    scaling = replace(TO_ZERO, aggregation_function="min", downscale_to_zero_delay_s=0)
    history = [Load(-50.0, 0, 0), Load(-0.5, 0, 0), load]

    assert decide(history, 1, scaling, None, 0.0).count == 1
    assert decide(history[:2], 1, scaling, None, 0.0).count == 0


def test_the_delay_for_fewer_counts_for_the_last_one_unless_it_has_its_own() -> None:
    assert [count for _, count in play(lambda at, c: 0, replace(TO_ZERO, downscale_to_zero_delay_s=None), 22)] == [0]


def test_noise_around_the_target_changes_nothing() -> None:
    noise = random.Random(7)

    assert play(lambda at, count: noise.choice((5, 6, 7, 8)), replace(FREE, upscale_delay_s=5), 900, start=4) == []


@pytest.mark.parametrize(("function", "count"), [("mean", 6), ("max", 10), ("min", 1)])
def test_the_loads_of_the_window_are_aggregated_as_the_option_says(function: str, count: int) -> None:
    scaling = replace(FREE, upscale_delay_s=4, aggregation_function=function)

    found = play(lambda at, _: 20 if int(at / ROUND_S) % 2 else 2, scaling, 5)

    assert [number for _, number in found] == ([] if count == 1 else [count])


def test_new_limits_count_at_once() -> None:
    assert steady(0, replace(FREE, min_replicas=3), start=1) == [(0, 3)]
    assert steady(8, replace(FREE, max_replicas=4), start=9) == [(0, 4)]


def test_who_decides_first_takes_no_replica_before_a_whole_look_back_is_known() -> None:
    before = Decision(4, "40 calls", below_since=-900.0)  # by the one that led before
    history: list[Load] = []

    for at in range(40):
        remember(history, Load(at, 0, 0), FREE)
        before = decide(history, 4, FREE, before, at)
        if before.count != 4:
            break

    assert (at, before.count) == (30, 1)


def test_without_a_reading_everything_stays_as_it_is() -> None:
    before = Decision(4, "40 calls", above_since=1.0)

    assert decide([], 4, FREE, before, 99.0) == Decision(4, "40 calls")
    assert decide([Load(1.0, 90, 0)], 4, FREE, before, 99.0) == Decision(4, "40 calls")


def test_loads_from_before_an_outage_are_forgotten() -> None:
    history = [Load(0.0, 0, 0), Load(1.0, 0, 0)]

    remember(history, Load(90.0, 5, 0), FREE)

    assert history == [Load(90.0, 5, 0)]


@pytest.mark.parametrize("look_back_s", [1.0, 30.0, 86400.0])
def test_as_much_is_remembered_as_decisions_need_and_no_more(look_back_s: float) -> None:
    scaling, history = replace(FREE, look_back_period_s=look_back_s), list[Load]()

    for turn in range(int(3 * min(look_back_s, 3000) / ROUND_S)):
        remember(history, Load(turn * ROUND_S, turn, 0), scaling)

    assert len(history) < 700
    assert history[-1].waiting == turn
    assert history[-1].at - history[0].at >= min(look_back_s, 8000)


def test_a_reason_says_what_was_counted_and_stays_until_the_next_change() -> None:
    up = decide([Load(0.0, 40, 4)], 2, replace(FREE, upscale_delay_s=0), None, 0.0)
    woken = decide([Load(0.0, 1, 0)], 0, TO_ZERO, None, 0.0)

    assert (up.count, up.reason) == (22, "44 calls ongoing at 2 replicas, target 2 each")
    assert woken.reason == "1 call for a deployment without replicas"
    assert decide([Load(1.0, 0, 44)], 22, FREE, up, 1.0).reason == up.reason


@pytest.mark.parametrize(
    ("asked", "current", "count"), [(7, 2, 7), (2.4, 2, 3), (99, 2, 20), (-4, 2, 1), (2, 2, 2), (3, 0, 3)]
)
def test_a_policy_of_ones_own_replaces_the_load_and_nothing_else(asked: float, current: int, count: int) -> None:
    at_once = replace(TO_ZERO, downscale_delay_s=0)

    decision = decide([Load(0.0, 0, 0)], current, at_once, None, 0.0, asked)

    assert decision.count == count
    assert decide([Load(0.0, 0, 0)], 2, FREE, None, 0.0, 7) == Decision(2, above_since=0.0)


scalings = st.builds(
    lambda least, more, **given: Scaling(min_replicas=least, max_replicas=max(1, least + more), **given),
    st.integers(0, 4),
    st.integers(0, 20),
    target_ongoing_requests=st.floats(0.1, 10),
    look_back_period_s=st.floats(0.1, 10),
    upscale_delay_s=st.floats(0, 8),
    downscale_delay_s=st.floats(0, 8),
    downscale_to_zero_delay_s=st.none() | st.floats(0, 8),
    upscaling_factor=st.floats(0.01, 4),
    downscaling_factor=st.floats(0.01, 4),
    aggregation_function=st.sampled_from(["mean", "max", "min"]),
)
traces = st.lists(st.integers(0, 60) | st.just(0), min_size=1, max_size=120)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(scalings, traces, st.integers(0, 25))
def test_it_stays_within_its_limits_and_turns_no_sooner_than_the_delay_allows(
    scaling: Scaling, totals: list[int], start: int
) -> None:
    changes = play(lambda at, count: totals[int(at / ROUND_S)], scaling, len(totals) * ROUND_S, start)

    assert all(scaling.min_replicas <= count <= scaling.max_replicas for _, count in changes)
    for (before_s, before), (at, count) in pairwise(changes):
        to_zero_s = scaling.downscale_to_zero_delay_s
        down_s = scaling.downscale_delay_s if count or to_zero_s is None else to_zero_s
        assert before == 0 or at - before_s >= (scaling.upscale_delay_s if count > before else down_s)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    scalings,
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(0, 25),
    st.none() | st.floats(-10, 14),
    st.none() | st.floats(-10, 14),
)
def test_more_load_never_asks_for_fewer(
    scaling: Scaling, totals: list[tuple[int, int]], current: int, above: float | None, below: float | None
) -> None:
    before, now = Decision(current, "", above, below), (len(totals) - 1) * ROUND_S
    little = [Load(turn * ROUND_S, 0, some) for turn, (some, _) in enumerate(totals)]
    much = [Load(turn * ROUND_S, 0, some + more) for turn, (some, more) in enumerate(totals)]

    assert decide(little, current, scaling, before, now).count <= decide(much, current, scaling, before, now).count
    assert desired(little[0].running, current, scaling) <= desired(much[0].running, current, scaling)
