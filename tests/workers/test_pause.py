"""A pause and other options reach replicas through their supervisor, and they go on with them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import redis
from processes import wait_until
from qserve_workers.process.lifecycle import Lifecycle
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.reader import Backlog, Delivery, StreamReader
from qserve_workers.replica.spec import ReplicaSpec
from qserve_workers.supervisor.supervisor import Supervisor

from qserve.base.settings import Settings
from qserve.broker.connection import create_group
from qserve.deploy.installation import Installation
from qserve.deploy.wishes import pause
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.status import ReplicaStatus

RECORD = ApplicationRecord("app", "v", "One", deployments={"One": DeploymentRecord("One")})


@pytest.fixture
def installation(settings: Settings, client: redis.Redis) -> Installation:
    installation = Installation(settings, client)
    installation.registry.stage(RECORD)
    installation.registry.promote(RECORD)
    return installation


def test_a_held_reader_takes_nothing_new_and_goes_on_later(settings: Settings, installation: Installation) -> None:
    client, spec = installation.client, ReplicaSpec("One-1", RECORD, "One", settings)
    create_group(client, spec.stream)
    taken: list[Delivery] = []

    def is_blocked() -> bool:
        return any("b" in one["flags"] for one in client.client_list())

    async def until(predicate: Callable[[], object]) -> None:
        await asyncio.to_thread(wait_until, predicate, description="the reader has come there")

    async def scene() -> None:
        plane = LoopPlane(settings, lambda app: RECORD)
        await plane.open()
        plane.loop = asyncio.get_running_loop()
        reader = StreamReader(
            spec,
            plane,
            Backlog(spec.keys, spec.stream),
            room=lambda: 9,
            accept=lambda delivery, _: taken.append(delivery),
            on_out_of_files=print,
        )
        await reader.open()
        await until(is_blocked)
        reader.hold(True)
        await until(lambda: not is_blocked())
        client.xadd(spec.stream, {"h": "x"})
        reader.ask()  # as the end of a call does
        assert not reader._is_reading
        assert client.xlen(spec.stream) == 1 and not taken

        reader.hold(False)
        await until(lambda: taken)
        reader.hold(True)
        reader.hold(False)
        client.xadd(spec.stream, {"h": "y"})
        await until(lambda: len(taken) == 2)
        await reader.close()
        reader.disconnect()
        plane.close()

    asyncio.run(scene())


def test_replicas_that_run_are_told_and_those_that_start_later_begin_paused(
    settings: Settings, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs: list[ReplicaSpec] = []
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append((pid, number)))

    def fork(spec: ReplicaSpec) -> int:
        specs.append(spec)
        return 10_000_000 + len(specs)  # more than a process ID may be

    supervisor = Supervisor(settings, fork=fork)
    supervisor.tick()
    assert [spec.is_paused for spec in specs] == [False]

    pause(installation, "app", "One", True)
    supervisor.tick()
    supervisor.tick()
    assert told == [(10_000_001, signal.SIGHUP)]

    supervisor.processes.clear()
    supervisor.tick()
    assert [spec.is_paused for spec in specs] == [False, True]
    pause(installation, "app", None, False)
    supervisor.tick()
    assert told[1:] == [(10_000_002, signal.SIGHUP)]


def test_user_code_is_not_reconfigured_by_a_pause(settings: Settings, installation: Installation) -> None:
    events: list[object] = []

    class Servable:
        has_health_check = has_stats = False

        async def reconfigure(self, config: object) -> None:
            events.append("reconfigure")

    spec = ReplicaSpec("One-1", RECORD, "One", settings)
    servable: Any = Servable()
    lifecycle = Lifecycle(spec, servable, installation, stop=print, pause=events.append)

    for is_paused in (True, False):
        pause(installation, "app", "One", is_paused)
        asyncio.run(lifecycle._reconfigure())
    assert events == [True, False]


def test_replicas_take_other_options_and_user_code_only_another_user_config(
    settings: Settings, installation: Installation
) -> None:
    events: list[object] = []

    class Servable:
        has_health_check = has_stats = False

        async def reconfigure(self, config: object) -> None:
            events.append(config)
            if config == "bad":
                raise ValueError("no such size")

    spec = ReplicaSpec("One-1", RECORD, "One", settings)
    servable: Any = Servable()
    lifecycle = Lifecycle(spec, servable, installation, stop=print, pause=events.append)
    lifecycle._has_begun = True  # it takes calls

    def register(**options: Any) -> tuple[ReplicaStatus, str]:
        one = DeploymentRecord("One", **options)
        installation.registry.promote(replace(RECORD, deployments={"One": one}))
        asyncio.run(lifecycle._reconfigure())
        (report,) = installation.reports("app").replicas()
        return report, one.config

    report, config = register(grace_s=7.0, max_execution_s=3.0)
    assert (spec.options.grace_s, spec.options.max_execution_s, report.config, events) == (7.0, 3.0, config, [])
    report, config = register(max_ongoing=5)
    assert (spec.options.max_ongoing, report.config, events) == (5, config, [True, False])  # a read for 100 has ended
    report, config = register(user_config='"good"', max_ongoing=5)
    assert (report.config, report.refused, events[2:]) == (config, "", ["good"])
    report, bad = register(user_config='"bad"', max_ongoing=5)
    assert (report.config, report.refused, events[3:]) == (config, bad, ["bad"])
    assert "ValueError: no such size" in report.message
    report, config = register(user_config='"good"', max_ongoing=6)
    assert (report.config, report.refused, report.message, events[4:]) == (
        config,
        "",
        "",
        [True, False, "good"],
    )  # a part of "bad" may hold
