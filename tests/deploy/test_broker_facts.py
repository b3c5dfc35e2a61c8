"""What the broker knows of queues and replicas, as metrics; and what workers have counted, kept there for gateways."""

from __future__ import annotations

import pytest

from qserve.base.clock import clock
from qserve.base.keys import GROUP
from qserve.deploy.installation import Installation
from qserve.fleet import totals
from qserve.fleet.facts import broker_facts
from qserve.metrics.exposition import derived
from qserve.metrics.table import BROKER, SOURCE, TABLE
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.fleet import Scaled, Wish
from qserve.wire.status import RUNNING, STARTING, ReplicaStatus
from qserve.wire.totals import Family, Published, Snapshot

DEPLOYMENTS = {"Front": DeploymentRecord("Front", num_replicas=2), "Model": DeploymentRecord("Model", num_replicas=3)}
SHOP = ApplicationRecord("shop", "v1", "Front", deployments=DEPLOYMENTS)
PLACE = ("shop", "Model")
STARTS: Snapshot = {"serve_deployment_replica_starts": Family(TABLE["serve_deployment_replica_starts"], {PLACE: 2.0})}


def facts_of(installation: Installation) -> Snapshot:
    return broker_facts(installation.client, installation.keys, installation.seal, installation.registry)


@pytest.fixture
def shop(installation: Installation) -> ApplicationRecord:
    installation.registry.stage(SHOP)
    installation.registry.promote(SHOP)
    return SHOP


def test_queues_replicas_and_dead_letters_are_told(installation: Installation, shop: ApplicationRecord) -> None:
    client, keys, stream = installation.client, installation.keys, shop.stream(installation.keys, "Model")
    for at_ms in range(1, 6):
        client.xadd(stream, {b"h": b"x"}, id=f"{at_ms}-0")
    client.xreadgroup(GROUP, "a replica", {stream: ">"}, count=2)
    for key in (keys.delayed_of(stream), keys.dead_letters):
        client.zadd(key, {"call": 1.0})
        client.pexpire(key, 60_000)
    reports, until_ms = installation.reports("shop"), clock.judge_ms() + 60_000
    for name, version, state, until in (
        ("one", "v1", RUNNING, until_ms), ("two", "v1", STARTING, until_ms), ("old", "v0", RUNNING, until_ms),
        ("lost", "v1", RUNNING, 1.0),
    ):  # fmt: skip
        reports.report(ReplicaStatus(name, "Model", version, state, until_ms=until))
    client.hset(keys.pool("shop"), "strange", b"not sealed")
    installation.fleet.note("shop", "Front", Scaled(7))
    installation.fleet.wish("shop", "Model", Wish(count=4, configured=3))

    found = facts_of(installation)

    assert {name: found[name].values.get(PLACE) for name in found if found[name].about.labels == PLACE_LABELS} == {
        "queue_depth": 3,
        "calls_running": 2,
        "serve_autoscaling_total_requests": 5,
        "delayed_calls": 1,
        "queue_oldest_age_seconds": found["queue_oldest_age_seconds"].values[PLACE],
        "serve_autoscaling_target_replicas": 4,
        "replicas_running": 1,
    }
    assert found["queue_oldest_age_seconds"].values[PLACE] > 1e9  # type: ignore[operator]
    assert found["serve_autoscaling_target_replicas"].values["shop", "Front"] == 7
    assert found["serve_deployment_replica_healthy"].values == {(*PLACE, "one"): 1}
    assert found["dead_letters"].values == {(): 1}
    assert found["broker_up"].values == {(): 1}
    assert {*derived(found)} == {name for name, source in SOURCE.items() if source == BROKER}


PLACE_LABELS = ("application", "deployment")


def test_what_a_worker_has_counted_is_there_until_it_ends_or_is_gone(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = installation.client, installation.keys, installation.seal
    assert totals.publish(*store, "one", STARTS, False)
    assert totals.publish(*store, "two", STARTS, True)
    monkeypatch.setattr(totals, "STALE_S", -1.0)
    assert totals.publish(*store, "killed", STARTS, False)
    sealed_for_another = installation.client.hget(installation.keys.totals, "one")
    assert sealed_for_another is not None
    installation.client.hset(installation.keys.totals, "strange", sealed_for_another)

    found = totals.worker_totals(*store)

    assert {name: (said.has_page, said.snapshot) for name, said in found.items()} == {
        "one": (False, STARTS), "two": (True, STARTS),
    }  # fmt: skip
    totals.withdraw(*store, "one")
    assert {*installation.client.hkeys(installation.keys.totals)} == {b"two", b"strange"}


def test_what_is_too_long_for_the_broker_is_not_kept(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = installation.client, installation.keys, installation.seal
    monkeypatch.setattr(totals, "LIMIT", 10)

    assert not totals.publish(*store, "one", STARTS, False)
    assert totals.worker_totals(*store) == dict[str, Published]()
