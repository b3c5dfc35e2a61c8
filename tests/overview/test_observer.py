"""A picture has what the broker knows at the moment, and what was known last while the broker does not reply."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import redis

from qserve.base.clock import clock
from qserve.base.keys import GROUP
from qserve.base.settings import Settings
from qserve.deploy.installation import Installation
from qserve.deploy.wishes import pause
from qserve.fleet.totals import publish
from qserve.metrics.table import TABLE
from qserve.overview.observer import Observer
from qserve.overview.picture import Deployment, Picture, Stored
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.fleet import HostRecord
from qserve.wire.status import FAILED, RUNNING, ReplicaStatus
from qserve.wire.totals import Distribution, Family, Snapshot

DEPLOYMENTS = {"Front": DeploymentRecord("Front"), "Model": DeploymentRecord("Model", max_ongoing=4)}
SHOP = ApplicationRecord("shop", "v1", "Front", deployments=DEPLOYMENTS)


@pytest.fixture
def shop(installation: Installation) -> Observer:
    installation.registry.stage(SHOP)
    installation.registry.promote(SHOP)
    for number, state in enumerate((RUNNING, RUNNING, FAILED)):
        report(installation, f"Model-{number}", "Model", "v1", state)
    return Observer(installation)


def report(installation: Installation, name: str, deployment: str, version: str, state: str) -> None:
    status = ReplicaStatus(name, deployment, version, state, pid=7, host="a", worker="a-1", message="it is ill")
    installation.reports("shop").report(status)


def fill(installation: Installation, record: ApplicationRecord, waiting: int, running: int) -> None:
    stream = record.stream(installation.keys, "Model")
    for at_ms in range(1, 1 + waiting + running):
        installation.client.xadd(stream, {b"h": b"x"}, id=f"{at_ms}-0")
    if running:
        installation.client.xreadgroup(GROUP, "a replica", {stream: ">"}, count=running)


def model(picture: Picture) -> Deployment:
    return next(one for one in picture.applications[0].deployments if one.name == "Model")


def test_it_has_applications_deployments_replicas_and_hosts(installation: Installation, shop: Observer) -> None:
    installation.fleet.offer(HostRecord("a-1", "a", 8, devices=("0",)))
    fill(installation, SHOP, waiting=3, running=4)

    picture = shop.look()

    (app,) = picture.applications
    assert (app.name, app.route, app.version, app.change) == ("shop", "/", "v1", None)
    assert {node.deployment for graph in app.graphs for node in graph.nodes} == {"", "Front", "Model"}
    found = model(picture)
    assert (found.waiting, found.running, found.max_ongoing, found.utilisation) == (3, 4, 4, 0.5)
    assert found.oldest_s > 1
    assert found.replicas == {"RUNNING": 2}
    assert [(one.name, one.state, one.host) for one in picture.replicas][:1] == [("Model-0", "RUNNING", "a")]
    assert [(one.worker, one.places, one.used, one.devices) for one in picture.hosts] == [("a-1", 8, 2, ("0",))]
    assert picture.broker.is_up
    assert picture.broker.used_bytes > 0
    assert app.bottleneck is not None
    assert app.bottleneck.deployment == "Model"
    assert json.loads(json.dumps(asdict(picture)))["applications"][0]["name"] == "shop"


def test_an_application_that_is_paused_or_scaled_shows_at_the_next_look(
    installation: Installation, shop: Observer
) -> None:
    assert not model(shop.look()).paused_by

    pause(installation, "shop", "Model", True)

    assert model(shop.look()).paused_by


def test_a_version_that_comes_up_is_a_change_with_its_share(installation: Installation, shop: Observer) -> None:
    shop.look()
    newer = replace(SHOP, version="v2")
    installation.registry.stage(newer)
    installation.registry.share(newer, 0.25, clock.stamp_ms() + 60_000)
    report(installation, "Model-9", "Model", "v2", RUNNING)
    fill(installation, newer, waiting=2, running=0)

    (app,) = shop.look().applications

    assert app.version == "v1"
    assert app.change is not None
    assert (app.change.version, app.change.share, app.change.running) == ("v2", 0.25, {"Model": 1})
    assert app.deployments[1].waiting == 2

    installation.registry.promote(newer)
    fill(installation, SHOP, waiting=0, running=1)

    (app,) = shop.look().applications
    assert (app.version, app.change) == ("v2", None)
    assert (app.deployments[1].waiting, app.deployments[1].running) == (2, 1)  # the old version's as well


def test_rates_come_from_what_workers_have_published(installation: Installation) -> None:
    now = [0.0]
    installation.registry.stage(SHOP)
    installation.registry.promote(SHOP)
    observer = Observer(installation, lambda: now[0])
    times = TABLE["serve_deployment_processing_latency_ms"]

    def publish_calls(count: int) -> None:
        counts = (0, 0, 0, 0, count, *[0] * (len(times.bounds) - 4))
        said: Snapshot = {times.name: Family(times, {("shop", "Model", "/"): Distribution(counts, 0.0)})}
        assert publish(installation.client, installation.keys, installation.seal, "a-1", said, False)

    publish_calls(10)
    assert model(observer.look()).rate is None

    now[0] += 2
    publish_calls(1010)

    found = model(observer.look())
    assert found.rate is not None
    assert found.rate > 0
    assert found.p50_ms == 15.0


def test_a_host_has_the_large_values_of_each_store_as_its_worker_has_published_them(installation: Installation) -> None:
    installation.fleet.offer(HostRecord("a-1", "a", 8))
    installation.fleet.offer(HostRecord("b-1", "b", 8))
    numbers = {"payload_values": 3, "payload_bytes": 5 << 20, "payload_oldest_seconds": 90, "payload_fallbacks": 2}
    said: Snapshot = {name: Family(TABLE[name], {("memory",): value}) for name, value in numbers.items()}
    said["payload_fallbacks"].values["file:///mnt",] = 1
    assert publish(installation.client, installation.keys, installation.seal, "a-1", said, False)

    hosts = {one.worker: one.stored for one in Observer(installation).look().hosts}

    assert hosts == {"a-1": (Stored("file:///mnt", 0, 0, 0.0, 1), Stored("memory", 3, 5 << 20, 90, 2)), "b-1": ()}


def test_without_applications_there_is_a_broker(installation: Installation) -> None:
    picture = Observer(installation).look()

    assert picture.applications == ()
    assert picture.broker.is_up


def test_a_broker_that_is_away_leaves_what_was_known(
    installation: Installation, shop: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shop.look()

    def fail(*arguments: object, **options: object) -> None:
        raise redis.exceptions.ConnectionError("it is away")

    monkeypatch.setattr(installation.client, "execute_command", fail)
    monkeypatch.setattr(installation.client, "info", fail)

    found = shop.look()

    assert not found.broker.is_up
    assert found.applications == before.applications


def test_a_broker_that_was_never_there_has_an_empty_picture() -> None:
    picture = Observer(Installation(Settings(broker_url="redis://127.0.0.1:1"))).look()

    assert not picture.broker.is_up
    assert picture.applications == ()
