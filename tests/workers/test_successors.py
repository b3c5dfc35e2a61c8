"""In which order replicas are replaced that have run ``max_requests`` calls, or use more than ``max_memory_mb``."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
from collections.abc import Callable, Iterator

import pytest
import redis
from processes import wait_until
from qserve_workers.replica.spec import Leaving, Note, ReplicaSpec
from qserve_workers.supervisor import recycling
from qserve_workers.supervisor.offer import Capacity
from qserve_workers.supervisor.replica_process import ReplicaProcess
from qserve_workers.supervisor.scope import Scope
from qserve_workers.supervisor.supervisor import Supervisor

from qserve.base.settings import Settings
from qserve.deploy.installation import Installation
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Resources
from qserve.wire.status import RUNNING, ReplicaStatus

Start = Callable[..., Supervisor]


@pytest.fixture
def start(client: redis.Redis, settings: Settings) -> Iterator[Start]:
    """Returns a supervisor of a deployment whose replicas only wait, and end when they are told to."""
    pids: list[int] = []

    def fork(spec: ReplicaSpec) -> int:
        command = ["/bin/sh", "-c", "trap '' HUP; exec sleep 60"]
        pids.append(os.posix_spawn(command[0], command, os.environ))
        return pids[-1]

    def started(deployment: DeploymentRecord, replicas: int = 1, gpus: tuple[str, ...] = ()) -> Supervisor:
        record = ApplicationRecord("app", "v", "One", deployments={"One": deployment})
        registry = Installation(settings, client).registry
        registry.stage(record)
        registry.promote(record)
        made = Supervisor(settings, Scope(replicas=replicas), Capacity(devices=gpus), fork=fork)
        made.tick()
        assert len(made.processes) == replicas
        return made

    yield started
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def report_running(client: redis.Redis, settings: Settings, process: ReplicaProcess) -> None:
    Installation(settings, client).reports("app").report(ReplicaStatus(process.spec.name, "One", "v", RUNNING))


def test_one_at_a_time_is_replaced_and_stops_once_its_successor_takes_calls(
    start: Start, client: redis.Redis, settings: Settings
) -> None:
    supervisor = start(DeploymentRecord("One"), replicas=2)
    first, second = supervisor.processes.values()
    for process in (first, second):
        report_running(client, settings, process)
        process.spec.note.leave(Leaving.REQUESTS)

    for _ in range(3):
        supervisor.tick()

    successor, *more = [one for one in supervisor.processes.values() if one not in (first, second)]
    assert not more
    assert not (first.is_stopping or second.is_stopping)
    assert [first.is_replaced, second.is_replaced] == [True, False]

    report_running(client, settings, successor)
    wait_until(lambda: supervisor.tick() or first not in supervisor.processes.values(), description="it has ended")

    assert first.stopped_because == "max_requests"
    wait_until(lambda: supervisor.tick() or second.is_replaced, description="the second one is due now")
    assert not second.is_stopping


def test_a_successor_that_cannot_be_started_costs_nothing(
    start: Start, client: redis.Redis, settings: Settings
) -> None:
    supervisor = start(DeploymentRecord("One"))
    (first,) = supervisor.processes.values()
    report_running(client, settings, first)
    first.spec.note.leave(Leaving.REQUESTS)
    supervisor.tick()
    (successor,) = [one for one in supervisor.processes.values() if one is not first]

    os.kill(successor.pid, signal.SIGKILL)
    wait_until(lambda: supervisor.tick() or successor not in supervisor.processes.values(), description="it is dead")

    assert not first.is_stopping


def test_where_gpus_are_assigned_the_old_replica_ends_before_another_one_needs_them(
    start: Start, client: redis.Redis, settings: Settings
) -> None:
    supervisor = start(DeploymentRecord("One", resources=Resources(gpus=1)), gpus=("0",))
    (first,) = supervisor.processes.values()
    report_running(client, settings, first)
    first.spec.note.leave(Leaving.REQUESTS)

    supervisor.tick()

    assert first.stopped_because == "max_requests"


def test_fewer_are_wanted_while_one_is_replaced(start: Start, client: redis.Redis, settings: Settings) -> None:
    supervisor = start(DeploymentRecord("One"), replicas=2)
    first, second = supervisor.processes.values()
    for process in (first, second):
        report_running(client, settings, process)
    first.spec.note.leave(Leaving.REQUESTS)

    supervisor.scope.__dict__["replicas"] = 1
    wait_until(lambda: supervisor.tick() or first not in supervisor.processes.values(), description="it has ended")

    assert [*supervisor.processes.values()] == [second]


def test_memory_counts_once_a_replica_has_taken_calls_for_a_while(
    start: Start,
    client: redis.Redis,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(recycling, "_MEASURED_EACH_S", 0.0)
    supervisor = start(DeploymentRecord("One", max_memory=1))
    (first,) = supervisor.processes.values()
    supervisor.tick()
    report_running(client, settings, first)

    supervisor.tick()

    assert not first.is_replaced
    assert "its max_memory_mb of 0: it is replaced again and again. Raise max_memory_mb" in caplog.text
    monkeypatch.setattr(recycling, "YOUNG_S", 0.0)
    supervisor.tick()
    assert (first.is_replaced, first.spec.note.leaving) == (True, "max_memory_mb")


def test_notes_in_one_memory_do_not_touch_one_another() -> None:
    shared = mmap.mmap(-1, 3 * Note.SIZE)
    first, second, third = (Note(shared, at * Note.SIZE) for at in range(3))
    for note in (first, third):
        note.write(3)
        note.leave(Leaving.MEMORY)
        note.admit()

    second.clear()

    assert [note.leaving for note in (first, second, third)] == ["max_memory_mb", "", "max_memory_mb"]
    assert [note.agrees(3) for note in (first, second, third)] == [True, False, True]
    assert first.wait_until_admitted(lambda: True)
