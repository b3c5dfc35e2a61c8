"""The status tells the truth: what runs, what cannot be started and why, what keeps dying, and what waits."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from http_client import Client
from processes import wait_until
from serving import ask

import qserve
from qserve.deploy.installation import DeploymentStatus

pytestmark = pytest.mark.usefixtures("started")


@qserve.deployment
class Fragile:
    """Cannot be constructed, or dies soon after, while a file says so."""

    def __init__(self, folder: Path) -> None:
        if (folder / "broken").exists():
            raise ValueError("the model's file is broken")
        if (folder / "dying").exists():
            threading.Timer(0.7, os._exit, [9]).start()

    def __call__(self) -> int:
        return os.getpid()


def shown(name: str = "Fragile") -> DeploymentStatus:
    return qserve.status().applications["default"].deployments[name]


def test_a_replica_that_cannot_be_made_again_is_unhealthy_with_count_and_cause_until_it_can(
    client: Client, tmp_path: Path
) -> None:
    handle = qserve.run(Fragile.bind(tmp_path))
    assert shown().status == "HEALTHY"
    (tmp_path / "broken").touch()
    os.kill(ask(handle), signal.SIGKILL)

    wait_until(lambda: "tried 3 times" in shown().message, description="three starts have failed", timeout_s=20)
    found = shown()
    assert found.status == qserve.status().applications["default"].status == "UNHEALTHY"
    assert found.replica_states == {"FAILED": 1}
    assert found.message.startswith("0 of 1 run, tried ")
    assert "ValueError: the model's file is broken" in found.message

    # the first may wait for its deadline: the gateway looks every two seconds
    wait_until(
        lambda: client.get(x_request_timeout_seconds="1").status == 503,
        description="requests are refused",
        timeout_s=20,
    )
    refused = client.get()
    assert (refused.code, "retry-after" in refused.headers) == ("deployment_unavailable", True)
    assert "'Fragile'" in refused.text
    waiting = handle.remote()
    wait_until(lambda: shown().waiting_calls == 1, description="what was accepted waits")
    assert shown().oldest_call_s >= 0

    (tmp_path / "broken").unlink()
    assert waiting.result(timeout_s=40) > 0
    wait_until(lambda: shown().status == "HEALTHY", description="the status is healthy again")
    assert (shown().replica_states, shown().message) == ({"RUNNING": 1}, "")
    wait_until(lambda: client.get().status == 200, description="requests are served again")


def test_replicas_that_keep_dying_are_unhealthy_although_one_runs(tmp_path: Path) -> None:
    handle = qserve.run(Fragile.bind(tmp_path))
    (tmp_path / "dying").touch()
    os.kill(ask(handle), signal.SIGKILL)

    wait_until(lambda: "times within 60 s" in shown().message, description="three replicas have died", timeout_s=40)
    (tmp_path / "dying").unlink()
    assert shown().status == "UNHEALTHY"
    assert "the last time: exit code 9: its user code" in shown().message


def test_the_state_of_the_broker_is_told() -> None:
    found = qserve.status().broker

    assert found.used_bytes > 0
    assert found.limit_bytes > found.used_bytes
    assert found.clients > 0
    assert not found.is_full
