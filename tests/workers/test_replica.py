"""A replica without user code."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.replica import Replica
from qserve_workers.replica.spec import ReplicaSpec

from qserve.base.settings import Settings
from qserve.engine.servable import Servable
from qserve.wire.application import ApplicationRecord, DeploymentRecord

RECORD = ApplicationRecord("app", "v", "One", deployments={"One": DeploymentRecord("One")})


def test_a_replica_that_is_told_to_stop_before_it_could_connect_ends_at_once(settings: Settings) -> None:
    nothing: Any = None
    began: list[int] = []

    async def scene() -> int:
        plane = LoopPlane(settings, lambda app: RECORD)
        await plane.open()
        away = replace(settings, broker_url="redis://127.0.0.1:1")
        replica = Replica(ReplicaSpec("One-1", RECORD, "One", away), Servable(print, (), {}), nothing, plane)
        plane.loop.call_later(0.2, replica.stop, 3)
        exit_code = await asyncio.wait_for(replica.run(lambda: began.append(1)), 2.0)
        plane.close()
        return exit_code

    assert asyncio.run(scene()) == 3
    assert not began
