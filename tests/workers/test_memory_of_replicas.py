"""Replicas that use more memory than they may, where the kernel limits each of them, and where it does not."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from processes import wait_until
from qserve_workers.replica.spec import ReplicaSpec
from qserve_workers.supervisor.memory import MemoryLimits
from qserve_workers.supervisor.supervisor import Supervisor

from qserve.base.memory import ControlGroup, used_bytes
from qserve.base.settings import Settings
from qserve.deploy.installation import Installation
from qserve.deploy.status import status_of
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Resources
from qserve.wire.status import RUNNING, ReplicaStatus

LIMIT = 128 << 20
ONE = DeploymentRecord("One", resources=Resources(memory=LIMIT))
RECORD = ApplicationRecord("app", "v", "One", deployments={"One": ONE})


class System:
    """Starts processes that only hold memory, and go on when they are asked to end, as one that still has a call.

    Parameters:
      holds: How many bytes the next one holds, half of them in a process that it forks.
    """

    def __init__(self) -> None:
        self.holds = 0
        self.pids: list[int] = []

    def fork(self, spec: ReplicaSpec) -> int:
        code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork()"
        code += f"; x = bytearray({self.holds // 2}); time.sleep(60)"
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ, setpgroup=0)
        self.pids.append(pid)
        return pid


@pytest.fixture
def system() -> Iterator[System]:
    made = System()
    yield made
    for pid in made.pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


@pytest.fixture
def supervisor(
    client: redis.Redis, settings: Settings, system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Supervisor:
    registry = Installation(settings, client).registry
    registry.stage(RECORD)
    registry.promote(RECORD)
    made = Supervisor(settings, fork=system.fork)
    made._limits = MemoryLimits(ControlGroup(tmp_path / "none", tmp_path / "none"))
    monkeypatch.setattr("qserve_workers.supervisor.memory._MEASURED_EACH_S", 0.0)
    return made


def state_of(settings: Settings, client: redis.Redis) -> tuple[str, str]:
    found = status_of(Installation(settings, client)).applications["app"].deployments["One"]
    return found.status, found.message


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells it by /proc")
def test_a_replica_that_is_measured_over_its_limit_is_replaced_with_the_reason_in_the_status(
    supervisor: Supervisor, system: System, settings: Settings, client: redis.Redis
) -> None:
    system.holds = int(1.05 * LIMIT)
    supervisor.tick()
    [first] = supervisor.processes.values()
    status = ReplicaStatus(first.spec.name, "One", "v", RUNNING)
    Installation(settings, client).reports("app").report(status)
    system.holds = 0

    wait_until(lambda: supervisor.tick() or first.is_stopping, description="it is stopped")
    supervisor.tick()

    assert not first.killed_because, "it may finish what it runs"
    assert [process.is_stopping for process in supervisor.processes.values()].count(False) == 1
    health, message = state_of(settings, client)
    assert health == "UNHEALTHY"
    assert re.fullmatch(r"1 of 1 run: memory_limit: it used \d+ MiB of its 128 MiB", message)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells it by /proc")
def test_a_replica_that_needs_more_than_its_limit_to_start_counts_as_failed(
    supervisor: Supervisor, system: System, settings: Settings, client: redis.Redis
) -> None:
    system.holds = int(1.05 * LIMIT)

    wait_until(lambda: supervisor.tick() or "memory_limit" in state_of(settings, client)[1], description="it is told")

    assert ", tried 1 time" in state_of(settings, client)[1]
    assert "its process ended while it was starting: memory_limit: it used " in state_of(settings, client)[1]


def test_what_a_replica_has_started_counts_and_what_it_only_shares_does_not(system: System) -> None:
    system.holds = 64 << 20
    pid = system.fork(ReplicaSpec("One-a-1", RECORD, "One", Settings()))

    wait_until(lambda: used_bytes(pid, 0) > 64 << 20, description="both count")
    assert used_bytes(pid, 1 << 40) >= used_bytes(pid, 0), "what is far below its limit is not counted exactly"


def group_of(folder: Path, version: int) -> ControlGroup:
    """This process's control group as version 1 or 2 shows it, in files that only hold what is written."""
    group = folder / ("memory/box" if version == 1 else "box")
    group.mkdir(parents=True)
    (group / ("memory.oom_control" if version == 1 else "memory.events")).touch()
    if version == 2:
        (group / "cgroup.controllers").write_text("cpu memory\n")
        (group / "cgroup.subtree_control").write_text("")
        (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (folder / "membership").write_text("2:memory:/box\n0::/\n" if version == 1 else "0::/box\n")
    return ControlGroup(folder / "membership", folder)


@pytest.mark.parametrize("version", [1, 2])
def test_the_kernel_limits_each_replica_where_it_can_and_its_reason_is_told(tmp_path: Path, version: int) -> None:
    limits = MemoryLimits(group_of(tmp_path, version))
    spec = ReplicaSpec("One-host-0123abcd", RECORD, "One", Settings())

    limits.enter(7, spec)
    limits.enter(8, replace(spec, record=replace(RECORD, deployments={"One": DeploymentRecord("One")})))

    [made] = tmp_path.rglob("qserve-replica-0123abcd")
    assert [*tmp_path.rglob("qserve-replica-*")] == [made]
    assert (made / "cgroup.procs").read_text() == "7"
    name = "memory.limit_in_bytes" if version == 1 else "memory.max"
    assert (made / name).read_text() == str(LIMIT)
    if version == 2:
        assert (tmp_path / "box" / "cgroup.subtree_control").read_text() == "+memory"
        assert (tmp_path / "box" / "qserve-worker" / "cgroup.procs").read_text() == str(os.getpid())
    (made / ("memory.oom_control" if version == 1 else "memory.events")).write_text("oom_kill 1\n")
    assert limits.why_killed(7) == "memory_limit: it was killed at its limit of 128 MiB"
    assert limits.why_killed(8) == ""


def test_a_group_with_processes_of_others_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    group = group_of(tmp_path, 2)
    (tmp_path / "box" / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    caplog.set_level("INFO")

    limits = MemoryLimits(group)
    for pid in (7, 8):
        limits.enter(pid, ReplicaSpec("One-host-0123abcd", RECORD, "One", Settings()))

    assert not [*tmp_path.rglob("qserve-replica-*")]
    assert limits.why_killed(7) == ""
    assert (
        caplog.text.count("is measured, as no control group can be made here: its control group holds other processes")
        == 1
    )
