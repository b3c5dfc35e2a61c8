"""New replicas that come up step by step: never more than there may be, and always enough that serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

import qserve
from qserve.base.settings import Settings
from qserve.define.compile import compile_application
from qserve.deploy import rollout, steps
from qserve.deploy.installation import Installation
from qserve.deploy.registration import Release, release_of
from qserve.deploy.rollout import roll_out
from qserve.deploy.steps import Steps, Surge
from qserve.exceptions import BrokerError, DeployError
from qserve.fleet.values import Key
from qserve.fleet.wanted import needs_of
from qserve.wire.fleet import HostRecord, Scaled
from qserve.wire.status import FAILED, RUNNING, ReplicaStatus

COUNTS = st.integers(0, 9)


@given(st.integers(1, 9), st.integers(1, 9), COUNTS, st.booleans())
def test_steps_have_never_more_than_there_is_room_for_and_hardly_fewer_than_there_were(
    wanted: int, old: int, surge: int, is_full: bool
) -> None:
    one = Steps(wanted, old, old) if is_full else Steps.within(wanted, old, surge)
    new, keep = 0, old
    while new < one.goal:
        more, left = one.limits(new, one.goal)
        assert new < more <= new + one.size and left <= keep and more + left <= one.room
        assert left >= 1 and new + left >= min(new + old, one.room - one.size)  # before the new ones are there
        new, keep = more, left
    assert new >= min(wanted, one.room - 1)
    while keep < old:
        is_last = keep >= one.goal_back
        fewer, back = one.limits_back(keep, is_last)
        assert back > keep and fewer + back <= max(one.room, old) and (fewer >= 1 or is_last)
        keep = back


@pytest.mark.parametrize(
    ("surge", "count", "more"), [(Surge(1), 4, 1), (Surge(0), 4, 0), (Surge(25, True), 4, 1), (Surge(25, True), 5, 2)]
)
def test_a_surge_is_a_number_or_a_percentage(surge: Surge, count: int, more: int) -> None:
    assert surge.of(count) == more


class Model:
    """User code, which nothing here runs."""

    def __init__(self, other: object = None) -> None:
        """Take another deployment."""


@pytest.fixture
def installation(settings: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Installation:
    for name in ("_READ_AGAIN_S", "_FULL_AFTER_S", "_POLL_INTERVAL_S", "_CALLERS_KNOW_S"):
        monkeypatch.setattr(steps, name, 0.0)
    return Installation(settings, client)


def release(installation: Installation, others_count: int = 0, **options: object) -> Release:
    model = qserve.deployment(name="Model", **options)(Model)  # type: ignore[call-overload]
    others = [qserve.deployment(name="Other", num_replicas=others_count)(Model).bind()] if others_count else []
    return release_of(compile_application(model.bind(*others), app_name="shop"), installation.settings.keyring)


def workers(
    installation: Installation,
    places: int,
    seen: list[tuple[int, int]],
    fails_from: int = 99,
    has_code: bool = True,
    is_pinned: bool = False,
) -> Callable[[], None]:
    """Return one round of workers with so many places, and of their leader: it notes how many old and new ones run.

    Parameters:
      fails_from: From which replica on the constructor of another version than the first fails.
      has_code: Whether they have the code of another version than the first.
      is_pinned: Whether they run what they were started for, and offer no places.
    """
    installation = Installation(installation.settings, installation.client)  # of another process
    reports, first = installation.reports("shop"), list[str]()

    def round_of_all() -> None:
        records = installation.registry.versions("shop")
        first[:] = first or [record.version for record in records]
        has = tuple(f"shop:{one.version}" for one in records if has_code or one.version in first)
        installation.fleet.offer(HostRecord("worker", "host", 0 if is_pinned else places, has=has))
        _, last = installation.fleet.rollout("shop")
        assert last is not None
        counts: Counter[Key] = Counter()
        needs = [*needs_of(records, {} if is_pinned else {"shop": last}, {}, {}, {})]
        for need in needs:
            free = places - counts.total() if has_code or need.key.version in first else 0
            counts[need.key] = min(need.count, free)
            shortage = "no place is free" if free < need.count else ""
            installation.fleet.note("shop", need.key.deployment, Scaled(4, 4, shortage=shortage))
        wanted = {f"{key.text}-{n}": (key, n) for key in counts for n in range(counts[key])}
        for one in reports.replicas():
            if one.name not in wanted:
                reports.remove(one.name)
        for name, (key, n) in wanted.items():
            state = FAILED if n >= fails_from and key.version not in first else RUNNING
            status = ReplicaStatus(name, key.deployment, key.version, state, message="ValueError: no", failures=20)
            reports.report(replace(status, worker="worker"))
        old = sum(count for key, count in counts.items() if key.version in first)
        seen.append((old, counts.total() - old))

    return round_of_all


def changes(seen: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [one for n, one in enumerate(seen) if n == 0 or one != seen[n - 1]]


@pytest.mark.parametrize(
    ("count", "places", "surge", "expected"),
    [
        (4, 9, None, [(4, 0), (4, 4), (0, 4)]),
        (4, 9, Surge(1), [(4, 0), (4, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 4), (0, 4)]),
        (4, 9, Surge(50, True), [(4, 0), (4, 2), (2, 2), (2, 4), (0, 4)]),
        (4, 9, Surge(0), [(4, 0), (3, 0), (3, 1), (2, 1), (2, 2), (1, 2), (1, 3), (0, 3), (0, 4)]),
        (4, 4, None, [(4, 0), (3, 0), (3, 1), (2, 1), (2, 2), (1, 2), (1, 3), (0, 3), (0, 4)]),
        (4, 4, Surge(1), [(4, 0), (3, 0), (3, 1), (2, 1), (2, 2), (1, 2), (1, 3), (0, 3), (0, 4)]),
        (4, 5, None, [(4, 0), (4, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 4), (0, 4)]),
        (1, 1, None, [(1, 0), (0, 0), (0, 1)]),
    ],
)
def test_a_version_comes_up_in_steps_where_there_is_a_limit_or_no_room(
    installation: Installation, count: int, places: int, surge: Surge | None, expected: list[tuple[int, int]]
) -> None:
    seen: list[tuple[int, int]] = []
    said: list[str] = []
    check = workers(installation, places, seen)
    roll_out(installation, release(installation, num_replicas=count), check=check)
    del seen[:]

    roll_out(installation, release(installation, num_replicas=count), surge=surge, check=check, on_wait=said.append)
    check()

    steps_seen = changes(seen)
    assert steps_seen == expected[0 if steps_seen[0] == expected[0] else 1 :]
    assert bool(said) is (places < count + (count if surge is None else surge.of(count)))
    assert all("one by one, as there is no other place: Model: no place is free" in line for line in said)


def test_the_last_old_replicas_end_once_they_have_finished_what_they_have_got(
    installation: Installation, client: redis.Redis
) -> None:
    seen: list[tuple[int, int]] = []
    waiting: list[tuple[int, int]] = []
    round_of_all = workers(installation, 2, seen)
    before = roll_out(installation, release(installation, others_count=1), check=round_of_all)
    queue = before.stream(installation.keys, "Model")
    call: Any = client.xadd(queue, {"h": "a call that is half-way"})
    del seen[:]

    def check() -> None:
        round_of_all()
        if any(record.share == 1.0 for record in installation.registry.versions("shop")):
            waiting.append(seen[-1])
            if len(waiting) == 9:
                client.xdel(queue, call)

    roll_out(installation, release(installation, others_count=1), check=check)

    assert waiting[:9] == [(2, 0)] * 9
    assert changes(seen) == [(2, 0), (0, 0), (0, 2)]


def test_a_deploy_that_may_not_ask_how_much_is_left_gives_old_replicas_their_whole_grace_and_says_so(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    said: list[str] = []
    check = workers(installation, 1, seen)
    roll_out(installation, release(installation, graceful_shutdown_timeout_s=0.1), check=check)
    monkeypatch.setattr(steps, "is_idle", lambda *which: None)

    new = release(installation, graceful_shutdown_timeout_s=0.1)
    roll_out(installation, new, restart=True, check=check, on_wait=said.append)

    assert changes(seen)[-2:] == [(0, 0), (0, 1)]
    assert [line for line in said if "XLEN and ZCARD" in line and line.endswith("into the broker's ACL")] == said[1:]


def test_requests_go_to_both_versions_as_replicas_of_both_serve(installation: Installation) -> None:
    seen: list[tuple[int, int]] = []
    shares: list[float] = []
    round_of_all = workers(installation, 4, seen)
    roll_out(installation, release(installation, num_replicas=4), check=round_of_all)

    def check() -> None:
        round_of_all()
        shares.extend(one.share for one in installation.registry.versions("shop") if one.share not in shares)

    roll_out(installation, release(installation, num_replicas=4), check=check)

    assert shares == [0.0, 1 / 3, 2 / 3, 1.0]
    assert min(old + new for old, new in seen) == 3
    assert [one.share for one in installation.registry.versions("shop")] == [0.0]


def test_half_of_the_replicas_serve_where_another_deployment_has_no_room_beside_the_old_one(
    installation: Installation,
) -> None:
    seen: list[tuple[int, int]] = []
    said: list[str] = []
    check = workers(installation, 5, seen)
    roll_out(installation, release(installation, others_count=1, num_replicas=4), check=check)
    del seen[:]

    new = release(installation, others_count=1, num_replicas=4)
    roll_out(installation, new, check=check, on_wait=said.append)

    assert changes(seen) == [(5, 0), (4, 0), (4, 1), (3, 1), (3, 2), (0, 2), (0, 5)]
    assert said[1:] == [
        "all requests go to the new version at once, because Other has no room beside the old one; at that moment,"
        " half of the replicas of Model serve"
    ]


def test_a_deployment_that_is_new_takes_the_places_that_another_does_not_need_any_more(
    installation: Installation,
) -> None:
    seen: list[tuple[int, int]] = []
    check = workers(installation, 4, seen)
    roll_out(installation, release(installation, num_replicas=4), check=check)

    roll_out(installation, release(installation, others_count=1, num_replicas=3), check=check)

    assert min(old + new for old, new in seen[1:]) >= 2 and seen[-1] == (0, 4)


def test_no_old_replica_ends_for_a_deployment_that_is_new_and_would_still_have_no_room(
    installation: Installation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    check = workers(installation, 4, seen)
    before = roll_out(installation, release(installation, num_replicas=4), check=check)
    monkeypatch.setattr(rollout, "_SHORT_AFTER_S", 0.0)
    del seen[:]

    new = release(installation, others_count=1, num_replicas=4)
    with pytest.raises(DeployError, match=r"Other: no place is free"):
        roll_out(installation, new, check=check, ready_timeout_s=0.5)

    assert {old for old, _ in seen} == {4} and installation.registry.versions("shop") == [before]
    assert "deployment 'Other' of application 'shop' waits: no place is free" in caplog.messages


def test_no_old_replica_ends_for_new_ones_that_could_not_take_its_place(installation: Installation) -> None:
    seen: list[tuple[int, int]] = []
    check = workers(installation, 4, seen, has_code=False)
    before = roll_out(installation, release(installation, num_replicas=4), check=check)

    with pytest.raises(DeployError, match=r"not all replicas were ready[^\0]*Model: no place is free"):
        roll_out(installation, release(installation, num_replicas=4), ready_timeout_s=0.5, check=check)

    assert {old for old, _ in seen} == {4}
    assert installation.registry.versions("shop") == [before]


@pytest.mark.parametrize(("surge", "name"), [(Surge(1), "--max-surge"), (None, "max_surge_percent")])
def test_replicas_of_workers_that_run_what_they_were_started_for_all_come_up_at_once(
    installation: Installation, surge: Surge | None, name: str
) -> None:
    seen: list[tuple[int, int]] = []
    said: list[str] = []
    check = workers(installation, 9, seen, is_pinned=True)
    roll_out(installation, release(installation, num_replicas=4), check=check)
    del seen[:]

    new = release(installation, num_replicas=4, max_surge_percent=0)
    roll_out(installation, new, restart=True, surge=surge, check=check, on_wait=said.append)

    assert changes(seen) == [(4, 4)]
    assert said == [f"{name} has no effect on Model: workers run what they were started for"]


@pytest.mark.parametrize("fails", [False, True])
def test_requests_follow_the_replicas_of_pinned_workers_that_are_replaced_one_by_one_from_outside(
    installation: Installation, fails: bool
) -> None:
    """As a Deployment of Kubernetes does it with pods that have no room beside each other."""
    round_of_all = workers(installation, 9, [], is_pinned=True)
    before = roll_out(installation, release(installation, num_replicas=4), check=round_of_all)
    new = release(installation, num_replicas=4)
    reports, shares = installation.reports("shop"), [0.0]
    for one in reports.replicas():
        reports.remove(one.name)

    def check() -> None:
        staged = [one.share for one in installation.registry.versions("shop")[1:]]
        shares.extend(share for share in staged if share != shares[-1])
        count = min(4, len(shares)) if staged else 0
        if fails and count == 4:
            raise DeployError("called off")
        for n in range(4):
            version = new.record.version if n < count else before.version
            reports.report(ReplicaStatus(f"Model-host-{n}", "Model", version, RUNNING, worker="worker"))

    check()
    if not fails:
        roll_out(installation, new, check=check)
        assert shares == [0.0, 0.25, 0.5, 0.75]  # and then it is the only one
        return
    with pytest.raises(DeployError, match="called off"):
        roll_out(installation, new, check=check)
    assert installation.registry.versions("shop") == [before]


def test_a_limit_that_cannot_be_kept_is_named_where_the_deploy_may_not_read_what_workers_offer(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    said: list[str] = []
    check = workers(installation, 9, seen)
    roll_out(installation, release(installation, num_replicas=4), check=check)
    other = Installation(installation.settings, installation.client)

    def forbidden() -> dict[str, HostRecord]:
        raise BrokerError("forbidden") from redis.exceptions.NoPermissionError()

    monkeypatch.setattr(other.fleet, "hosts", forbidden)
    new = release(installation, num_replicas=4, max_surge_percent=0)
    roll_out(other, new, restart=True, check=check, on_wait=said.append)

    (line,) = said
    assert line.startswith("max_surge_percent has no effect on Model: ") and "`qserve doctor --acl`" in line


def test_a_deployment_says_its_own_surge_and_the_command_another(installation: Installation) -> None:
    seen: list[tuple[int, int]] = []
    check = workers(installation, 9, seen)
    roll_out(installation, release(installation, num_replicas=4), check=check)
    new = release(installation, num_replicas=4, max_surge_percent=0)

    roll_out(installation, new, restart=True, check=check)

    assert max(old + new for old, new in seen) == 4


@pytest.mark.parametrize("places", [4, 9])
@pytest.mark.parametrize("fails_from", range(4))
def test_a_version_of_which_any_replica_fails_gives_all_places_and_requests_back(
    installation: Installation, fails_from: int, places: int
) -> None:
    seen: list[tuple[int, int]] = []
    check = workers(installation, places, seen, fails_from=fails_from)
    before = roll_out(installation, release(installation, num_replicas=4), check=check)
    del seen[:]

    new = release(installation, num_replicas=4)
    with pytest.raises(DeployError, match="'Model' could not be started; ValueError: no"):
        roll_out(installation, new, surge=Surge(0), check=check)

    assert min(old + min(new, fails_from) for old, new in seen) >= 3
    check()
    assert seen[-1] == (4, 0) and installation.registry.versions("shop") == [before]
    left = installation.registry.old("shop")
    assert [one.version for one in left] == [new.record.version] * (fails_from > 0)  # it has got requests
    assert installation.registry.former("shop") == []


@pytest.mark.parametrize("fails_from", [1, 2, 3, 99])
def test_each_deployment_serves_with_all_replicas_but_one_on_the_way_to_a_version_and_back(
    installation: Installation, fails_from: int
) -> None:
    seen: list[tuple[int, int]] = []
    round_of_all = workers(installation, 6, seen, fails_from=fails_from)
    before = roll_out(installation, release(installation, 2, num_replicas=4), check=round_of_all)
    new, fewest = release(installation, 2, num_replicas=4), Counter(Model=9.0, Other=9.0)

    def check() -> None:
        round_of_all()
        share = sum(one.share for one in installation.registry.versions("shop"))
        running = Counter(
            (one.version, one.deployment) for one in installation.reports("shop").replicas() if one.state == RUNNING
        )
        for name in fewest:
            parts = (running[before.version, name], 1 - share), (running[new.record.version, name], share)
            fewest[name] = min(fewest[name], *(count / part for count, part in parts if part > 0.001))

    with pytest.raises(DeployError) if fails_from < 99 else nullcontext():
        roll_out(installation, new, check=check)

    assert fewest["Model"] > 2.999 and fewest["Other"] > 0.999
    round_of_all()
    assert seen[-1] == ((6, 0) if fails_from < 99 else (0, 6))


def test_a_version_whose_replicas_die_of_requests_gives_all_places_and_requests_back(
    installation: Installation,
) -> None:
    seen: list[tuple[int, int]] = []
    round_of_all = workers(installation, 4, seen)
    before = roll_out(installation, release(installation, num_replicas=4), check=round_of_all)
    new = release(installation, num_replicas=4)
    words = "died 3 times within 60 s, the last time: killed by SIGSEGV"

    def check() -> None:
        round_of_all()
        if any(one.share for one in installation.registry.versions("shop")):
            status = ReplicaStatus("Model-host-1", "Model", new.record.version, FAILED, message=words)
            installation.reports("shop").report(status)

    with pytest.raises(DeployError, match=f"the replicas of deployment 'Model' {words}"):
        roll_out(installation, new, check=check)

    round_of_all()
    assert seen[-1] == (4, 0) and installation.registry.versions("shop") == [before]
    assert min(old + new for old, new in seen[1:]) >= 3


def test_a_deploy_that_stood_still_for_long_gives_the_new_version_no_requests_any_more(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    check = workers(installation, 4, seen)
    before = roll_out(installation, release(installation, num_replicas=4), check=check)
    monkeypatch.setattr(steps, "SHARE_HOLDS_S", -1.0)

    with pytest.raises(DeployError, match="stood still for so long"):
        roll_out(installation, release(installation, num_replicas=4), check=check)

    check()
    assert seen[-1] == (4, 0) and installation.registry.versions("shop") == [before]
