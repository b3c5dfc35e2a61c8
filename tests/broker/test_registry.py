"""Applications in the broker: staged, promoted, withdrawn, deleted. A plain key-value server is enough here."""

from __future__ import annotations

import time
from dataclasses import replace

import fakeredis
import pytest

from qserve.base.clock import clock
from qserve.base.keyring import Keyring
from qserve.base.keys import Keys
from qserve.broker.registry import Registry
from qserve.deploy.installation import ReplicaReports
from qserve.exceptions import AppNotFound, DeployError, PayloadError
from qserve.graph.plan import InputKey, Plan, Slot, Step
from qserve.wire.application import FORMAT, ApplicationRecord, DeploymentRecord, DriverRecord, dump_plan
from qserve.wire.codec import Codec
from qserve.wire.sealing import Seal
from qserve.wire.status import FAILED, RUNNING, ReplicaStatus

CODEC = Codec()
PLAN = Plan(
    steps=(Step("Add", "add", (Slot(0), 2), {"by": [Slot(1, nested=True)]}, 2),),
    feeds={InputKey(): ((0, 0),), InputKey("item", "k"): ((0, 1),)},
    output=0,
)
RECORD = ApplicationRecord(
    name="shop",
    version="one",
    ingress="DAGDriver",
    deployments={"Add": DeploymentRecord("Add", 2)},
    graphs={"": dump_plan(PLAN, CODEC)},
    driver=DriverRecord("json_request", ("/a",), {"/a": "Add"}),
)


@pytest.fixture
def registry() -> Registry:
    return Registry(fakeredis.FakeRedis(), Keys("test"), Seal(Keyring()))


def test_a_record_arrives_as_it_was_written() -> None:
    assert ApplicationRecord.decode(RECORD.encode()) == RECORD


def test_a_plan_arrives_with_its_arguments_still_encoded() -> None:
    plan, (arguments,) = ApplicationRecord.decode(RECORD.encode()).plans[""]

    assert (plan.feeds, plan.output, plan.steps[0].needs) == (PLAN.feeds, 0, 2)
    assert CODEC.decode(arguments) == [[Slot(0), 2], {"by": [Slot(1, nested=True)]}]


def test_a_record_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(PayloadError, match="record cannot be read"):
        ApplicationRecord.decode(b"\x81\xa1x\x01")


def test_a_staged_version_is_not_yet_what_callers_get(registry: Registry) -> None:
    registry.stage(RECORD)

    with pytest.raises(AppNotFound, match="no application named 'shop' is deployed; deployed are: none"):
        registry.get("shop")
    assert registry.versions("shop") == [RECORD]


def test_an_unsigned_record_is_refused_by_whoever_accepts_any_key(registry: Registry) -> None:
    registry.stage(RECORD)
    registry.promote(RECORD)
    accepting = Registry(registry._client, Keys("test"), Seal(Keyring(None, (b"the-old-key-of-this-test",))))

    with pytest.raises(PayloadError, match="not signed"):
        accepting.get("shop")


@pytest.mark.slow
def test_a_staged_version_gets_its_share_of_requests_until_the_time_is_over(registry: Registry) -> None:
    second, hour_ms = replace(RECORD, version="two"), clock.judge_ms() + 3_600_000
    registry.stage(RECORD)
    registry.promote(RECORD)
    registry.stage(second)

    def part_of_second() -> float:
        return sum(registry.pick("shop").version == "two" for _ in range(1000)) / 1000

    assert part_of_second() == 0.0
    registry.share(second, 0.5, hour_ms)
    assert 0.3 < part_of_second() < 0.7 and registry.get("shop") == RECORD
    registry.share(second, 1.0, hour_ms)
    assert part_of_second() == 1.0
    registry.share(second, 1.0, clock.judge_ms() - 1)
    assert part_of_second() == 0.0
    registry.promote(second)
    assert part_of_second() == 1.0
    assert registry.former("shop") == [RECORD]


def test_a_version_that_got_requests_is_kept_until_they_have_ended_and_never_deployed_again(registry: Registry) -> None:
    first, second, third = (replace(RECORD, version=version) for version in ("one", "two", "three"))
    registry.stage(first)
    registry.promote(first)
    registry.stage(second)
    registry.share(second, 0.5, 1.0)
    registry.stage(third)  # the deployer of the second has died

    with pytest.raises(DeployError, match="another deploy of application 'shop' has taken over"):
        registry.share(second, 0.5, 1.0)
    registry.withdraw(third)

    assert [one.version for one in registry.old("shop")] == ["two"]
    assert registry.former("shop") == []
    registry.delete("shop")
    assert registry.old("shop") == []


def test_callers_go_on_with_the_active_version_while_a_staged_one_cannot_be_read(registry: Registry) -> None:
    registry.stage(RECORD)
    registry.promote(RECORD)
    registry._client.hset(Keys("test").application("shop"), "next", b"nonsense")

    assert registry.serving("shop") == (RECORD, None) and registry.pick("shop") == RECORD


def test_a_promoted_version_replaces_the_one_before(registry: Registry) -> None:
    second = replace(RECORD, version="two")
    registry.stage(RECORD)
    registry.promote(RECORD)
    registry.stage(second)
    assert registry.get("shop") == RECORD

    registry.promote(second)

    assert registry.versions("shop") == [second]


def test_a_withdrawn_version_leaves_the_active_one_as_it_was(registry: Registry) -> None:
    registry.stage(RECORD)
    registry.promote(RECORD)
    registry.stage(replace(RECORD, version="broken"), b"code")

    registry.withdraw(replace(RECORD, version="broken"))

    assert registry.versions("shop") == [RECORD]


def test_the_code_of_a_retired_version_does_not_stay_for_ever(registry: Registry) -> None:
    registry.stage(RECORD, b"code")
    registry.promote(RECORD)
    assert registry.code("shop", "one") == b"code"

    registry.delete("shop")

    assert registry._client.pttl(Keys("test").code("shop", "one")) > 0
    assert registry.names() == []


def test_every_change_has_a_later_id(registry: Registry) -> None:
    first = registry.stage(RECORD)
    second = registry.promote(RECORD)

    assert registry.last_change() == second != first
    assert registry.wait_for_change(first, 0.01) == second


SECOND = replace(RECORD, version="two")
KEY = Keys("test").application("shop")


def stored(registry: Registry, place: str = "active") -> bytes:
    return registry._client.hget(KEY, place)  # type: ignore[return-value]


def put_back(registry: Registry, data: bytes, place: str = "active") -> None:
    """Do what somebody can who may write to the broker and has no key."""
    registry._client.hset(KEY, place, data)


def other_process(registry: Registry) -> Registry:
    return Registry(registry._client, registry._keys, registry._seal)


@pytest.fixture
def released(registry: Registry) -> bytes:
    """Promote a first version and then a second; return the registration of the first."""
    registry.promote(RECORD)
    registry.find("shop")
    first = stored(registry)
    registry.stage(SECOND)
    registry.promote(SECOND)
    assert registry.find("shop") == SECOND
    return first


@pytest.mark.parametrize("is_old", [True, False])
def test_a_registration_that_is_old_or_not_ours_is_refused_once_and_repaired(
    registry: Registry, released: bytes, is_old: bool, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = stored(registry)
    put_back(registry, released if is_old else b"anything")

    assert [registry.find("shop"), registry.get("shop")] == [SECOND, SECOND]
    assert registry.versions("shop") == [SECOND]
    (record,) = caplog.records
    assert (record.levelname, "'shop' is refused" in record.message) == ("ERROR", True)

    change = registry.last_change()
    registry.repair("shop")
    assert stored(registry) == genuine
    assert registry.last_change() != change
    assert other_process(registry).find("shop") == SECOND


def test_a_repair_does_not_touch_what_was_deployed_meanwhile(registry: Registry, released: bytes) -> None:
    put_back(registry, released)
    assert registry.find("shop") == SECOND
    third = replace(RECORD, version="three")
    Registry(registry._client, registry._keys, registry._seal).promote(third)

    registry.repair("shop")

    assert registry.find("shop") == third


def test_what_only_a_later_version_may_read_is_refused_but_not_put_back(registry: Registry, released: bytes) -> None:
    other_process(registry).promote(replace(RECORD, version="three", format=FORMAT + 1))
    later = stored(registry)

    assert registry.find("shop") == SECOND
    registry.repair("shop")

    assert stored(registry) == later


def test_a_staged_version_cannot_be_made_active_by_copying_it(registry: Registry, released: bytes) -> None:
    registry.stage(replace(RECORD, version="three"))
    put_back(registry, stored(registry, "next"))

    assert registry.find("shop") == SECOND


@pytest.mark.parametrize("place", ["active", "next"])
def test_a_registration_that_was_removed_does_not_come_back(registry: Registry, place: str) -> None:
    registry.stage(RECORD) if place == "next" else registry.promote(RECORD)
    assert registry.versions("shop") == [RECORD]
    copy = stored(registry, place)
    registry.withdraw(RECORD) if place == "next" else registry.delete("shop")
    assert registry.versions("shop") == []

    put_back(registry, copy, place)

    assert registry.versions("shop") == []
    registry.repair("shop")
    assert stored(registry, place) is None
    registry.stage(RECORD)
    assert registry.versions("shop") == [RECORD]


@pytest.mark.parametrize("ahead_s", [0, 10_000])
def test_an_application_is_restored_into_an_empty_broker_even_if_its_clock_is_behind(
    registry: Registry, ahead_s: int
) -> None:
    client = registry._client
    client.xadd(Keys("test").changes, {"app": "x"}, id=f"{int(time.time() + ahead_s) * 1000}-0")
    registry.promote(RECORD)
    reader = other_process(registry)
    assert registry.get("shop") == reader.get("shop") == RECORD
    client.flushall()
    assert reader.find("shop") is None

    registry.restore(RECORD)

    assert registry.get("shop") == reader.get("shop") == RECORD
    registry.promote(SECOND)
    assert registry.get("shop") == reader.get("shop") == SECOND


def test_a_replica_refuses_what_is_older_than_the_version_that_it_runs(registry: Registry, released: bytes) -> None:
    replica = other_process(registry)
    replica.remember(registry.get("shop"))
    put_back(registry, released)

    assert replica.find("shop") == SECOND


def test_a_replica_is_shown_as_it_last_reported() -> None:
    pool = ReplicaReports(fakeredis.FakeRedis(), Keys("test"), Seal(Keyring()), "shop")
    pool.report(ReplicaStatus("r1", "Add", "one", RUNNING))
    pool.report(ReplicaStatus("r2", "Add", "one", RUNNING))

    pool.report(ReplicaStatus("r1", "Add", "one", FAILED, message="why"))
    pool.remove("r2")

    assert pool.replicas() == [ReplicaStatus("r1", "Add", "one", FAILED, message="why")]


def reports(registry: Registry, key: bytes = b"the-key-of-this-test") -> ReplicaReports:
    return ReplicaReports(registry._client, registry._keys, Seal(Keyring(key)), "shop")


ONE = ReplicaStatus("r1", "Add", "one", RUNNING)


def test_a_report_that_is_not_sealed_for_its_replica_is_not_believed(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    pool, client, key = reports(registry), registry._client, registry._keys.pool("shop")
    pool.report(ONE)
    other = ReplicaReports(client, registry._keys, Seal(Keyring(b"the-key-of-this-test")), "other")
    other.report(ReplicaStatus("r4", "Add", "one", RUNNING))
    genuine = client.hget(key, "r1")
    forged = {
        "r2": genuine,
        "r3": ONE.encode(),
        "r4": client.hget(registry._keys.pool("other"), "r4"),
        b"\xff": genuine,
    }

    client.hset(key, mapping=forged)  # type: ignore[arg-type]

    assert pool.replicas() == [ONE]
    first = pool.last("r1")
    assert first is not None and first.state == RUNNING
    assert pool.last("r2") is None
    assert "the report of replica 'r2' of application 'shop': a message's signature is wrong" in caplog.text


@pytest.mark.parametrize("how", ["removed", "changed"])
def test_a_report_that_somebody_touches_is_made_again_and_that_is_named_once(
    registry: Registry, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool, client, key = reports(registry), registry._client, registry._keys.pool("shop")
    one = replace(ONE, name=f"{how}-{time.monotonic()}")
    pool.report(one)
    pool.report(replace(one, config="other"))
    assert not caplog.records

    for _ in range(3):
        client.hdel(key, one.name) if how == "removed" else client.hset(key, one.name, b"forged")
        pool.report(one)

    assert pool.replicas() == [one]
    (said,) = [record.message for record in caplog.records]
    assert said == f"the report of replica {one.name} was {how} in the broker, and is sent again"


def test_an_old_report_that_is_put_back_shows_no_dead_replica(registry: Registry) -> None:
    pool, now_ms = reports(registry), time.time() * 1000
    pool.report(replace(ONE, until_ms=now_ms - 1))
    pool.report(replace(ONE, name="r2", until_ms=now_ms + 60_000))

    assert [one.name for one in pool.replicas()] == ["r2"]
    last = pool.last("r1")
    assert last is not None and last.state == RUNNING


def test_old_versions_are_kept_for_whoever_finishes_them(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    versions = [replace(RECORD, version=f"v{number}") for number in range(20)]
    for record in versions:
        registry.promote(record)

    old = registry.old("shop")
    assert {record.version for record in old} == {record.version for record in versions[3:-1]}
    registry._client.hset(KEY, "old:v19", stored(registry, "old:v18"))
    registry._client.hset(KEY, "old:v18", stored(registry, "active"))
    assert {record.version for record in registry.old("shop")} == {record.version for record in versions[3:-2]}
    assert "is not registered as a retired version" in caplog.text
