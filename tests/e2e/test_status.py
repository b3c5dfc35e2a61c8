"""The status tells the truth: what runs, what cannot be started and why, what keeps dying, and what waits."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from http_client import Client
from processes import Started, wait_until
from serving import ask

import qserve
from qserve import api
from qserve.__main__ import main
from qserve.deploy.status import DeploymentStatusOverview
from qserve.deploy.wishes import pause
from qserve.exceptions import DeploymentUnavailableError
from qserve.handle import DeploymentHandle

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


def shown(name: str = "Fragile") -> DeploymentStatusOverview:
    return qserve.status().applications["default"].deployments[name]


@qserve.deployment
class Caller:
    """Calls it as coroutines and threads do, and says what it is told within a second."""

    def __init__(self, model: DeploymentHandle) -> None:
        self.model = model

    async def __call__(self) -> str:
        try:
            return str(await asyncio.wait_for(self.model.remote(), 1))
        except (DeploymentUnavailableError, TimeoutError) as error:
            return str(error)

    def wait(self) -> str:
        try:
            return str(self.model.remote().result(timeout_s=1))
        except (DeploymentUnavailableError, TimeoutError) as error:
            return str(error)


@qserve.deployment
class Front:
    """Holds both."""

    def __init__(self, model: DeploymentHandle, caller: DeploymentHandle) -> None:
        self.model = model

    async def __call__(self) -> int:
        return int(await self.model.remote())


def call(deployment: str, method: str = "__call__") -> Any:
    return qserve.get_deployment_handle(deployment).options(method_name=method).remote()


async def awaited(deployment: str) -> Any:
    return await call(deployment)


def test_a_replica_that_cannot_be_made_again_is_unhealthy_with_count_and_cause_until_it_can(
    client: Client, tmp_path: Path
) -> None:
    model = Fragile.bind(tmp_path)
    qserve.run(Front.bind(model, Caller.bind(model)))
    assert shown().status == "HEALTHY"
    (tmp_path / "broken").touch()
    os.kill(call("Fragile").result(timeout_s=40), signal.SIGKILL)
    waiting = call("Fragile")  # accepted before anybody knows

    wait_until(lambda: "tried 3 times" in shown().message, description="three starts have failed", timeout_s=20)
    found = shown()
    assert found.status == qserve.status().applications["default"].status == "UNHEALTHY"
    assert (found.replica_states, found.status_trigger) == ({}, "REPLICA_STARTUP_FAILED")
    assert found.failed_starts >= 3
    assert found.message.startswith("0 of 1 run, tried ")
    assert "ValueError: the model's file is broken" in found.message
    assert found.waiting_calls == 1
    assert found.oldest_call_s >= 0

    why = (
        "deployment 'Fragile' of application 'default' has no replica, and none can be started: its constructor failed:"
        " ValueError: the model's file is broken"
    )
    # the first may wait for its deadline: the gateway looks every two seconds
    wait_until(
        lambda: client.get(x_request_timeout_seconds="1").status == 503,
        description="requests are refused",
        timeout_s=20,
    )
    refused = client.get()
    assert (refused.code, refused.error["message"], refused.error["deployment"]) == (
        "deployment_unavailable", why, "Fragile",
    )  # fmt: skip
    assert "retry-after" in refused.headers

    # a program is told by the deployment, and by the first one, which may call it
    for name in ("Fragile", "Front"):
        for wait in (lambda name: call(name).result(timeout_s=40), lambda name: asyncio.run(awaited(name))):
            with pytest.raises(DeploymentUnavailableError) as raised:
                wait(name)
            assert (str(raised.value), raised.value.deployment) == (why, "Fragile")
    for method in ("__call__", "wait"):  # a replica looks with each of its heartbeats
        wait_until(
            lambda method=method: call("Caller", method).result(timeout_s=40) == why,
            description=f"a replica is told by {method}",
            timeout_s=40,
        )

    (tmp_path / "broken").unlink()
    assert waiting.result(timeout_s=40) > 0
    wait_until(lambda: shown().status == "HEALTHY", description="the status is healthy again")
    assert (shown().replica_states, shown().message) == ({"RUNNING": 1}, "")
    wait_until(lambda: client.get().status == 200, description="requests are served again", timeout_s=20)
    wait_until(lambda: call("Caller").result(timeout_s=40).isdigit(), description="a replica calls it again")


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


def test_commands_find_what_this_program_runs(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qserve.run(Fragile.bind(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(started.site.folder))

    result = CliRunner().invoke(main, ["status"])

    assert "default  RUNNING  /" in result.stdout, result.output
    assert result.stderr.endswith(f" (pid {os.getpid()}, {started.url})\n")


def test_a_paused_deployment_keeps_its_replica_and_its_calls_wait_until_it_goes_on(tmp_path: Path) -> None:
    handle = qserve.run(Fragile.bind(tmp_path))
    pid = ask(handle)
    installation = api._installation()

    pause(installation, "default", "Fragile", True)
    # calls are taken for a moment, until its supervisor has told the replica
    calls: list[Any] = []
    wait_until(
        lambda: calls.append(call("Fragile")) or shown().waiting_calls >= 2, description="calls wait", timeout_s=40
    )
    found = shown()
    assert (found.status, found.is_paused, found.replica_states) == ("HEALTHY", True, {"RUNNING": 1})
    assert found.message.startswith("paused by ")

    pause(installation, "default", None, False)
    assert {one.result(timeout_s=40) for one in calls} == {pid}
    assert not shown().is_paused
