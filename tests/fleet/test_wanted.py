"""How many replicas are wanted: by the options, by an operator, by the load, by a deploy, and what is pinned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qserve.fleet.values import Key
from qserve.fleet.wanted import needs_of, pins_of, started_count
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Scaling
from qserve.wire.fleet import HostRecord, Rollout, Scaled, Wish

KEY = Key("shop", "v", "A")


def record(place: str = "active", version: str = "v", **options: Any) -> ApplicationRecord:
    deployments = {"A": DeploymentRecord("A", **options), "Driver": DeploymentRecord("Driver", replicated=False)}
    return ApplicationRecord("shop", version, "A", place=place, deployments=deployments)


def wanted(one: ApplicationRecord, **stored: Any) -> tuple[int, int]:
    """How many replicas of A are to be placed, and how many of these even where no place is free."""
    found = {"rollouts": {}, "scaled": {}, "wishes": {}, "pins": {}, **stored}
    (need,) = needs_of([one], **found)
    assert need.key == Key("shop", one.version, "A")
    return need.count, need.least


@pytest.mark.parametrize(
    ("wish", "count"),
    [
        (None, 3),
        (Wish(count=5, configured=3), 5),
        (Wish(count=0, configured=3), 0),
        (Wish(count=5, configured=2), 3),  # somebody has deployed another number since
        (Wish(is_paused=True), 3),
    ],
)
def test_a_wish_holds_until_another_number_is_deployed(wish: Wish | None, count: int) -> None:
    wishes = {} if wish is None else {"shop": {"A": wish}}

    assert wanted(record(num_replicas=3), wishes=wishes) == (count, count)


@pytest.mark.parametrize(
    ("num_replicas", "percent", "count"),
    [(5, None, 5), (5, 100.0, 5), (5, 50.0, 3), (5, 49.0, 2), (5, 1.0, 1), (5, 0.0, 0), (200, 0.1, 1)],
)
def test_a_part_of_the_capacity_is_rounded_as_ray_serve_does(
    num_replicas: int, percent: float | None, count: int
) -> None:
    part = replace(record(num_replicas=num_replicas), capacity=percent)

    assert wanted(part) == (count, count)
    assert wanted(part, wishes={"shop": {"A": Wish(count=7, configured=num_replicas)}}) == (7, 7)
    assert started_count(part, "A", None, is_kept=False) == count


@pytest.mark.parametrize(
    ("least", "percent", "is_kept", "count"),
    [(0, None, False, 1), (0, None, True, 0), (3, None, False, 3), (4, 50.0, True, 2), (4, 0.0, False, 0)],
)
def test_a_deploy_waits_for_as_many_replicas_as_run_in_any_case(
    least: int, percent: float | None, is_kept: bool, count: int
) -> None:
    one = replace(record(scaling=Scaling(least, 9, initial_replicas=9)), capacity=percent)

    assert started_count(one, "A", None, is_kept) == count


@pytest.mark.parametrize(
    ("scaling", "place", "decided", "expected"),
    [
        (Scaling(1, 9), "active", None, (1, 1)),
        (Scaling(0, 9), "active", None, (1, 0)),
        (Scaling(0, 9, initial_replicas=4), "next", None, (4, 1)),
        (Scaling(0, 9), "active", 0, (0, 0)),
        (Scaling(0, 9), "next", 0, (1, 1)),
        (Scaling(2, 9), "active", 1, (2, 2)),
        (Scaling(2, 9), "active", 7, (7, 2)),
        (Scaling(2, 9), "next", 12, (9, 2)),
    ],
)
def test_the_load_decides_within_the_limits_and_a_new_version_starts_one(
    scaling: Scaling, place: str, decided: int | None, expected: tuple[int, int]
) -> None:
    scaled = {} if decided is None else {"shop": {"A": Scaled(decided)}}

    assert wanted(record(place, scaling=scaling), scaled=scaled) == expected


def test_a_deploy_leaves_room_for_both_versions_while_it_is_under_way() -> None:
    under_way = {"shop": Rollout("w", "v", new={"A": 1}, keep={"A": 2})}
    done = {"shop": Rollout("w", "v", state="done", new={"A": 1}, keep={"A": 2})}

    assert wanted(record(num_replicas=3), rollouts=under_way) == (2, 2)
    assert wanted(record("next", "w", num_replicas=3), rollouts=under_way) == (1, 1)
    assert wanted(record("active", "w", num_replicas=3), rollouts=done) == (3, 3)


def test_replicas_that_are_pinned_are_not_placed_as_well_and_may_be_more_than_wanted() -> None:
    hosts = [HostRecord(name, name, pins={KEY.text: 2, "other:v:A": 9}) for name in "ab"]
    pins = pins_of(hosts, [record()])

    assert pins[KEY] == 4
    assert wanted(record(num_replicas=5), pins=pins) == (1, 1)
    assert wanted(record(num_replicas=3), pins=pins) == (0, 0)
