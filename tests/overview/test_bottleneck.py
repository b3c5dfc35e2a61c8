"""What holds an application up is the deployment that makes calls wait longest, and the reason is said."""

from __future__ import annotations

from typing import Any

import pytest

from qserve.overview.bottleneck import HELD_S, bottleneck_of
from qserve.overview.picture import Deployment


def deployment(name: str = "Model", **fields: Any) -> Deployment:
    return Deployment(name, "HEALTHY", **{"replicas": {"RUNNING": 2}, "wanted": 2, "max_ongoing": 4, **fields})


def held(**fields: Any) -> Deployment:
    return deployment(**{"waiting": 9, "oldest_s": 3.0, **fields})


def why(one: Deployment) -> str:
    found = bottleneck_of([one])
    assert found is not None
    return found.why


def test_nothing_holds_up_what_does_not_make_calls_wait() -> None:
    busy = deployment(running=8, utilisation=1.0, waiting=2, oldest_s=HELD_S / 2, wait_p50_ms=10.0)

    assert bottleneck_of([deployment("Idle"), busy]) is None
    assert bottleneck_of([]) is None


def test_the_deployment_whose_oldest_call_has_waited_longest_is_named() -> None:
    found = bottleneck_of([held(name="A", oldest_s=1.0), held(name="B", oldest_s=2.0, waiting=1), deployment("C")])

    assert found is not None
    assert (found.deployment, found.delay_s) == ("B", 2.0)


def test_calls_that_wait_inside_a_replica_count_as_well() -> None:
    found = bottleneck_of([held(name="A", oldest_s=1.0), deployment("B", running=8, wait_p50_ms=2500.0)])

    assert found is not None
    assert (found.deployment, found.delay_s) == ("B", 2.5)


def test_what_has_been_slow_and_is_idle_now_holds_nothing_up() -> None:
    assert bottleneck_of([deployment(wait_p50_ms=2500.0)]) is None


def test_of_two_that_are_equally_slow_the_fuller_one_is_named() -> None:
    found = bottleneck_of([held(name="A", utilisation=0.2), held(name="B", utilisation=1.0), held(name="C")])

    assert found is not None
    assert found.deployment == "B"


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (held(paused_by="ann on host"), "it is paused by ann on host"),
        (held(replicas={}, message="3 failed"), "no replica of it runs: 3 failed"),
        (held(utilisation=1.0), "all 8 places of its 2 replicas are taken"),
        (held(utilisation=1.0, wanted=3), "all 8 places of its 2 replicas are taken, and 2 of 3 replicas run"),
        (held(replicas={"RUNNING": 1}, utilisation=0.5), "only 1 of 2 replicas run"),
        (held(replicas={"RUNNING": 1}, wanted=1), "calls come in faster than its 1 replica can begin them"),
    ],
)
def test_the_reason_is_said(one: Deployment, reason: str) -> None:
    assert why(one) == reason
