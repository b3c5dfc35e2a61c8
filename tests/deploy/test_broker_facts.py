"""What the broker knows of queues and replicas, as metrics; and what workers have counted, kept there for gateways."""

from __future__ import annotations

import re

import pytest

import qserve as serve
from qserve.base.clock import clock
from qserve.base.keyring import Keyring
from qserve.base.keys import GROUP
from qserve.dag import InputNode
from qserve.define.application import compiled
from qserve.deploy.installation import Installation
from qserve.deploy.registration import release_of
from qserve.drivers import DAGDriver
from qserve.fleet import totals
from qserve.fleet.facts import broker_facts
from qserve.metrics.exposition import derived, render
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


def test_each_deployment_of_a_graph_with_500_nodes_is_told(installation: Installation) -> None:
    @serve.deployment
    def step(value: int) -> int:
        return value + 1

    with InputNode() as node:
        for number in range(500):
            node = step.options(name=f"step-{number}").bind(node)
    record = release_of(compiled(DAGDriver.bind(node), "wide"), Keyring(b"k" * 32), "module:node").record
    installation.registry.stage(record)
    installation.registry.promote(record)

    page = render([(facts_of(installation), {})], "qserve_")[0].decode()

    for name in ("queue_depth", "queue_oldest_age_seconds", "replicas_running"):
        told = re.findall(rf'qserve_{name}{{application="wide",deployment="([^"]+)"}} 0.0', page)
        assert {*told} == {f"step-{number}" for number in range(500)}, name


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
