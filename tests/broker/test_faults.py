"""What callers know of a deployment that cannot be started, and which of their calls are refused for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from qserve.base.clock import clock
from qserve.base.keyring import Keyring
from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.faults import Faults
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Call
from qserve.exceptions import DeploymentUnavailableError
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.sealing import Seal
from qserve.wire.status import FAILED, RUNNING, ReplicaStatus, report_place

HOUR_MS = 3_600_000
RECORD = ApplicationRecord(
    "app", "v", "Front", deployments={name: DeploymentRecord(name) for name in ("Front", "Model", "Other")}
)


def fault(version: str = "v", for_ms: float = HOUR_MS, state: str = FAILED, name: str = "") -> ReplicaStatus:
    return ReplicaStatus(name, "Model", version, state, message="no disk", until_ms=clock.judge_ms() + for_ms)


@pytest.fixture
def plane(settings: Settings) -> Iterator[ClientPlane]:
    with closing(ClientPlane(settings)) as plane:
        plane.registry.stage(RECORD)
        plane.registry.promote(RECORD)
        yield plane


@pytest.mark.parametrize(
    ("noted", "deployment", "is_refused"),
    [
        (fault(), "Model", True),
        (fault(), "Front", True),
        (fault(), "Other", False),
        (fault("another version"), "Model", False),
        (fault(for_ms=-1), "Model", False),
    ],
)
def test_calls_are_refused_that_would_wait_for_it(
    plane: ClientPlane, noted: ReplicaStatus, deployment: str, is_refused: bool
) -> None:
    plane.registry.faults.note("app", noted)
    error = plane.unavailable(RECORD, deployment)

    if not is_refused:
        assert error is None
        return
    assert isinstance(error, DeploymentUnavailableError)
    assert (error.deployment, error.status, error.code) == ("Model", 503, "deployment_unavailable")
    assert str(error) == "deployment 'Model' of application 'app' has no replica, and none can be started: no disk"
    ref = plane.submit(Call("app", deployment, "__call__", ()))
    assert str(ref.error()) == str(error)


def test_only_what_is_sealed_for_the_application_is_believed(
    plane: ClientPlane, client: redis.Redis, settings: Settings, keys: Keys
) -> None:
    seal, faults = Seal(settings.keyring), plane.registry.faults
    place = report_place("app", "")
    others = [
        fault().encode(),
        Seal(Keyring(b"the-key-of-somebody-else")).seal(place, fault().encode()),
        seal.seal(report_place("other", ""), fault().encode()),
        seal.seal(report_place("app", "r"), fault(name="r").encode()),
        seal.seal(place, fault(state=RUNNING).encode()),
        seal.seal(place, b"{}"),
    ]
    for stored in others:
        client.hset(keys.faults, "app", stored)
        plane.registry.find("app")
        assert faults.known == {}, stored
    client.hset(keys.faults, "app", seal.seal(place, fault().encode()))
    plane.registry.find("app")
    assert [*faults.known] == ["app"]
    client.delete(keys.faults)


def test_a_key_that_was_overwritten_keeps_no_application_from_being_read_and_is_replaced(
    plane: ClientPlane, client: redis.Redis, keys: Keys, settings: Settings
) -> None:
    client.set(keys.faults, "something else")
    assert plane.registry.find("app") == RECORD
    plane.registry.publish(keys.gateway("g"), "1-0")

    Faults(client, keys, Seal(settings.keyring)).note("app", fault())
    plane.registry.publish(keys.gateway("g"), "1-0")
    assert [*plane.faults] == ["app"]
