"""Which worker runs what: never more than fits, with the fewest changes, and the same for every leader."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.fleet import place as module
from qserve.fleet.place import devices_of_pins, place, rebalance
from qserve.fleet.values import Key, Need, Placement
from qserve.wire.application import Resources
from qserve.wire.fleet import HostRecord, Slot

A, B = Key("shop", "v", "A"), Key("shop", "v", "B")
KEYS = [A, B, Key("shop", "v", "C"), Key("other", "w", "A")]


def host(worker: str, places: int = 4, **more: Any) -> HostRecord:
    return HostRecord(worker, **{"host": worker, "places": places, "has": ("shop:v", "other:w"), **more})


def need(key: Key, count: int, least: int = 0, **takes: Any) -> Need:
    return Need(key, count, least, Resources(**takes))


def counts(placement: Placement | Mapping[str, tuple[Slot, ...]], key: Key = A) -> dict[str, int]:
    """How many replicas of a deployment stay at each worker."""
    plan = placement.assignments if isinstance(placement, Placement) else placement
    return {
        worker: sum(
            slot.count for slot in slots if (slot.app, slot.version, slot.deployment) == key and not slot.leaves
        )
        for worker, slots in plan.items()
    }


def running(placement: Placement) -> dict[tuple[Key, str], int]:
    """All that is planned runs."""
    found: Counter[tuple[Key, str]] = Counter()
    for worker, slots in placement.assignments.items():
        for slot in slots:
            found[Key(slot.app, slot.version, slot.deployment), worker] += slot.count
    return found


def test_replicas_are_spread_evenly() -> None:
    found = place([need(A, 5), need(B, 3)], [host("a"), host("b")], {}, {})

    assert sorted(counts(found, A).values()) == [2, 3]
    assert sum(counts(found, B).values()) == 3
    assert not found.shortages


def test_what_runs_stays_when_a_host_comes_and_moves_one_by_one_afterwards() -> None:
    needs, hosts = [need(A, 4)], [host("a"), host("b")]
    first = place(needs, hosts[:1], {}, {})
    plan = place(needs, hosts, first.assignments, running(first)).assignments
    assert counts(plan) == {"a": 4, "b": 0}

    seen = []
    while (moved := rebalance(needs, hosts, plan)) is not None:
        started = place(needs, hosts, moved, {(A, "a"): counts(plan)["a"], (A, "b"): counts(plan)["b"]})
        total = sum(slot.count for slots in started.assignments.values() for slot in slots)
        assert total == 5  # the new one starts before the old one stops
        plan = place(needs, hosts, started.assignments, running(started)).assignments
        seen.append(counts(plan))
    assert seen == [{"a": 3, "b": 1}, {"a": 2, "b": 2}]


@pytest.mark.row("F56")
def test_a_host_that_comes_back_has_its_share_again() -> None:
    needs, both = [need(Key("shop", "v", name), 1) for name in "ABCDE"], [host("a", 8), host("b", 8)]
    plan = place(needs, both[:1], {}, {}).assignments
    while (moved := rebalance(needs, both, plan)) is not None:
        begun = place(needs, both, moved, {})
        plan = place(needs, both, begun.assignments, running(begun)).assignments

    assert sorted(len(slots) for slots in plan.values()) == [2, 3]


def test_replicas_that_take_no_place_do_not_move_for_the_sake_of_places() -> None:
    needs = [need(A, 4), need(B, 1, cpus=0.0)]
    plan = {"a": (Slot(*A, 4), Slot(*B, 1))}

    assert rebalance(needs[1:], [host("a", 8), host("b", 8)], plan) is None


def test_a_worker_that_leaves_goes_on_until_its_replicas_run_elsewhere() -> None:
    needs, hosts = [need(A, 2)], [host("a", 2), host("b", 2)]
    first = place(needs, hosts[:1], {}, {})

    begun = place(needs, hosts, first.assignments, running(first), {"a"})
    assert begun.assignments["a"] == (Slot(*A, 2, leaves=True),)
    assert counts(begun) == {"a": 0, "b": 2}
    half = place(needs, hosts, begun.assignments, {(A, "a"): 2, (A, "b"): 1}, {"a"})
    assert half.assignments["a"] == (Slot(*A, 1, leaves=True),)
    done = place(needs, hosts, half.assignments, running(half), {"a"})
    assert done.assignments["a"] == ()

    stuck = place(needs, hosts[:1], first.assignments, running(first), {"a"})
    assert stuck.assignments["a"] == (Slot(*A, 2, leaves=True),)
    assert stuck.shortages[0].why == "2 of 2 replicas have no place: all workers are drained"
    again = place(needs, hosts[:1], stuck.assignments, running(first))
    assert (counts(again), again.shortages) == ({"a": 2}, ())


def test_the_least_that_a_deployment_needs_runs_beyond_soft_places_and_never_beyond_hard_ones() -> None:
    needs = [need(A, 3, 3), need(B, 5, 1)]

    soft = place(needs, [host("a", 2, is_soft=True)], {}, {})
    assert (counts(soft, A), counts(soft, B)) == ({"a": 3}, {"a": 1})
    assert soft.shortages[0].why == "4 of 5 replicas have no place: each takes 1 place; free: 0 of 2 on a"
    hard = place(needs, [host("a", 2)], {}, {})
    assert sum(counts(hard, A).values()) + sum(counts(hard, B).values()) == 2


def test_each_deployment_has_its_least_before_another_one_has_all() -> None:
    found = place([need(A, 9, 1), need(B, 1, 1)], [host("a", 4)], {}, {})

    assert (counts(found, A), counts(found, B)) == ({"a": 3}, {"a": 1})


def test_gpus_are_assigned_whole_or_as_parts_of_the_fullest_that_has_room() -> None:
    hosts = [host("a", 9, devices=("0", "1", "2"))]
    found = place([need(A, 1, gpus=1), need(B, 3, gpus=0.5)], hosts, {}, {})

    assert found.assignments["a"] == (
        Slot(*A, 1, ("0",)),
        Slot(*B, 2, ("1",)),
        Slot(*B, 1, ("2",)),
    )
    short = place([need(A, 3, gpus=2)], hosts, {}, {})
    assert short.shortages[0].why == "2 of 3 replicas have no place: each takes 2 GPUs; free: 1 of 3 on a"
    shared = place([need(A, 2, gpus=1), need(B, 3, gpus=0.6)], hosts, {}, {})
    assert [one.why for one in shared.shortages] == [
        "2 of 3 replicas have no place: each takes 0.6 GPUs; free: 0.4 of 3 on a"
    ]
    none_whole = place(
        [need(A, 1, gpus=1), need(B, 3, gpus=0.6)],
        hosts,
        {"a": (Slot(*B, 1, ("0",)), Slot(*B, 1, ("1",)), Slot(*B, 1, ("2",)))},
        {},
    )
    assert none_whole.shortages[0].why == "1 of 1 replicas have no place: each takes 1 GPU; free: 0 of 3 on a"


def test_a_replica_stays_on_its_own_device() -> None:
    before = {"a": (Slot(*A, 1, ("1",)),)}

    found = place([need(A, 2, gpus=1)], [host("a", devices=("0", "1"))], before, {})

    assert found.assignments["a"] == (Slot(*A, 1, ("0",)), Slot(*A, 1, ("1",)))


@pytest.mark.parametrize(
    ("takes", "offers", "why"),
    [
        ({"memory": 3 << 30}, {"memory": 4 << 30}, "each takes 3072 MiB of memory; free: 1024 of 4096 on a"),
        ({"other": {"tpu": 2.0}}, {"resources": {"tpu": 3.0}}, "each takes 2 tpu; free: 1 of 3 on a"),
        ({"cpus": 3.0}, {}, "each takes 3 places; free: 1 of 4 on a"),
        ({"per_host": 1}, {}, "one host may run 1 of them (max_replicas_per_node)"),
    ],
)
def test_a_shortage_says_what_is_missing(takes: dict[str, Any], offers: dict[str, Any], why: str) -> None:
    found = place([need(A, 2, **takes)], [host("a", **offers)], {}, {})

    assert counts(found) == {"a": 1}
    assert [one.why for one in found.shortages] == [f"1 of 2 replicas have no place: {why}"]


@pytest.mark.parametrize(
    ("wanted", "label", "fits"),
    [
        ("a", "a", True), ("a", "b", False), ("a", None, False), ("!a", "b", True), ("!a", None, True),
        ("in(a, b)", "b", True), ("in(a, b)", "c", False), ("!in(a,b)", "a", False), ("!in(a,b)", None, True),
    ],
)  # fmt: skip
def test_a_replica_runs_only_where_the_labels_are_right(wanted: str, label: str | None, fits: bool) -> None:
    hosts = [host("a", labels={} if label is None else {"zone": label})]

    found = place([need(A, 1, labels={"zone": wanted})], hosts, {}, {})

    assert sum(counts(found).values()) == fits
    assert fits or found.shortages[0].why.endswith(f"no worker has the labels zone={wanted}")


def test_a_worker_runs_only_versions_whose_code_it_has_and_its_own_application() -> None:
    without = place([need(A, 1)], [host("a", has=()), host("b", app="other")], {}, {})
    assert without.shortages[0].why.endswith("no worker has the code of this version")
    nobody = place([need(A, 1)], [host("a", 0), host("b", app="other")], {}, {})
    assert nobody.shortages == ()  # what runs there is pinned


def test_two_workers_of_one_host_share_its_limit() -> None:
    found = place(
        [need(A, 3, per_host=1)], [host("a-1", host="a"), host("a-2", host="a"), host("b-1", host="b")], {}, {}
    )

    assert (found.assignments["b-1"][0].count, found.shortages[0].missing) == (1, 1)


def test_a_large_fleet_takes_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [0]
    lack = module._Worker.lack

    def count(*args: Any) -> Any:
        steps[0] += 1
        return lack(*args)

    monkeypatch.setattr(module._Worker, "lack", count)
    hosts = [host(f"h{number}", 16) for number in range(100)]
    needs = [need(Key("shop", "v", f"D{number}"), 100) for number in range(10)]

    found = place(needs, hosts, {}, {})
    place(needs, hosts, found.assignments, {})

    assert not found.shortages
    assert steps[0] < 4 * 1000


# -- properties ------------------------------------------------------------------------------------

HOSTS = st.lists(
    st.builds(
        host,
        st.sampled_from("abcdef"),
        st.integers(0, 5),
        host=st.sampled_from(["x", "y", "z"]),
        is_soft=st.booleans(),
        devices=st.sampled_from([(), ("0",), ("0", "1", "2")]),
        memory=st.sampled_from([0, 5]),
        resources=st.sampled_from([{}, {"tpu": 2.0}]),
        labels=st.sampled_from([{}, {"zone": "a"}]),
        has=st.sampled_from([("shop:v",), ("shop:v", "other:w")]),
    ),
    max_size=6,
    unique_by=lambda one: one.worker,
)
NEEDS = st.lists(
    st.builds(
        need,
        st.sampled_from(KEYS),
        st.integers(0, 8),
        st.integers(0, 3),
        cpus=st.sampled_from([None, 0.0, 0.3, 1.0, 2.0]),
        gpus=st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.0]),
        memory=st.sampled_from([0, 2]),
        other=st.sampled_from([{}, {"tpu": 1.0}]),
        labels=st.sampled_from([{}, {}, {"zone": "a"}]),
        per_host=st.sampled_from([None, None, 2]),
    ),
    max_size=4,
    unique_by=lambda one: one.key,
)


def check(needs: list[Need], hosts: list[HostRecord], placement: Placement) -> None:
    """Nothing is over a limit, and nothing is placed that is not wanted."""
    by_key = {one.key: one for one in needs}
    spread: Counter[tuple[Key, str]] = Counter()
    for one in hosts:
        used, memory, tpus, gpus, soft = 0.0, 0, 0.0, Counter[str](), 0.0
        for slot in placement.assignments[one.worker]:
            key = Key(slot.app, slot.version, slot.deployment)
            takes = by_key[key].resources
            places = slot.count * (1.0 if takes.cpus is None else takes.cpus)
            used, soft = used + places, soft + (places if takes.cpus is None else 0)
            memory, tpus = memory + slot.count * takes.memory, tpus + slot.count * takes.other.get("tpu", 0)
            gpus.update({device: slot.count * min(1.0, takes.gpus) for device in slot.devices})
            spread[key, one.host] += slot.count
            assert f"{key.app}:{key.version}" in one.has
            assert takes.labels.items() <= one.labels.items()
            assert len(slot.devices) == (takes.gpus if takes.gpus >= 1 else int(takes.gpus > 0))
        assert used <= one.places + 1e-6 or (one.is_soft and one.places and soft)
        assert not one.memory or memory <= one.memory
        assert tpus <= one.resources.get("tpu", 0) + 1e-6
        assert all(part <= 1 + 1e-6 for part in gpus.values())
        assert set(gpus) <= {*one.devices}
    for (key, _), count in spread.items():
        assert count <= (by_key[key].resources.per_host or 1000)
    for key, wanted in by_key.items():
        missing = sum(one.missing for one in placement.shortages if one.key == key)
        placed = sum(counts(placement, key).values())
        assert placed <= wanted.count
        is_offered = any(one.places and one.app in ("", key.app) for one in hosts)
        assert placed + missing == wanted.count or not is_offered


@pytest.mark.slow
@given(NEEDS, HOSTS, st.randoms(use_true_random=False))
def test_nothing_is_over_a_limit_whatever_changes_and_each_leader_computes_the_same(
    needs: list[Need], hosts: list[HostRecord], chance: random.Random
) -> None:
    placement = place(needs, hosts, {}, {})
    for _ in range(3):
        check(needs, hosts, placement)
        again = place(needs, hosts, placement.assignments, running(placement))
        assert again == placement, "a second call changes something"
        shuffled = chance.sample(needs, len(needs)), chance.sample(hosts, len(hosts))
        assert place(*shuffled, placement.assignments, running(placement)) == placement
        needs = [replace(one, count=max(0, one.count + chance.randint(-3, 3))) for one in needs]
        hosts = [replace(one, places=max(0, one.places + chance.randint(-1, 1))) for one in hosts]
        placement = place(needs, hosts, placement.assignments, running(placement))


@pytest.mark.slow
@given(NEEDS, HOSTS.filter(bool))
def test_without_a_host_only_what_was_there_moves(needs: list[Need], hosts: list[HostRecord]) -> None:
    before = place(needs, hosts, {}, {})

    after = place(needs, hosts[1:], before.assignments, running(before))

    for one in hosts[1:]:
        for key in KEYS:
            assert counts(before, key)[one.worker] <= counts(after, key)[one.worker]


@pytest.mark.slow
@given(NEEDS, HOSTS)
def test_evening_out_comes_to_an_end(needs: list[Need], hosts: list[HostRecord]) -> None:
    needs = [replace(one, least=0) for one in needs]
    placement = place(needs, hosts[:1], {}, {})
    for _ in range(40):
        moved = rebalance(needs, hosts, placement.assignments)
        if moved is None:
            return
        placement = place(needs, hosts, moved, running(placement))
        placement = place(needs, hosts, placement.assignments, running(placement))
        check(needs, hosts, placement)
    raise AssertionError("replicas move for ever")


@pytest.mark.parametrize(
    ("gpus", "count", "found"),
    [
        (0.0, 3, {(): 3}),
        (1.0, 2, {("0",): 1, ("1",): 1}),
        (2.0, 1, {("0", "1"): 1}),
        (0.5, 3, {("0",): 2, ("1",): 1}),
        (1.0, 3, {("0",): 1, ("1",): 1, (): 1}),
    ],
)
def test_replicas_that_are_pinned_share_the_gpus_of_their_worker(
    gpus: float, count: int, found: dict[tuple[str, ...], int]
) -> None:
    pinned = devices_of_pins(("0", "1"), [need(A, count, gpus=gpus), need(B, 1)])

    assert pinned == {A: found, B: {(): 1}}


@pytest.mark.parametrize("is_first", [True, False])
def test_the_work_grows_with_the_deployments_and_not_with_their_square(is_first: bool) -> None:
    def calls(count: int) -> int:
        needs, hosts = [need(Key("shop", "v", f"D{number}"), 1) for number in range(count)], [host("a", 10_000)]
        before = {} if is_first else place(needs, hosts, {}, {}).assignments
        made = Counter[str]()
        sys.setprofile(lambda frame, event, argument: made.update([event]))
        try:
            place(needs, hosts, before, {})
        finally:
            sys.setprofile(None)
        return made["call"]

    assert calls(400) < 6 * calls(100)
