"""Who leads, and what a leader has done wherever it stops: several of them on one broker, with a clock of the test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import redis
from qserve_workers.process.heartbeat import Observer

from qserve.base.clock import clock
from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.exceptions import BrokerError
from qserve.fleet.lead import RENEW_S, STILL_S, Leadership
from qserve.fleet.leader import GONE_S, Leader, Registered
from qserve.fleet.store import FleetStore
from qserve.fleet.values import Key
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Resources, Scaling
from qserve.wire.fleet import Drain, HostRecord, Rollout, Scaled, Slot, Wish
from qserve.wire.sealing import Seal


def record(version: str = "v", place: str = "active", **deployments: DeploymentRecord) -> ApplicationRecord:
    found = deployments or {"A": DeploymentRecord("A", num_replicas=2)}
    return ApplicationRecord("shop", version, "A", place=place, deployments=found)


class Time:
    """The clocks of all workers of a test, which only it moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """A worker without processes: what it is to run runs at once, unless it is told otherwise."""

    def __init__(self, name: str, client: redis.Redis, keys: Keys, seal: Seal, time: Time, places: int = 4) -> None:
        self.name = name
        self.store = FleetStore(client, keys, seal)
        self.record = HostRecord(name, name, places, has=("shop:v", "shop:w"))
        self.leadership = Leadership(client, keys, seal, name, time)
        observer = Observer(GONE_S, time)
        self.running: Mapping[tuple[Key, str], int] | None = None
        self.leader = Leader(self.store, self.leadership, name, self._running, observer.update, monotonic=time)

    def _running(self, app: str) -> Mapping[tuple[Key, str], int]:
        if self.running is not None:
            return self.running
        found: Counter[tuple[Key, str]] = Counter()
        for worker, assignment in self.store.plan().items():
            for slot in assignment.slots:
                found[Key(slot.app, slot.version, slot.deployment), worker] += slot.count
        return found

    def offer(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)
        self.store.offer(self.record)

    def live(self, *records: ApplicationRecord, is_eager: bool = True) -> tuple[Slot, ...] | None:
        """Do one round."""
        self.store.beat(self.name)
        return self.leader.tick(lambda: Registered(records or (record(),)), self.record, is_eager)


class Fleet:
    def __init__(self, client: redis.Redis, keys: Keys, seal: Seal) -> None:
        self.client, self.keys, self.time = client, keys, Time()
        self._make = lambda name: Worker(name, client, keys, seal, self.time)
        self.workers: dict[str, Worker] = {}

    def add(self, name: str, **changes: Any) -> Worker:
        self.workers[name] = self._make(name)
        self.workers[name].offer(**changes)
        return self.workers[name]

    def rounds(self, number: int, *records: ApplicationRecord, without: str = "") -> None:
        """Let all workers do some rounds, a quarter of a second apart."""
        for _ in range(number):
            self.time.now += 0.25
            for worker in self.workers.values():
                if worker.name not in without.split():
                    worker.live(*records, is_eager=False)

    def leads(self) -> list[str]:
        return [name for name, worker in self.workers.items() if worker.leadership.mine]

    def plan(self, deployment: str = "A", version: str = "v") -> dict[str, int]:
        """How many replicas of a deployment each worker is to run."""
        found = next(iter(self.workers.values())).store.plan()
        counts = {
            name: sum(slot.count for slot in one.slots if (slot.deployment, slot.version) == (deployment, version))
            for name, one in found.items()
        }
        return {name: number for name, number in counts.items() if number}


@pytest.fixture
def seal(settings: Settings) -> Seal:
    return Seal(settings.keyring)


@pytest.fixture
def fleet(client: redis.Redis, keys: Keys, seal: Seal) -> Iterator[Fleet]:
    yield Fleet(client, keys, seal)


# -- who leads -------------------------------------------------------------------------------------


def test_a_worker_alone_leads_and_plans_in_its_first_round(fleet: Fleet) -> None:
    own = fleet.add("a").live()

    assert own == (Slot("shop", "v", "A", 2),)
    assert fleet.plan() == {"a": 2}


@pytest.mark.row("F54")
def test_one_of_several_leads_as_long_as_it_lives_and_another_soon_after(fleet: Fleet) -> None:
    for name in "abc":
        fleet.add(name)
    for _ in range(20):
        fleet.rounds(1)
        assert fleet.leads() == ["a"]

    passed = next(number for number in count() if fleet.rounds(1, without="a") or fleet.leads() != ["a"])
    assert 0.25 * passed <= STILL_S + RENEW_S
    assert len([name for name in fleet.leads() if name != "a"]) == 1

    fleet.rounds(2)  # it wakes up, and finds that another one leads
    assert fleet.leads() in (["b"], ["c"])


def test_a_leader_that_stops_lets_another_lead_at_once(fleet: Fleet) -> None:
    first, second = fleet.add("a"), fleet.add("b")
    fleet.rounds(1)

    first.leadership.resign()

    fleet.time.now += RENEW_S
    second.live()
    assert fleet.leads() == ["b"]


@pytest.mark.parametrize("forged", [b"", b"somebody", b"\x01\x00{}"])
def test_a_lead_that_nobody_of_ours_has_taken_is_taken(fleet: Fleet, forged: bytes) -> None:
    fleet.client.set(fleet.keys.lead, forged, px=60_000)

    fleet.add("a").live()

    assert fleet.leads() == ["a"]


def test_a_key_of_another_type_in_the_place_of_the_lead_is_removed(fleet: Fleet) -> None:
    fleet.client.rpush(fleet.keys.lead, b"x")

    fleet.add("a").live()

    assert fleet.leads() == ["a"]


@pytest.mark.row("F54")
def test_a_leader_that_was_frozen_changes_nothing_when_it_wakes(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = fleet.add("a"), fleet.add("b")
    fleet.rounds(1)
    assign, more = first.store.assign, record(A=DeploymentRecord("A", num_replicas=3))

    def freeze(mine: bytes, plan: Mapping[str, tuple[Slot, ...]]) -> bool:
        """It stands still before its act, as a process may at any point, and another one takes over."""
        fleet.rounds(30, without="a")
        assert fleet.leads() == ["a", "b"]
        return assign(mine, plan)

    monkeypatch.setattr(first.store, "assign", freeze)
    first.live(more)

    assert fleet.leads() == ["b"]
    assert fleet.plan() == {"b": 2}
    second.live()
    assert fleet.plan() == {"b": 2}


def test_who_does_not_know_whether_it_leads_decides_nothing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = fleet.add("a")
    worker.live()
    fleet.time.now += RENEW_S

    def away(*args: object) -> object:
        raise redis.ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(worker.leadership._client, "execute_command", away)
        with pytest.raises(BrokerError):
            worker.leadership.renew()
    assert fleet.leads() == []


# -- what is planned -------------------------------------------------------------------------------


def test_replicas_are_spread_over_the_hosts_and_placed_elsewhere_when_one_is_gone(fleet: Fleet) -> None:
    for name in "abc":
        fleet.add(name)
    wanted = record(A=DeploymentRecord("A", num_replicas=6))
    fleet.rounds(2, wanted)
    assert fleet.plan() == {"a": 2, "b": 2, "c": 2}

    passed = next(number for number in count(1) if fleet.rounds(1, wanted, without="c") or "c" not in fleet.plan())

    assert fleet.plan() == {"a": 3, "b": 3}
    assert 0.25 * passed <= GONE_S + 1
    fleet.rounds(60, wanted)  # it is back; after a while one replica after the other goes there
    assert fleet.plan() == {"a": 2, "b": 2, "c": 2}


def test_the_next_leader_goes_on_with_the_same_plan(fleet: Fleet) -> None:
    for name in "abc":
        fleet.add(name)
    fleet.rounds(2)
    before = fleet.plan()
    assert len(before) == 2

    fleet.workers["a"].leadership.resign()
    fleet.rounds(8)

    assert fleet.leads() != ["a"] or fleet.plan() == before
    assert fleet.plan() == before


@pytest.mark.row("F54")
def test_a_broker_that_lost_its_data_has_the_same_plan_again(fleet: Fleet) -> None:
    for name in "abc":
        fleet.add(name)
    fleet.rounds(2)
    before = fleet.plan()
    fleet.client.delete(fleet.keys.plan, fleet.keys.hosts, fleet.keys.lead)

    for worker in fleet.workers.values():
        fleet.rounds(2)
        worker.offer()
    fleet.rounds(8)

    assert fleet.plan() == before


@pytest.mark.row("F54")
@pytest.mark.parametrize("flushed", ["before it renews", "after it has renewed"])
def test_a_broker_that_lost_its_data_costs_no_replica(fleet: Fleet, flushed: str) -> None:
    first, second = fleet.add("a"), fleet.add("b")
    fleet.rounds(2)
    slots, owned = {"a": (Slot("shop", "v", "A", 1),), "b": (Slot("shop", "v", "A", 1),)}, []
    assert fleet.plan() == {"a": 1, "b": 1}

    if flushed == "after it has renewed":
        fleet.time.now += RENEW_S
        assert first.leadership.renew()
    fleet.client.delete(fleet.keys.plan, fleet.keys.hosts, fleet.keys.lead)
    owned.append(first.live())
    second.store.put_back("b", slots["b"])
    second.offer()
    for _ in range(10):
        fleet.time.now += 0.25
        owned.append(first.live())
        owned.append(second.live())

    assert {own for own in owned if own is not None} == {slots["a"]}
    assert fleet.plan() == {"a": 1, "b": 1}


def test_whoever_overwrites_an_offer_again_and_again_holds_up_little(fleet: Fleet) -> None:
    fleet.add("a")
    changed = record(A=DeploymentRecord("A", num_replicas=3))
    fleet.rounds(2)

    for _ in range(8):
        fleet.client.hset(fleet.keys.hosts, "a", b"garbage")
        fleet.rounds(1, changed)

    assert fleet.plan() == {"a": 3}


def test_a_leader_that_knows_nothing_waits_until_others_have_said_again_what_they_run(fleet: Fleet) -> None:
    first, second = fleet.add("a"), fleet.add("b")
    fleet.rounds(2)
    assert fleet.leads() == ["a"]
    fleet.client.delete(fleet.keys.plan, fleet.keys.hosts, fleet.keys.lead)

    fleet.time.now += RENEW_S
    assert second.live() is None
    assert fleet.leads()[-1] == "b" and not second.store.plan()
    first.store.put_back("a", (Slot("shop", "v", "A", 2),))
    first.offer()
    fleet.rounds(8)

    assert fleet.plan() == {"a": 2}


def test_an_old_plan_that_is_put_back_does_not_hold(fleet: Fleet) -> None:
    fleet.add("a")
    fleet.rounds(1)
    old = fleet.client.hgetall(fleet.keys.plan)
    fleet.rounds(1, record(A=DeploymentRecord("A", num_replicas=4)))
    fleet.client.hset(fleet.keys.plan, mapping=old)

    fleet.rounds(2, record(A=DeploymentRecord("A", num_replicas=4)))

    assert fleet.plan() == {"a": 4}


def test_a_host_that_is_drained_runs_its_replicas_until_others_run(fleet: Fleet) -> None:
    first, second = fleet.add("a"), fleet.add("b")
    fleet.rounds(2)
    assert fleet.plan() == {"a": 1, "b": 1}
    first.running = {(Key("shop", "v", "A"), name): 1 for name in "ab"}
    second.store.drain(Drain("b", "me"))

    fleet.rounds(2)
    assert fleet.plan() == {"a": 2, "b": 1}
    first.running = {(Key("shop", "v", "A"), "a"): 2, (Key("shop", "v", "A"), "b"): 1}
    fleet.rounds(2)
    assert fleet.plan() == {"a": 2}

    second.store.undrain("b")
    first.running = None
    fleet.rounds(60)
    assert fleet.plan() == {"a": 1, "b": 1}


def test_what_is_planned_of_an_application_that_cannot_be_read_stays(fleet: Fleet) -> None:
    worker = fleet.add("a")
    fleet.rounds(1)
    other = ApplicationRecord("other", "w", "B", deployments={"B": DeploymentRecord("B")})
    worker.offer(has=("shop:v", "other:w"))

    fleet.time.now += 0.25
    worker.leader.tick(lambda: Registered([other], frozenset(("shop",))), worker.record)
    assert (fleet.plan(), fleet.plan("B", "w")) == ({"a": 2}, {"a": 1})

    fleet.time.now += 0.25
    worker.leader.tick(lambda: Registered([other]), worker.record)
    assert (fleet.plan(), fleet.plan("B", "w")) == ({}, {"a": 1})


def test_a_leader_that_was_started_again_leads_at_once(fleet: Fleet) -> None:
    fleet.add("a").live()

    assert fleet.add("a").live() == (Slot("shop", "v", "A", 2),)


def test_a_worker_that_is_back_after_its_counter_has_expired_is_known_again(fleet: Fleet) -> None:
    for name in "ab":
        fleet.add(name)
    fleet.rounds(30)
    fleet.rounds(20, without="b")
    assert fleet.plan() == {"a": 2}
    fleet.client.delete(fleet.keys.beat("b"))

    fleet.add("b")
    fleet.rounds(2)
    fleet.rounds(2, record(A=DeploymentRecord("A", num_replicas=3)))

    assert fleet.plan() == {"a": 2, "b": 1}


def test_a_wish_changes_the_count_and_the_status_tells_it(fleet: Fleet) -> None:
    worker = fleet.add("a")
    fleet.rounds(1)
    assert worker.store.scaled("shop") == {}

    worker.store.wish("shop", "A", Wish(3, configured=2))
    fleet.rounds(2)
    assert fleet.plan() == {"a": 3}
    assert worker.store.scaled("shop")["A"].count == 3

    fleet.rounds(2, record(A=DeploymentRecord("A", num_replicas=1)))
    assert fleet.plan() == {"a": 1}
    assert worker.store.scaled("shop")["A"].count == 1


def test_what_has_no_room_is_noted_with_what_is_missing_until_it_has(fleet: Fleet) -> None:
    worker = fleet.add("a")
    needs_gpu = record(A=DeploymentRecord("A", resources=Resources(gpus=1)))

    fleet.rounds(2, needs_gpu)
    noted = worker.store.scaled("shop")["A"]
    assert (noted.count, noted.shortage) == (
        1,
        "1 of 1 replicas have no place: each takes 1 GPU; free: 0 of 0 on a",
    )
    fleet.rounds(4, needs_gpu)
    assert worker.store.scaled("shop")["A"] == noted  # it is written once

    worker.offer(devices=("0",))
    fleet.rounds(2, needs_gpu)
    assert worker.store.scaled("shop")["A"].shortage == ""
    assert worker.store.plan()["a"].slots == (Slot("shop", "v", "A", 1, ("0",)),)


def test_counts_of_an_application_that_was_deleted_are_forgotten(fleet: Fleet) -> None:
    worker = fleet.add("a")
    worker.store.wish("shop", "A", Wish(1, 2))
    worker.live()
    assert worker.store.scaled("shop")

    worker.leader.tick(lambda: Registered((), frozenset({"shop"})), worker.record, True)
    worker.live()
    assert worker.store.scaled("shop")
    worker.leader.tick(lambda: Registered(()), worker.record, True)

    assert not worker.store.scaled("shop")


def test_a_worker_that_is_to_end_runs_its_replicas_until_others_run(fleet: Fleet) -> None:
    first, second = fleet.add("a"), fleet.add("b")
    fleet.rounds(2)
    second.running = first.running = {(Key("shop", "v", "A"), "a"): 1, (Key("shop", "v", "A"), "b"): 1}
    assert fleet.plan() == {"a": 1, "b": 1}

    second.offer(is_leaving=True)
    fleet.rounds(2)
    assert fleet.plan() == {"a": 2, "b": 1}
    second.running = first.running = {(Key("shop", "v", "A"), "a"): 2}
    fleet.rounds(2)

    assert fleet.plan() == {"a": 2}


def test_a_deployment_is_evened_out_while_workers_offer_the_same_again_and_again(fleet: Fleet) -> None:
    first = fleet.add("a")
    fleet.rounds(2)
    second = fleet.add("b")
    assert fleet.plan() == {"a": 2}

    for _ in range(15):
        fleet.rounds(4)
        first.offer()
        fleet.rounds(4)
        second.offer()

    assert fleet.plan() == {"a": 1, "b": 1}


def test_one_worker_of_a_host_may_be_drained(fleet: Fleet) -> None:
    first = fleet.add("a-1", host="a")
    fleet.add("a-2", host="a")
    fleet.rounds(2)
    assert fleet.plan() == {"a-1": 1, "a-2": 1}

    first.store.drain(Drain("a-2", "me"))
    fleet.rounds(8)

    assert fleet.plan() == {"a-1": 2}


def test_replicas_that_are_pinned_are_not_placed_as_well(fleet: Fleet) -> None:
    fleet.add("a")
    fleet.add("b", places=0, pins={"shop:v:A": 1})

    fleet.rounds(2)
    assert fleet.plan() == {"a": 1}

    fleet.rounds(20, without="b")
    assert fleet.plan() == {"a": 2}


def test_an_old_and_a_new_version_run_side_by_side(fleet: Fleet) -> None:
    fleet.add("a", places=8)

    fleet.rounds(2, record(), record("w", "next"))

    assert (fleet.plan(), fleet.plan(version="w")) == ({"a": 2}, {"a": 2})


def test_counts_by_load_are_noted_and_carried_out(fleet: Fleet) -> None:
    worker = fleet.add("a")
    scaling = record(A=DeploymentRecord("A", scaling=Scaling(0, 4)))
    fleet.rounds(1, scaling)
    assert (fleet.plan(), worker.store.scaled("shop")) == ({"a": 1}, {})
    decided = {("shop", "A"): Scaled(3, reason="40 wait", trigger="AUTOSCALING")}
    worker.leader._decide_with = lambda records, _: decided

    fleet.rounds(1, scaling)

    assert (fleet.plan(), worker.store.scaled("shop")["A"].reason) == ({"a": 3}, "40 wait")


@pytest.mark.parametrize(("workers", "reads"), [("a", 2), ("ab", 5)])
def test_a_leader_with_nothing_to_do_writes_nothing_and_reads_once_a_second_or_two(
    fleet: Fleet, workers: str, reads: int
) -> None:
    for worker in workers:
        fleet.add(worker)
    fleet.rounds(50)
    calls = Counter[str]()
    store = fleet.workers["a"].store
    for name in ("read", "assign", "note", "withdraw"):
        whole = getattr(store, name)
        setattr(store, name, lambda *args, name=name, whole=whole: calls.update([name]) or whole(*args))

    fleet.rounds(20)

    assert calls == {"read": reads}


def test_what_a_worker_left_is_forgotten_a_minute_after_it_is_gone(fleet: Fleet) -> None:
    for name in "ab":
        fleet.add(name)
    fleet.rounds(4)

    fleet.rounds(290, without="b")

    store = fleet.workers["a"].store
    assert (store.hosts().keys(), store.plan().keys()) == ({"a"}, {"a"})


def test_workers_read_the_plan_only_from_who_leads(fleet: Fleet) -> None:
    fleet.add("a").live()
    reply = fleet.client.execute_command(*functions.assign(fleet.keys.lead, fleet.keys.plan, b"x", ["a"], [b"forged"]))

    assert reply == b"STALE"
    assert fleet.plan() == {"a": 2}


# -- deploys that go step by step ------------------------------------------------------------------


@pytest.mark.row("F55")
def test_a_deploy_that_stands_still_between_its_steps_gives_the_places_back_until_it_goes_on(fleet: Fleet) -> None:
    deployment = DeploymentRecord("A", num_replicas=4)
    versions = record(A=deployment), record("w", "next", A=deployment)
    worker = fleet.add("a")
    step = Rollout("w", old="v", state="under way", new={"A": 2}, keep={"A": 2})
    held = worker.store.swap_rollout("shop", b"", step)

    fleet.rounds(20, *versions)
    assert (fleet.plan(), fleet.plan(version="w")) == ({"a": 2}, {"a": 2})
    fleet.rounds(40, *versions)
    assert (fleet.plan(), fleet.plan(version="w")) == ({"a": 4}, {})

    worker.store.swap_rollout("shop", held, replace(step, beat=1))
    fleet.rounds(4, *versions)
    assert (fleet.plan(), fleet.plan(version="w")) == ({"a": 2}, {"a": 2})


@pytest.mark.row("F55")
def test_a_version_that_gets_requests_keeps_its_replicas_until_its_workers_let_them_finish(fleet: Fleet) -> None:
    deployment = DeploymentRecord("A", num_replicas=4)
    old, staged = record(A=deployment), record("w", "next", A=deployment)
    step = Rollout("w", old="v", state="under way", new={"A": 2}, keep={"A": 2})
    fleet.add("a", places=8).store.swap_rollout("shop", b"", step)

    def plan_when(share_ends_in_s: float) -> tuple[int, int]:
        until_ms = clock.judge_ms() + 1000 * share_ends_in_s
        fleet.rounds(60, old, replace(staged, share=0.5, share_until_ms=until_ms))
        return sum(fleet.plan().values()), sum(fleet.plan(version="w").values())

    assert plan_when(60.0) == (2, 2)
    assert plan_when(-1.0) == (4, 2)
    assert plan_when(-60.0) == (4, 0)


@pytest.mark.row("F55")
def test_before_a_dead_deploy_loses_its_requests_a_replica_of_the_version_that_gets_them_back_starts(
    fleet: Fleet,
) -> None:
    """The deployer died in its last step, when the old version had given all of its places away."""
    deployment = DeploymentRecord("A", num_replicas=4)
    staged = replace(record("w", "next", A=deployment), share=1.0, share_until_ms=clock.judge_ms() + 60_000)
    last = Rollout("w", old="v", state="under way", new={"A": 4}, keep={"A": 0})
    fleet.add("a").store.swap_rollout("shop", b"", last)

    fleet.rounds(20, record(A=deployment), staged)
    assert (fleet.plan(), fleet.plan(version="w")) == ({}, {"a": 4})
    fleet.rounds(40, record(A=deployment), staged)
    assert (fleet.plan(), fleet.plan(version="w")) == ({"a": 1}, {"a": 3})


@pytest.mark.row("F50")
def test_no_old_replica_starts_again_between_the_end_of_a_deploy_and_the_news_of_its_version(fleet: Fleet) -> None:
    versions = record(), record("w", "next")
    step = Rollout("w", old="v", state="under way", new={"A": 2}, keep={"A": 0})
    worker = fleet.add("a", places=8)
    held = worker.store.swap_rollout("shop", b"", step)
    fleet.rounds(4, *versions)

    worker.store.swap_rollout("shop", held, replace(step, state="done", beat=1))
    fleet.rounds(4, *versions)

    assert (fleet.plan(), fleet.plan(version="w")) == ({}, {"a": 2})


@pytest.mark.row("F50")
def test_of_a_version_that_is_to_have_fewer_replicas_those_stay_that_run(fleet: Fleet) -> None:
    """The others fail to start, and the requests that the version has need one that serves."""
    deployment = DeploymentRecord("A", num_replicas=2)
    for name in "ab":
        fleet.add(name).running = {(Key("shop", "v", "A"), "b"): 1}
    fleet.rounds(4, record(A=deployment))
    assert fleet.plan() == {"a": 1, "b": 1}

    fleet.rounds(4, record(A=replace(deployment, num_replicas=1)))
    assert fleet.plan() == {"b": 1}


def test_the_limits_of_a_deploy_that_stands_still_do_not_hold_for_the_version_that_it_made_active(
    fleet: Fleet,
) -> None:
    step = Rollout("v", old="u", state="under way", new={"A": 1})
    fleet.add("a").store.swap_rollout("shop", b"", step)

    fleet.rounds(20)
    assert fleet.plan() == {"a": 1}
    fleet.rounds(40)
    assert fleet.plan() == {"a": 2}
