"""Applications in the broker: staged, promoted, withdrawn, deleted. A plain key-value server is enough here."""

from __future__ import annotations

from dataclasses import replace

import fakeredis
import pytest

from qserve.base.keyring import Keyring
from qserve.base.keys import Keys
from qserve.broker.registry import Registry
from qserve.deploy.installation import FAILED, RUNNING, ReplicaReports, ReplicaStatus
from qserve.exceptions import AppNotFound, PayloadError
from qserve.graph.plan import InputKey, Plan, Slot, Step
from qserve.wire.application import ApplicationRecord, DeploymentRecord, DriverRecord, dump_plan
from qserve.wire.codec import Codec
from qserve.wire.sealing import Seal

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


def test_a_replica_is_shown_as_it_last_reported() -> None:
    pool = ReplicaReports(fakeredis.FakeRedis(), Keys("test"), "shop")
    pool.report(ReplicaStatus("r1", "Add", "one", RUNNING))
    pool.report(ReplicaStatus("r2", "Add", "one", RUNNING))

    pool.report(ReplicaStatus("r1", "Add", "one", FAILED, message="why"))
    pool.remove("r2")

    assert pool.replicas() == [ReplicaStatus("r1", "Add", "one", FAILED, message="why")]
