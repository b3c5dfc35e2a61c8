"""The supervisor on a real broker, with a system that does not give it what it wants."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import redis
from children import end_children, sleeping_child
from processes import wait_until
from qserve_workers.replica.spec import MEANINGS, Exit, Note, ReplicaSpec
from qserve_workers.supervisor import supervisor as supervisor_module
from qserve_workers.supervisor.own_code import OwnCode
from qserve_workers.supervisor.replica_process import MemoryWatch, describe_end
from qserve_workers.supervisor.scope import Scope
from qserve_workers.supervisor.supervisor import Supervisor
from qserve_workers.supervisor.trouble import Trouble

from qserve.base.keys import Keys
from qserve.base.memory import ControlGroup
from qserve.base.settings import Settings
from qserve.broker.registry import Registry
from qserve.deploy.installation import Installation, ReplicaReports
from qserve.deploy.rollout import wait_until_running
from qserve.deploy.sources import read_sources
from qserve.deploy.status import status_of
from qserve.exceptions import BrokerError, BrokerUnavailable, DeployError
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.sealing import Seal
from qserve.wire.status import FAILED, RUNNING, STARTING, ReplicaStatus

RECORD = ApplicationRecord("app", "v", "One", deployments={"One": DeploymentRecord("One")})


class System:
    """Forks children that only wait, unless it is short of something.

    Parameters:
      shortage: The error number that forks fail with; 0 when they succeed.
    """

    def __init__(self) -> None:
        self.shortage = 0
        self.asked_at: list[float] = []
        self.pids: list[int] = []

    def fork(self, spec: ReplicaSpec) -> int:
        self.asked_at.append(time.monotonic())
        if self.shortage:
            raise OSError(self.shortage, os.strerror(self.shortage))
        pid = sleeping_child()
        self.pids.append(pid)
        return pid


@pytest.fixture
def system() -> Iterator[System]:
    made = System()
    yield made
    end_children(made.pids)


@pytest.fixture
def supervisor(client: redis.Redis, settings: Settings, keys: Keys, system: System) -> Supervisor:
    registry = Registry(client, keys, Seal(settings.keyring))
    registry.stage(RECORD)
    registry.promote(RECORD)
    return Supervisor(settings, fork=system.fork)


@pytest.mark.slow
@pytest.mark.row("F38")
@pytest.mark.parametrize("shortage", [errno.EAGAIN, errno.ENOMEM])
def test_a_system_without_processes_is_reported_asked_more_and_more_slowly_and_forgiven(
    supervisor: Supervisor, system: System, client: redis.Redis, settings: Settings, keys: Keys, shortage: int
) -> None:
    pool = ReplicaReports(client, keys, Seal(settings.keyring), "app")
    system.shortage = shortage
    wait_until(lambda: supervisor.tick() or len(system.asked_at) == 4, description="it has asked four times")

    (status,) = pool.replicas()
    name = errno.errorcode[shortage]
    assert (status.state, status.message) == (FAILED, f"cannot_start: {name}: {os.strerror(shortage)}")
    pauses = [later - earlier for earlier, later in pairwise(system.asked_at)]
    assert all(pause >= 0.09 * 2**count for count, pause in enumerate(pauses)), pauses
    with pytest.raises(
        DeployError, match=f"not all replicas were ready within 0 s: One .0 of 1.\nOne: cannot_start: {name}"
    ):
        wait_until_running(RECORD, pool, timeout_s=0)

    system.shortage = 0
    wait_until(lambda: supervisor.tick() or supervisor.processes, description="a replica is started")
    assert [status.state for status in pool.replicas()] == [STARTING]


@pytest.mark.slow
def test_a_replica_that_runs_does_not_hide_that_no_other_one_can_be_started(
    system: System, client: redis.Redis, settings: Settings, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_CHECK_AGAIN_S", 0.0)
    registry, pool = (
        Registry(client, keys, Seal(settings.keyring)),
        ReplicaReports(client, keys, Seal(settings.keyring), "app"),
    )
    registry.stage(RECORD)
    registry.promote(RECORD)
    two = Supervisor(settings, Scope(replicas=2), fork=system.fork)
    two.tick()
    running, *_ = two.processes.values()
    pool.report(ReplicaStatus(running.spec.name, "One", "v", RUNNING))

    def failures() -> int:
        two.tick()
        for process in two.processes.values():
            if process is not running:
                os.kill(process.pid, signal.SIGKILL)
        return sum(one.failures for one in pool.replicas())

    wait_until(lambda: failures() == 4, description="each failure in a row is counted")
    wait_until(lambda: two.tick() or len(two.processes) == 2, description="it is tried again")
    other = next(process for process in two.processes.values() if process is not running)
    pool.report(ReplicaStatus(other.spec.name, "One", "v", RUNNING))
    wait_until(lambda: two.tick() or not any(one.failures for one in pool.replicas()), description="that is over")


@pytest.mark.slow
def test_callers_are_told_of_a_deployment_that_cannot_be_started_until_a_replica_runs_anywhere(
    supervisor: Supervisor, system: System, client: redis.Redis, settings: Settings, keys: Keys
) -> None:
    caller, pool = (
        Registry(client, keys, Seal(settings.keyring)),
        ReplicaReports(client, keys, Seal(settings.keyring), "app"),
    )

    def told() -> list[str]:
        caller.find("app")
        return [f"{app}: {fault.deployment} {fault.message}" for app, fault in caller.faults.known.items()]

    supervisor.tick()
    (process,) = supervisor.processes.values()
    for number in range(3):
        wait_until(lambda: supervisor.tick() or supervisor.processes, description="a replica is started")
        (process,) = supervisor.processes.values()
        assert told() == [], number
        failed = ReplicaStatus(
            process.spec.name, "One", "v", FAILED, message=f"it failed:\n  File x\n    x\nValueError: {number}"
        )
        pool.report(failed)
        os.kill(process.pid, signal.SIGKILL)
        # the next one may be started in the same round
        wait_until(
            lambda dead=process: supervisor.tick() or dead not in supervisor.processes.values(),
            description="its death is noticed",
        )
    wait_until(lambda: supervisor.tick() or told(), description="callers are told")
    assert told() == ["app: One it failed: ValueError: 2"]

    pool.report(ReplicaStatus("elsewhere", "One", "v", RUNNING))
    wait_until(lambda: supervisor.tick() or not told(), description="callers may call again")
    assert not client.exists(keys.faults)


def test_a_supervisor_reads_no_reports_as_long_as_nothing_is_wrong(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.tick()  # it leads, and has looked for what workers of an older qserve run
    read: list[ReplicaReports] = []
    monkeypatch.setattr(ReplicaReports, "replicas", lambda self: read.append(self) or [])
    for _ in range(10):
        supervisor.tick()

    assert (read, supervisor._troubles) == ([], {})


def test_a_death_that_the_broker_could_not_be_told_of_is_told_later(
    supervisor: Supervisor, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.tick()
    told: list[str] = []

    def hand_over(stream: str, consumer: str, how: str) -> int:
        told.append(consumer)
        if len(told) == 1:
            raise BrokerUnavailable("away")
        return 0

    monkeypatch.setattr(supervisor._takeover, "hand_over", hand_over)
    (process,) = supervisor.processes.values()
    os.kill(process.pid, signal.SIGKILL)

    def tick() -> bool:
        supervisor.tick()
        return False

    with pytest.raises(BrokerUnavailable):
        wait_until(tick, description="the death is noticed")
    supervisor.tick()

    assert told == [process.spec.name] * 2


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that this process could import."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own_shop.py"
    path.write_text("VERSION = 1")
    return path


def read_now() -> dict[str, str]:
    return read_sources("own_shop:app").digests


def names(supervisor: Supervisor) -> list[str]:
    """The versions of the replicas that run."""
    return [process.spec.record.version for process in supervisor.processes.values()]


def test_a_version_whose_code_is_elsewhere_is_waited_for_and_said_to_be(
    client: redis.Redis, settings: Settings, keys: Keys, system: System, shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installation = Installation(settings, client)
    one = replace(RECORD, version="one", target="own_shop:app", modules=read_now())
    shop.write_text("VERSION = 2")
    two = replace(one, version="two", modules=read_now())
    installation.registry.promote(one)
    installation.registry.stage(two)
    supervisor = Supervisor(settings, fork=system.fork)

    supervisor.tick()
    supervisor.tick()

    assert names(supervisor) == ["two"]
    (said,) = [record.message for record in caplog.records]
    assert said == (
        f"application 'app': this worker does not run version one: it has code {two.code}, and the version needs"
        f" {one.code} (own_shop differs)"
    )
    (deployment,) = status_of(installation).applications["app"].deployments.values()
    assert (deployment.status, deployment.replica_states) == ("UPDATING", {})
    assert f"(process {os.getpid()}) waits: it has code {two.code}" in deployment.message
    with pytest.raises(DeployError, match=rf"One \(0 of 1\)\n.* \({one.code}\) has started a replica\n.*{two.code}"):
        wait_until_running(one, installation.reports("app"), timeout_s=0)

    shop.write_text("VERSION = 1")
    wait_until(lambda: supervisor.tick() or "one" in names(supervisor), description="its code is there")
    assert {status.state for status in installation.reports("app").replicas()} == {STARTING}
    (process,) = [process for process in supervisor.processes.values() if process.spec.record.version == "two"]
    assert process.spec.sources.modules["own_shop"].source == b"VERSION = 2"


@pytest.mark.parametrize(
    ("here", "needed", "target", "says"),
    [
        ("", "v2", "", "it has no QSERVE_CODE_VERSION, and the version needs 'v2'"),
        ("v1", "v2", "", "it has code version 'v1', and the version needs 'v2'"),
        ("v2", "v2", "", ""),
        ("v2", "", "", ""),
        ("", "", "own_shop.app", ""),
        ("v2", "v2", "other:app", "it imports other:app, and the version is own_shop:app"),
    ],
)
def test_a_name_takes_the_place_of_the_code(
    client: redis.Redis, settings: Settings, shop: Path, here: str, needed: str, target: str, says: str
) -> None:
    modules = {"own_shop": "of another text"} if needed else read_now()
    record = replace(RECORD, target="own_shop:app", modules=modules, code_version=needed)
    installation = Installation(replace(settings, code_version=here), client)

    sources = OwnCode(installation, target).find(record, ["One"])

    assert [one.message for one in installation.reports("app").replicas()] == ([says] if says else [])
    assert sources == (None if says else read_sources("own_shop:app"))


@pytest.mark.slow
def test_an_old_registration_that_is_put_back_is_repaired_although_nothing_was_announced(
    client: redis.Redis, settings: Settings, keys: Keys, system: System
) -> None:
    registry = Installation(settings, client).registry
    registry.stage(RECORD)
    registry.promote(RECORD)
    key = keys.application("app")
    old: bytes = client.hget(key, "active")  # type: ignore[assignment]
    registry.promote(replace(RECORD, version="new"))
    supervisor = Supervisor(settings, fork=system.fork)
    supervisor.tick()
    genuine = client.hget(key, "active")

    client.hset(key, "active", old)

    wait_until(
        lambda: supervisor.tick() or client.hget(key, "active") == genuine, description="the registration is repaired"
    )
    assert names(supervisor) == ["new"]


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), BrokerError("WRONGTYPE of one key")])
def test_an_application_that_cannot_be_run_holds_up_no_other_and_is_tried_again(
    supervisor: Supervisor, system: System, caplog: pytest.LogCaptureFixture, error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other = replace(RECORD, name="other", route_prefix="/other")
    for act in (supervisor._installation.registry.stage, supervisor._installation.registry.promote):
        act(other)
    versions, broken = Registry.versions, [True]

    def versions_or_fail(registry: Registry, name: str) -> list[ApplicationRecord]:
        if name == "app" and broken[0]:
            raise error
        return versions(registry, name)

    monkeypatch.setattr(Registry, "versions", versions_or_fail)
    for _ in range(3):
        supervisor.tick()
    assert [process.spec.record.name for process in supervisor.processes.values()] == ["other"]
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert "application app" in caplog.text

    broken[0] = False
    wait_until(lambda: supervisor.tick() or len(supervisor.processes) == 2, description="both run")


def test_an_application_whose_record_was_overwritten_goes_on_as_it_was(
    supervisor: Supervisor, client: redis.Redis, keys: Keys
) -> None:
    supervisor.tick()
    client.hset(keys.application("app"), "active", b"nothing that we have sealed")
    client.xadd(keys.changes, {"app": "app"})
    for _ in range(3):
        supervisor.tick()

    (process,) = supervisor.processes.values()
    assert not process.is_stopping


def test_a_death_that_cannot_be_handled_does_not_keep_the_others_from_it(
    supervisor: Supervisor, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(supervisor.settings, Scope(replicas=2), fork=system.fork)
    supervisor.tick()
    first, second = supervisor.processes.values()
    handled: list[str] = []

    def hand_over(stream: str, consumer: str, how: str) -> int:
        if consumer == first.spec.name and len(handled) < 2:
            raise ZeroDivisionError("a bug")
        handled.append(consumer)
        return 0

    monkeypatch.setattr(supervisor._takeover, "hand_over", hand_over)
    for process in (first, second):
        os.kill(process.pid, signal.SIGKILL)

    wait_until(lambda: supervisor.tick() or second.spec.name in handled, description="the other is handed over")
    handled.append("any")
    wait_until(lambda: supervisor.tick() or first.spec.name in handled, description="it is tried again")


def test_how_a_replica_died_by_a_signal_without_a_name_is_said_as_well(tmp_path: Path) -> None:
    assert describe_end(-40, "", MemoryWatch(ControlGroup(tmp_path / "none", tmp_path)), Note()) == "signal 40"


def _memory(folder: Path, version: int, kills: int, limit: str) -> MemoryWatch:
    group = folder / ("memory/box" if version == 1 else "box")
    group.mkdir(parents=True, exist_ok=True)
    events = "memory.oom_control" if version == 1 else "memory.events"
    (group / events).write_text(f"low 0\noom 9\noom_kill {kills}\n")
    (group / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(limit)
    (folder / "membership").write_text("3:cpu:/box\n2:memory:/box\n0::/\n" if version == 1 else "0::/box\n")
    return MemoryWatch(ControlGroup(folder / "membership", folder))


@pytest.mark.parametrize("version", [1, 2])
def test_a_kill_by_the_kernel_for_want_of_memory_is_told_from_others_with_the_limit(
    tmp_path: Path, version: int
) -> None:
    memory = _memory(tmp_path, version, 4, str(200 << 20))

    assert describe_end(-signal.SIGKILL, "", memory, Note()) == "killed: SIGKILL, perhaps out of memory"
    _memory(tmp_path, version, 5, str(200 << 20))
    how = describe_end(-signal.SIGKILL, "", memory, Note())
    assert how == "oom_killed: SIGKILL, because of the memory limit of 200 MiB"
    assert describe_end(-signal.SIGKILL, "", memory, Note()) == "killed: SIGKILL, perhaps out of memory"


def test_where_no_control_group_can_be_read_nothing_is_claimed(tmp_path: Path) -> None:
    memory = MemoryWatch(ControlGroup(tmp_path / "none", tmp_path))

    assert not memory.has_killed()
    assert memory.limit() == ""
    assert describe_end(-signal.SIGSEGV, "", memory, Note()) == "SIGSEGV"
    assert describe_end(-signal.SIGKILL, "frozen: no heartbeat", memory, Note()) == "frozen: no heartbeat"
    for code in (0, 3, 9, 255):
        how = describe_end(code, "", memory, Note())
        assert how == f"exit code {code}: its user code, or a library of that, has ended the process"


@pytest.mark.parametrize("code", Exit)
def test_an_exit_code_means_what_a_replica_means_by_it_only_when_it_has_noted_it(tmp_path: Path, code: Exit) -> None:
    memory, note = MemoryWatch(ControlGroup(tmp_path / "none", tmp_path)), Note()

    assert describe_end(code, "", memory, note).startswith(f"exit code {code}: its user code")
    note.write(code)
    assert describe_end(code, "", memory, note) == MEANINGS[code]
    assert describe_end(code + 1, "", memory, note).startswith(f"exit code {code + 1}: its user code")


def test_the_status_tells_starting_replicas_from_workers_that_are_not_there(
    settings: Settings, client: redis.Redis, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    installation = Installation(replace(settings, start_timeout_s=60), client)

    def told() -> tuple[str, dict[str, int], str]:
        (application,) = status_of(installation).applications.values()
        (deployment,) = application.deployments.values()
        return application.status, deployment.replica_states, deployment.message

    installation.registry.stage(RECORD)
    assert told() == ("DEPLOYING", {}, "no worker runs a replica of it: start `qserve worker`")
    installation.registry.promote(RECORD)
    assert told() == ("UNHEALTHY", {}, "no worker runs a replica of it: start `qserve worker`")

    supervisor = Supervisor(settings, fork=system.fork)
    supervisor.tick()
    assert told() == ("DEPLOYING", {"STARTING": 1}, "0 of 1 run")

    (process,) = supervisor.processes.values()
    late = ReplicaStatus(process.spec.name, "One", "v", STARTING, until_ms=1.0)
    installation.reports("app").report(late)  # what a host that is gone has left behind
    assert told()[0] == "UNHEALTHY"


@pytest.mark.slow
def test_a_deployment_that_runs_again_is_no_longer_reported_while_another_still_fails(
    settings: Settings, client: redis.Redis, system: System
) -> None:
    both = replace(RECORD, deployments={name: DeploymentRecord(name) for name in ("One", "Two")})
    installation = Installation(settings, client)
    installation.registry.stage(both)
    installation.registry.promote(both)
    supervisor, reports = Supervisor(settings, fork=system.fork), installation.reports("app")

    def failing(*dying: str) -> set[str]:
        for pid, process in supervisor.processes.items():
            if process.spec.deployment in dying:
                os.kill(pid, signal.SIGKILL)
        supervisor.tick()
        return {one.deployment for one in reports.replicas() if one.state == FAILED}

    wait_until(lambda: failing("One", "Two") == {"One", "Two"}, description="both have failed to start")
    wait_until(
        lambda: failing("One") and [one for one in supervisor.processes.values() if one.spec.deployment == "Two"],
        description="the second is started again",
    )
    name = next(one.spec.name for one in supervisor.processes.values() if one.spec.deployment == "Two")
    reports.report(ReplicaStatus(name, "Two", "v", RUNNING))

    # sooner than a report ends by itself
    wait_until(lambda: failing("One") == {"One"}, description="only the first is reported", timeout_s=20)


def test_a_worker_for_a_step_that_a_coming_version_has_waits_for_it(
    settings: Settings, client: redis.Redis, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Installation(settings, client).registry
    registry.promote(RECORD)
    supervisor = Supervisor(settings, Scope(app="app", deployment="Two"), fork=system.fork)
    supervisor.tick()
    (said,) = caplog.records
    assert (said.levelname, said.message) == (
        "WARNING",
        "application 'app' has no deployment 'Two'; it has: One. Waiting for a version that has it",
    )

    registry.stage(replace(RECORD, version="w", deployments={**RECORD.deployments, "Two": DeploymentRecord("Two")}))
    wait_until(lambda: supervisor.tick() or supervisor.processes, description="it is run")
    assert len(caplog.records) == 1


_START = """
import os
from qserve.base.settings import Settings
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve_workers.replica.spec import ReplicaSpec
from qserve_workers.supervisor.replica_process import MemoryWatch, describe_end, fork_replica
record = ApplicationRecord("shop", "v1", "Model", target=TARGET, deployments={"Model": DeploymentRecord("Model")})
spec = ReplicaSpec("Model-a-1", record, "Model", Settings(broker_url="unix:///nowhere/broker.sock"))
_, status = os.waitpid(fork_replica(spec), 0)
print(describe_end(os.waitstatus_to_exitcode(status), "", MemoryWatch(), spec.note))
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["", "no_such_module:app"], ids=["reads its code", "reports its end"])
def test_a_replica_that_finds_no_broker_while_it_starts_says_so(target: str) -> None:
    script = [sys.executable, "-c", _START.replace("TARGET", repr(target))]
    ended = subprocess.run(script, check=True, capture_output=True, text=True)

    assert ended.stdout == "the broker did not reply\n"
    assert "this replica has not started (" in ended.stderr


def test_starts_without_a_broker_do_not_count_against_a_deploy() -> None:
    trouble = Trouble()
    for _ in range(9):
        trouble.note_failed_start(f"its process ended while it was starting: {MEANINGS[Exit.NO_BROKER]}", 0.0, 0.0)
    assert trouble.counted == 1

    trouble.note_failed_start("its constructor failed", 0.0, 0.0)
    assert trouble.counted == 10


def test_replicas_that_fail_together_put_the_next_start_off_once() -> None:
    trouble = Trouble()
    for _ in range(10):
        trouble.note_failed_start("its constructor failed", now=1.0, started_at=0.5)
    assert trouble.failures == 10
    assert trouble.next_try == 1.1

    for number in (2, 3, 4):
        trouble.note_failed_start("its constructor failed", now=number, started_at=number - 0.5)
        trouble.note_failed_start("its constructor failed", now=number + 0.25, started_at=number - 0.5)
        assert trouble.next_try == number + 0.25 + 0.1 * 2 ** (number - 1)
    trouble.note_running()
    trouble.note_failed_start("its constructor failed", now=9.0, started_at=8.5)
    assert trouble.next_try == 9.1
