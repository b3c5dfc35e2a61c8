"""The status says why the broker refuses what is new, and since when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from processes import wait_until

from qserve.base.keys import POOL_TTL_MS, Keys
from qserve.base.settings import Settings
from qserve.broker.load import BrokerStatus
from qserve.cli.status import status
from qserve.deploy.installation import Installation
from qserve.deploy.status import status_of
from qserve.wire.application import ApplicationRecord, DeploymentRecord

SHOP = ApplicationRecord("shop", "v1", "Model", deployments={"Model": DeploymentRecord("Model")})


def with_report(installation: Installation, age_s: int) -> None:
    """Deploy an application one of whose replicas has last reported so long ago."""
    installation.registry.stage(SHOP)
    installation.registry.promote(SHOP)
    key = installation.keys.pool("shop")
    installation.client.hset(key, "replica", "a report")
    installation.client.pexpire(key, POOL_TTL_MS - 1000 * age_s)


def fill(client: redis.Redis) -> Callable[[], Any]:
    limit = client.config_get("maxmemory")["maxmemory"]
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("{x}", "")
    return lambda: client.config_set("maxmemory", limit)


def demote(client: redis.Redis) -> Callable[[], Any]:
    client.replicaof("127.0.0.1", 1)  # where no server is
    return lambda: client.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("break_it", "why"), [(fill, "its memory is full"), (demote, "it is read-only, a replica of another server")]
)
def test_a_broker_that_refuses_what_is_new_is_told_with_the_reason_and_the_time(
    settings: Settings,
    client: redis.Redis,
    break_it: Callable[[redis.Redis], Callable[[], Any]],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installation = Installation(settings, client)
    with_report(installation, age_s=0)
    before = status_of(installation).broker
    assert (before.refuses, before.refuses_for_s) == ("", 0.0)
    monkeypatch.setenv("QSERVE_NAMESPACE", settings.namespace)

    repair = break_it(client)
    try:
        wait_until(lambda: status_of(installation).broker.refuses_for_s > 0, description="its duration is known")
        found = status_of(installation).broker
        assert found.refuses.startswith(why)
        wait_until(
            lambda: status_of(installation).broker.refuses_for_s > found.refuses_for_s,
            description="it grows",
            timeout_s=20,
        )
        shown = CliRunner().invoke(status, ["--broker", settings.named_broker]).output
        assert ": it refuses new requests since 20" in shown
        assert why in shown
    finally:
        repair()
    after = status_of(installation).broker
    assert (after.refuses, after.refuses_for_s) == ("", 0.0)


def test_what_the_broker_does_not_know_is_told_by_the_last_report_of_a_replica(
    settings: Settings, client: redis.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = Installation(settings, client)
    with_report(installation, age_s=60)
    info = {**client.info(), "aof_last_write_status": "err"}
    monkeypatch.setattr(client, "info", lambda: info)

    def found() -> BrokerStatus:
        return status_of(installation).broker

    assert found().refuses == "its disk is full, or cannot be written"
    assert 60 <= found().refuses_for_s < 600
    client.delete(keys.pool("shop"))
    assert found().refuses_for_s == 0
