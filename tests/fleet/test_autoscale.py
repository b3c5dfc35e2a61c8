"""The number of replicas follows the calls in a real broker, by a clock of the test, whichever worker leads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from desk import Desk
from qserve_workers.process.heartbeat import Observer

from qserve.base.settings import Settings
from qserve.broker.connection import create_group
from qserve.engine.policy import AutoscalingContext
from qserve.exceptions import BrokerError, BrokerUnavailable
from qserve.fleet.autoscale import AUTOSCALING, Autoscaler
from qserve.fleet.lead import Leadership
from qserve.fleet.leader import GONE_S, Leader, Registered
from qserve.fleet.store import Fleet, FleetStore
from qserve.fleet.values import Asked
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Scaling
from qserve.wire.fleet import HostRecord, Scaled, Wish
from qserve.wire.sealing import Seal
from qserve.wire.status import RUNNING, STARTING, ReplicaStatus

QUICK = Scaling(max_replicas=20, look_back_period_s=5, upscale_delay_s=0, downscale_delay_s=20)
SLOW = Scaling(max_replicas=20)
HOST = HostRecord("a-1", "a", 30, has=("shop:v", "shop:w"))


def record(scaling: Scaling | None = QUICK, version: str = "v", place: str = "active") -> ApplicationRecord:
    return ApplicationRecord(
        "shop", version, "A", place=place, deployments={"A": DeploymentRecord("A", scaling=scaling)}
    )


class Shop:
    """The application's queues, and what a leader has noted and decides next."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.now = desk, 100.0
        self.fleet = Fleet({"a-1": HOST}, {}, {}, {}, {"shop": {}}, {"shop": {}}, {})
        self.answers: list[Asked | None] = []
        self.reported: list[ReplicaStatus] = []
        self.lead_anew()

    def policy(self, record: ApplicationRecord, deployment: str, told: Mapping[str, Any]) -> Asked | None:
        """Answer for a policy of the user's."""
        self.told = dict(told)
        return self.answers.pop(0) if self.answers else None

    def lead_anew(self) -> None:
        """Have another worker lead."""
        self.autoscaler = Autoscaler(
            self.desk.client, self.desk.keys, lambda: self.now, self.policy, lambda app: self.reported
        )

    def calls(self, number: int, version: str = "v") -> None:
        queue = self.desk.keys.stream("shop", version, "A")
        self.desk.client.delete(queue)
        create_group(self.desk.client, queue)
        for _ in range(number):
            self.desk.client.xadd(queue, {b"h": b"x"})

    def note(self, **changes: Any) -> None:
        self.fleet.scaled["shop"]["A"] = replace(self.noted, **changes)

    @property
    def noted(self) -> Scaled:
        return self.fleet.scaled["shop"].get("A", Scaled(1, 1))

    def live(self, seconds: float, *records: ApplicationRecord) -> list[int]:
        """Let time pass; return the counts that were noted on the way."""
        counts = [self.noted.count]
        for _ in range(int(seconds * 4)):
            self.now += 0.25
            for (app, name), scaled in self.autoscaler(records or (record(),), self.fleet).items():
                self.fleet.scaled[app][name] = scaled
            counts += [self.noted.count] if self.noted.count != counts[-1] else []
        return counts[1:]

    def broker_ms(self) -> float:
        return float(self.desk.client.time()[0]) * 1000


@pytest.fixture
def shop(desk: Desk) -> Shop:
    return Shop(desk)


def test_a_burst_and_its_end_are_followed_and_the_reason_is_noted(shop: Shop) -> None:
    shop.calls(33)

    assert shop.live(2)[-1] == 17
    assert shop.noted.reason == "33 calls ongoing at 1 replica, target 2 each"
    assert shop.noted.trigger == AUTOSCALING
    assert abs(shop.noted.at_ms - shop.broker_ms()) < 60_000

    shop.calls(0)
    assert shop.live(30) == [1]


def test_the_first_call_starts_a_replica_in_the_same_round(shop: Shop) -> None:
    none = record(replace(SLOW, min_replicas=0))
    shop.note(count=0)
    assert shop.live(5, none) == []

    shop.calls(1)

    assert shop.live(0.25, none) == [1]


def test_the_load_is_that_of_both_versions_while_one_replaces_the_other(shop: Shop) -> None:
    shop.calls(10)
    shop.calls(6, "w")

    assert shop.live(2, record(), record(version="w", place="next"))[-1] == 8


def test_the_options_of_the_active_version_count(shop: Shop) -> None:
    shop.calls(40)

    assert shop.live(2, record(), record(replace(QUICK, max_replicas=3), "w", "next"))[-1] == 20


def test_a_new_version_keeps_its_first_replica_until_the_load_takes_it(shop: Shop) -> None:
    none = replace(QUICK, min_replicas=0, downscale_delay_s=6)
    shop.calls(0)
    shop.calls(0, "w")
    shop.note(count=0)
    assert shop.live(1, record(none), record(none, "w", "next")) == []

    assert shop.live(5, record(none, "w")) == [1]
    assert shop.noted.reason == "a new version was deployed"
    assert shop.live(5, record(none, "w")) == [0]

    shop.lead_anew()
    assert shop.live(2, record(none, "w")) == []


@pytest.mark.parametrize(("capacity", "count"), [(None, 20), (50.0, 10), (1.0, 1), (0.0, 0)])
def test_a_part_of_the_capacity_has_as_large_a_part_of_the_limits(
    shop: Shop, capacity: float | None, count: int
) -> None:
    shop.calls(100)
    shop.note(count=5)

    assert shop.live(3, replace(record(), capacity=capacity))[-1] == count


def test_a_load_that_cannot_be_read_changes_nothing_and_holds_nothing_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*asked: Any) -> Any:
        raise error

    monkeypatch.setattr("qserve.fleet.autoscale.read_loads", fail)
    shop.calls(40)

    error: BrokerError = BrokerError("the functions are those of an older qserve")
    assert shop.live(1) == []
    error = BrokerUnavailable("away")
    with pytest.raises(BrokerUnavailable):  # the whole round is done again
        shop.live(1)


@pytest.mark.parametrize(
    ("fleet", "scaling"),
    [
        ({}, None),
        ({"wishes": {"shop": {"A": Wish(is_paused=True)}}}, QUICK),
        ({"wishes": {"shop": {"*": Wish(is_paused=True)}}}, QUICK),
        ({"hosts": {}}, QUICK),
        ({"hosts": {"a-1": replace(HOST, places=0, pins={"shop:*": 1})}}, QUICK),
        ({"hosts": {"a-1": replace(HOST, app="bar")}}, QUICK),
    ],
    ids=["fixed", "paused", "all paused", "no worker", "pinned", "workers of another application"],
)
def test_the_count_rests_where_the_load_does_not_decide(
    shop: Shop, fleet: dict[str, Any], scaling: Scaling | None
) -> None:
    shop.fleet = replace(shop.fleet, **fleet)
    shop.calls(40)

    assert shop.live(2, record(scaling)) == []


def test_who_leads_next_goes_on_with_a_delay_that_has_begun(shop: Shop) -> None:
    shop.calls(40)
    assert shop.live(5, record(SLOW)) == []
    assert shop.noted.above_ms > 0

    shop.lead_anew()
    shop.note(above_ms=shop.broker_ms() - 28_000)

    assert shop.live(4, record(SLOW)) == [20]
    assert shop.noted.above_ms == 0


@pytest.mark.slow
@pytest.mark.parametrize("noted_s", [-3600, 10**9])
def test_a_clock_of_the_broker_that_jumps_takes_no_replica_and_holds_none_for_ever(shop: Shop, noted_s: int) -> None:
    slow = replace(SLOW, look_back_period_s=5)
    shop.calls(0)
    shop.note(count=4, below_ms=shop.broker_ms() - noted_s * 1000)

    assert shop.live(4.5, record(slow)) == []
    assert shop.live(620, record(slow)) == [1]


def test_a_load_that_is_as_wished_again_ends_a_delay_also_for_the_next_leader(shop: Shop) -> None:
    shop.calls(40)
    shop.live(5, record(SLOW))

    shop.calls(2)
    shop.live(31, record(SLOW))
    assert (shop.noted.count, shop.noted.above_ms) == (1, 0)


def test_a_count_that_another_worker_has_decided_is_where_this_one_goes_on(shop: Shop) -> None:
    shop.calls(20)
    assert shop.live(2)[-1] == 10

    shop.note(count=15, reason="another's")

    assert shop.live(2) == []
    assert shop.noted.reason == "another's"
    assert shop.live(25) == [10]


def test_a_policy_of_ones_own_decides_and_its_state_survives_the_leader(shop: Shop) -> None:
    own = record(replace(QUICK, policy="rules:by_hour"))
    shop.calls(6)
    shop.answers = [None, Asked(7.2, {"seen": [1]}), None]

    assert shop.live(1, own) == [8]
    assert shop.noted.reason == "its policy asks for 7.2"

    shop.lead_anew()
    assert shop.live(1, own) == []
    assert AutoscalingContext(**{**shop.told, "config": Scaling(**shop.told["config"])}).policy_state == {"seen": [1]}
    assert {name: shop.told[name] for name in ("total_num_requests", "target_num_replicas", "deployment_name")} == {
        "total_num_requests": 6, "target_num_replicas": 8, "deployment_name": "A",
    }  # fmt: skip
    assert json.dumps(shop.told)


def test_a_policy_is_told_what_the_replicas_that_run_have_reported_over_the_look_back(shop: Shop) -> None:
    def report(name: str, stats: str, state: str = RUNNING, version: str = "v", deployment: str = "A") -> ReplicaStatus:
        return ReplicaStatus(name, deployment, version, state, stats=stats)

    own = record(replace(QUICK, policy="rules:by_hour", aggregation_function="max", look_back_period_s=6))
    others = [report("A-3", "", STARTING), report("B-1", "{}", deployment="B"), report("A-0", "{}", version="u")]
    shop.reported = [report("A-1", '{"queued": 5.0}'), report("A-2", ""), *others]
    shop.live(2, own)
    shop.reported = [report("A-1", '{"queued": 1.0}'), report("A-2", '{"queued": 2.0, "gpu": 0.5}'), *others]
    shop.live(2, own)

    assert shop.told["running_replicas"] == ["A-1", "A-2"]
    assert shop.told["aggregated_metrics"] == {"queued": {"A-1": 5.0, "A-2": 2.0}, "gpu": {"A-2": 0.5}}
    assert [value for _, value in shop.told["raw_metrics"]["queued"]["A-1"]] == [5.0, 5.0, 1.0, 1.0]

    shop.reported = [report("A-1", '{"queued": 1.0}'), report("A-2", '{"queued": NaN}')]
    shop.live(8, own)
    assert shop.told["aggregated_metrics"] == {"queued": {"A-1": 1.0}}
    assert shop.told["running_replicas"] == ["A-1"]  # the other report cannot be read


@pytest.mark.parametrize("noted", ["", "[1]", "{", "[" * 100_000])
def test_a_state_that_no_policy_could_have_noted_is_none(noted: str) -> None:
    assert Scaled(1, policy_state=noted).policy_state_value == {}


def test_a_policy_that_fails_leaves_the_count_and_says_why_and_the_first_call_still_starts_a_replica(
    shop: Shop,
) -> None:
    own = record(replace(QUICK, min_replicas=0, policy="rules:by_hour"))
    shop.calls(40)
    shop.note(count=3)
    shop.answers = [Asked(5.0), Asked(error="ValueError: no")]

    assert shop.live(2, own) == [5]
    assert shop.noted.reason == "it stays as it is: its policy rules:by_hour failed: ValueError: no"

    shop.note(count=0)
    assert shop.live(0.25, own) == [1]


def test_a_policy_that_nothing_can_run_leaves_the_count(shop: Shop) -> None:
    shop.autoscaler = Autoscaler(shop.desk.client, shop.desk.keys, lambda: shop.now)
    shop.calls(40)

    assert shop.live(1, record(replace(QUICK, policy="rules:by_hour"))) == []
    assert "rules:by_hour failed: no worker can ask it" in shop.noted.reason


def test_a_leader_places_as_many_replicas_as_the_load_asks_for(shop: Shop, settings: Settings) -> None:
    client, keys, seal = shop.desk.client, shop.desk.keys, Seal(settings.keyring)
    store, time = FleetStore(client, keys, seal), lambda: shop.now
    store.offer(HOST)
    leader = Leader(
        store, Leadership(client, keys, seal, "a-1", time), "a-1", lambda app: {}, Observer(GONE_S, time).update,
        Autoscaler(client, keys, time), time,
    )  # fmt: skip
    for number in range(86):
        if number == 80:
            shop.calls(24)  # after all was as it is for so long that rounds are rare where nothing scales
        shop.now += 0.25
        leader.tick(lambda: Registered([record()]), HOST)

    assert sum(slot.count for slot in store.plan()["a-1"].slots) == 12
    assert store.scaled("shop")["A"].reason.startswith("24 calls ongoing at ")
