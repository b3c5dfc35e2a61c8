"""The page with what waits and runs, by which workers are scaled from outside."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from fakes import FakePlane
from flask.testing import FlaskClient
from qserve_gateway.application import create_app
from qserve_gateway.queues import Queues

from qserve.base.settings import Settings
from qserve.wire.application import ApplicationRecord, DeploymentRecord

SHOP = ApplicationRecord(
    "shop", "v1", "Front", deployments={name: DeploymentRecord(name) for name in ("Model", "Front")}
)
NEXT_SHOP = ApplicationRecord("shop", "v2", "Front", deployments=SHOP.deployments)
OFFICE = ApplicationRecord("office", "v1", "Model", None, deployments={"Model": DeploymentRecord("Model")})


class Broker:
    """Answers with the loads that it is given, by the names of queues, and counts how often it is asked."""

    def __init__(self, plane: Any, **loads: list[int]) -> None:
        self.loads, self.asked = loads, 0
        self._plane = plane
        plane.client.execute_command = self.execute_command

    def execute_command(self, *command: Any) -> list[list[int]]:
        self.asked += 1
        streams = [word for word in command if isinstance(word, str) and ":q:" in word]
        return [self.loads.get("_".join(stream.split(":")[-3:]), [0, 0, 0]) for stream in streams]


@pytest.fixture
def plane() -> Any:
    plane: Any = FakePlane(SHOP, OFFICE)
    versions = {"shop": [SHOP, NEXT_SHOP], "office": [OFFICE]}
    plane.registry.readable = lambda app, *names: versions[app]
    return plane


def client_of(plane: Any) -> FlaskClient:
    return create_app(Settings(), plane, watch=False).test_client()


def test_it_adds_up_the_calls_of_a_deployment_s_versions(plane: Any) -> None:
    Broker(plane, shop_v1_Model=[3, 2, 1500], shop_v2_Model=[1, 0, 250], office_v1_Model=[0, 4, 0])

    found = client_of(plane).get("/-/queues?app=shop&deployment=Model").get_json()

    model = {"application": "shop", "deployment": "Model", "waiting": 4, "running": 2, "ongoing": 6, "oldest_s": 1.5}
    assert found == {"queues": [model], "ongoing": 6}
    everything = client_of(plane).get("/-/queues").get_json()
    assert [(one["application"], one["deployment"], one["ongoing"]) for one in everything["queues"]] == [
        ("office", "Model", 4), ("shop", "Model", 6), ("shop", "Front", 0),
    ]  # fmt: skip
    assert everything["ongoing"] == 10


def test_the_broker_is_asked_twice_a_second_at_most(plane: Any) -> None:
    broker, now = Broker(plane), [0.0]
    queues = Queues(plane, lambda: now[0])

    for now[0] in (0.0, 0.1, 0.49, 0.5, 0.9):
        queues.page({})

    assert broker.asked == 2


@pytest.mark.parametrize("query", ["?app=other", "?app=office&deployment=Front", "?deployment=Other"])
def test_what_is_not_deployed_is_an_error_and_not_zero_calls(query: str, plane: Any) -> None:
    Broker(plane)

    assert client_of(plane).get(f"/-/queues{query}").status_code == 404


def test_a_broker_that_does_not_answer_is_an_error_and_not_zero_calls(plane: Any) -> None:
    def execute_command(*command: Any) -> None:
        raise redis.exceptions.ConnectionError

    plane.client.execute_command = execute_command

    assert client_of(plane).get("/-/queues").status_code == 503


def test_it_needs_the_token_that_other_requests_need(plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Broker(plane)
    monkeypatch.setenv("QSERVE_API_TOKEN", "token-of-this-test")
    client = client_of(plane)

    assert client.get("/-/queues").status_code == 401
    assert client.get("/-/queues", headers={"Authorization": "Bearer token-of-this-test"}).status_code == 200
