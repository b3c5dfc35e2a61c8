"""``qserve queues`` counts what waits, runs and is delayed, and refuses names that are not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result

from qserve.__main__ import main
from qserve.base.keys import GROUP
from qserve.deploy.installation import Installation
from qserve.wire.application import ApplicationRecord, DeploymentRecord

DEPLOYMENTS = {"Front": DeploymentRecord("Front"), "Model": DeploymentRecord("Model")}
SHOP = ApplicationRecord("shop", "v1", "Front", deployments=DEPLOYMENTS)


def queues(*options: str) -> Result:
    return CliRunner().invoke(main, ["queues", *options])


def fill(installation: Installation, record: ApplicationRecord, waiting: int, running: int, delayed: int) -> None:
    """Put calls into the queue of its model."""
    client, stream = installation.client, record.stream(installation.keys, "Model")
    for at_ms in range(1, 1 + waiting + running):
        client.xadd(stream, {b"h": b"x"}, id=f"{at_ms}-0")
    if running:
        client.xreadgroup(GROUP, "a replica", {stream: ">"}, count=running)
    for number in range(delayed):
        client.zadd(installation.keys.delayed_of(stream), {f"call {number}": 1.0})
        client.pexpire(installation.keys.delayed_of(stream), 60_000)


@pytest.fixture
def shop(installation: Installation) -> ApplicationRecord:
    installation.registry.stage(SHOP)
    installation.registry.promote(SHOP)
    return SHOP


def rows(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.stdout.splitlines()[1:]]


def test_each_deployment_has_a_line_with_what_waits_runs_and_is_delayed(
    installation: Installation, shop: ApplicationRecord
) -> None:
    fill(installation, shop, waiting=3, running=2, delayed=1)

    found = {one["deployment"]: one for one in json.loads(queues("--json").stdout)}

    assert found["Front"] == {
        "application": "shop", "deployment": "Front", "version": "v1", "waiting": 0, "running": 0, "oldest_s": 0.0,
        "delayed": 0, "is_paused": False,
    }  # fmt: skip
    model = found["Model"]
    assert (model["waiting"], model["running"], model["delayed"]) == (3, 2, 1)
    assert model["oldest_s"] > 1_000_000
    shown = {row[1]: row for row in rows(queues("shop"))}
    assert shown["Model"][3:5] == ["3", "2"]
    assert shown["Front"] == ["shop", "Front", "v1", "0", "0", "0.0", "s", "0"]


def test_an_old_version_is_shown_until_it_is_finished(installation: Installation, shop: ApplicationRecord) -> None:
    newer = replace(shop, version="v2")
    fill(installation, shop, waiting=1, running=0, delayed=0)
    installation.registry.stage(newer)
    staged = {(row[1], row[2]) for row in rows(queues())}
    installation.registry.promote(newer)

    assert staged == {("Front", "v1"), ("Model", "v1"), ("Front", "v2"), ("Model", "v2")}
    assert {(row[1], row[2]) for row in rows(queues())} == {("Front", "v2"), ("Model", "v2"), ("Model", "v1")}
    installation.client.xtrim(shop.stream(installation.keys, "Model"), maxlen=0)
    assert {(row[1], row[2]) for row in rows(queues())} == {("Front", "v2"), ("Model", "v2")}


def test_without_an_application_there_is_nothing_to_show(installation: Installation) -> None:
    assert queues().stdout == "no application is deployed\n"
    assert json.loads(queues("--json").stdout) == []


@pytest.mark.parametrize("options", [["shopp"], ["shopp", "--json"]])
def test_an_application_that_is_not_there_is_refused_with_the_nearest_name(
    shop: ApplicationRecord, options: Sequence[str]
) -> None:
    result = queues(*options)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == ("Error: application 'shopp' is not deployed; deployed are: shop. Did you mean 'shop'?\n")
