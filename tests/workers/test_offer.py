"""What a worker offers, and how it carries out what is planned for it: supervisors on a real broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from children import end_children, sleeping_child
from processes import wait_until
from qserve_workers.replica.spec import ReplicaSpec
from qserve_workers.supervisor.offer import Capacity, WorkerId
from qserve_workers.supervisor.scope import Scope
from qserve_workers.supervisor.supervisor import Supervisor

from qserve.base.clock import clock
from qserve.base.settings import Settings
from qserve.broker.registry import Registry
from qserve.deploy.installation import Installation
from qserve.deploy.removal import retire
from qserve.fleet.lead import Leadership
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Resources
from qserve.wire.fleet import Slot
from qserve.wire.status import RUNNING, ReplicaStatus

RECORD = ApplicationRecord("app", "v", "One", deployments={"One": DeploymentRecord("One", num_replicas=2)})
NEWER = replace(RECORD, version="w")


class System:
    """Forks children that only wait, and says of each which GPUs it was given."""

    def __init__(self) -> None:
        self.started: dict[int, ReplicaSpec] = {}

    def fork(self, spec: ReplicaSpec) -> int:
        pid = sleeping_child()
        self.started[pid] = spec
        return pid


@pytest.fixture
def system() -> Iterator[System]:
    made = System()
    yield made
    end_children(made.started)


@pytest.fixture
def installation(settings: Settings, client: redis.Redis) -> Installation:
    return Installation(settings, client)


@pytest.fixture
def lead(installation: Installation) -> Callable[..., None]:
    """Another worker leads, and plans what the test says."""
    leadership = Leadership(installation.client, installation.keys, installation.seal, "other")

    def plan(worker: Supervisor, *slots: Slot) -> None:
        leadership._due_at = 0.0
        assert leadership.renew()
        assert installation.fleet.assign(leadership.mine, {worker._offer.worker: slots})

    return plan


def deploy(installation: Installation, record: ApplicationRecord) -> None:
    installation.registry.stage(record)
    installation.registry.promote(record)


def runs(supervisor: Supervisor) -> dict[str, int]:
    """How many replicas of each version run that are not being stopped."""
    return dict(Counter(one.spec.record.version for one in supervisor.processes.values() if not one.is_stopping))


def test_a_worker_alone_runs_all_that_is_wanted_in_its_first_round(
    installation: Installation, settings: Settings, system: System
) -> None:
    deploy(installation, RECORD)

    Supervisor(settings, fork=system.fork).tick()

    assert len(system.started) == 2


def test_what_is_planned_is_run_with_its_gpus_and_no_more(
    installation: Installation, settings: Settings, system: System, lead: Callable[..., None]
) -> None:
    deploy(installation, RECORD)
    supervisor = Supervisor(settings, fork=system.fork)
    lead(supervisor, Slot("app", "v", "One", 1, ("0",)), Slot("app", "v", "One", 2, ("1",)))

    supervisor.tick()
    supervisor.tick()

    assert Counter(spec.devices for spec in system.started.values()) == {("0",): 1, ("1",): 2}
    lead(supervisor, Slot("app", "v", "One", 1, ("1",)))
    supervisor.tick()
    staying = [one for one in supervisor.processes.values() if not one.is_stopping]
    assert [one.spec.devices for one in staying] == [("1",)]


def test_what_is_deleted_between_two_reads_of_a_round_is_not_stopped_in_it(
    installation: Installation, settings: Settings, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would look as if it was active and wanted nowhere, and its replicas would not finish what was accepted."""
    deploy(installation, RECORD)
    supervisor, names, found = Supervisor(settings, fork=system.fork), Registry.names, []
    supervisor.tick()
    installation.registry.announce("app")  # all is read again

    def delete_before_second(registry: Registry) -> list[str]:
        if found:
            installation.registry.delete("app")
        found.append(names(registry))
        return found[-1]

    monkeypatch.setattr(Registry, "names", delete_before_second)
    supervisor.tick()

    assert found == [["app"], []]
    assert runs(supervisor) == {"v": 2}


def test_a_pinned_worker_gives_each_replica_gpus_of_its_own(
    installation: Installation, settings: Settings, system: System
) -> None:
    one = replace(RECORD.deployments["One"], resources=Resources(gpus=1.0))
    deploy(installation, replace(RECORD, deployments={"One": one}))

    Supervisor(settings, Scope(replicas=2), Capacity(devices=("a", "b", "c")), fork=system.fork).tick()

    assert Counter(spec.devices for spec in system.started.values()) == {("a",): 1, ("b",): 1}


def test_a_pinned_worker_with_too_few_gpus_says_so_and_runs_what_it_was_started_for(
    installation: Installation, settings: Settings, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    one = replace(RECORD.deployments["One"], resources=Resources(gpus=1.0))
    deploy(installation, replace(RECORD, deployments={"One": one}))

    Supervisor(settings, Scope(replicas=3), Capacity(devices=("a",)), fork=system.fork).tick()

    assert Counter(spec.devices for spec in system.started.values()) == {("a",): 1, (): 2}
    assert "2 of 3 replicas of deployment 'One' were assigned no GPU. This worker has 1;" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "offered", "words"),
    [
        (None, ("c",), "this one offers only others. Say with --devices which GPUs each worker is to use"),
        (("b", "c"), ("b", "c"), "so does this one, as it was told"),
    ],
)
@pytest.mark.parametrize("is_pinned", [False, True])
def test_two_workers_on_a_host_do_not_both_offer_a_gpu_unless_they_were_told_to(
    installation: Installation,
    settings: Settings,
    system: System,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    chosen: tuple[str, ...] | None,
    offered: tuple[str, ...],
    words: str,
    is_pinned: bool,
) -> None:
    one = replace(RECORD.deployments["One"], resources=Resources(gpus=1.0))
    deploy(installation, replace(RECORD, deployments={"One": one}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "b,c")
    host = f"host-{is_pinned}-{chosen}"  # each line is logged once
    first = Supervisor(settings, Scope(app="another"), Capacity(host=host, devices=("a", "b")), fork=system.fork)
    first.tick()

    scope, capacity = Scope(replicas=1 if is_pinned else None), Capacity(host=host, devices=chosen)
    second = Supervisor(settings, scope, capacity, fork=system.fork)
    wait_until(lambda: second.tick() or system.started, description="a replica starts")

    assert installation.fleet.hosts()[second._offer.worker].devices == offered
    assert {spec.devices for spec in system.started.values()} <= {(one,) for one in offered}
    assert [line for line in caplog.messages if "are offered" in line and line.endswith(words)] != []


def test_a_pinned_worker_names_the_options_that_it_does_not_obey(
    installation: Installation, settings: Settings, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    takes = Resources(labels={"zone": "north"}, other={"disk": 1.0}, per_host=1)
    one = replace(RECORD.deployments["One"], resources=takes)
    deploy(installation, replace(RECORD, deployments={"One": one}))
    supervisor = Supervisor(settings, Scope(replicas=2), fork=system.fork)

    supervisor.tick()
    supervisor.tick()

    assert len(system.started) == 2
    (line,) = [line for line in caplog.messages if "whatever its options say" in line]
    assert "'One'" in line and "label_selector or accelerator_type, resources, max_replicas_per_node." in line


def test_replicas_that_a_pinned_worker_runs_are_not_planned_for_others(
    installation: Installation, settings: Settings, system: System
) -> None:
    deploy(installation, RECORD)
    pinned = Supervisor(settings, Scope(deployment="One", replicas=1), fork=system.fork)
    pinned.tick()
    placed = Supervisor(settings, capacity=Capacity(places=4), fork=system.fork)

    wait_until(lambda: pinned.tick() or placed.tick() or runs(placed), description="the plan is carried out")

    assert (runs(pinned), runs(placed)) == ({"v": 1}, {"v": 1})


def test_replicas_of_an_older_qserve_which_offers_nothing_are_counted(
    installation: Installation, settings: Settings, system: System
) -> None:
    deploy(installation, RECORD)
    installation.reports("app").report(ReplicaStatus("One-elsewhere", "One", "v", RUNNING))

    Supervisor(settings, fork=system.fork).tick()

    assert len(system.started) == 1


@pytest.mark.row("F54")
def test_replicas_of_a_version_that_is_replaced_between_two_reads_finish_what_was_accepted(
    installation: Installation,
    settings: Settings,
    system: System,
    lead: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deploy(installation, RECORD)
    supervisor = Supervisor(settings, fork=system.fork)
    lead(supervisor, Slot("app", "v", "One", 2))
    supervisor.tick()
    assert runs(supervisor) == {"v": 2}
    queue = RECORD.stream(installation.keys, "One")
    waiting = installation.client.xadd(queue, {"h": "a call that is accepted"})
    last_change, is_replaced = Registry.last_change, []

    def replace_after(registry: Registry) -> str:
        found = last_change(registry)
        if not is_replaced:
            is_replaced.append(True)
            deploy(installation, NEWER)
            lead(supervisor, Slot("app", "w", "One", 2))
        return found

    monkeypatch.setattr(Registry, "last_change", replace_after)
    for _ in range(3):
        supervisor.tick()

    assert runs(supervisor) == {"v": 2, "w": 2}
    installation.client.xdel(queue, waiting)
    wait_until(lambda: supervisor.tick() or "v" not in runs(supervisor), description="the old version has ended")
    assert not installation.client.exists(queue)


@pytest.mark.row("F55")
def test_a_version_whose_share_of_requests_has_ended_finishes_what_it_has_and_leaves_no_call_behind(
    installation: Installation, settings: Settings, system: System, lead: Callable[..., None]
) -> None:
    deploy(installation, RECORD)
    installation.registry.stage(NEWER)
    installation.registry.share(NEWER, 0.5, clock.judge_ms() + 3_600_000)
    supervisor = Supervisor(settings, fork=system.fork)
    lead(supervisor, Slot("app", "w", "One", 2))
    supervisor.tick()
    queue = NEWER.stream(installation.keys, "One")
    waiting: Any = installation.client.xadd(queue, {"h": "a call that is accepted"})

    installation.registry.share(NEWER, 0.5, clock.judge_ms() - 1)  # its deployer has died
    lead(supervisor)
    for _ in range(3):
        supervisor.tick()
    assert runs(supervisor) == {"w": 2}
    installation.client.xdel(queue, waiting)
    wait_until(lambda: supervisor.tick() or not runs(supervisor), description="its replicas have ended")
    assert not installation.client.exists(queue)


@pytest.mark.row("F55")
def test_what_waits_for_a_version_whose_share_has_ended_goes_on_elsewhere_if_no_replica_of_it_is_left(
    installation: Installation, settings: Settings, system: System, lead: Callable[..., None]
) -> None:
    deploy(installation, RECORD)
    installation.registry.stage(NEWER)
    installation.client.xadd(NEWER.stream(installation.keys, "One"), {"h": "a call that is accepted"})
    installation.registry.share(NEWER, 0.5, clock.judge_ms() - 1)
    supervisor = Supervisor(settings, fork=system.fork)
    lead(supervisor)

    def is_moved() -> bool:
        supervisor.tick()
        return not installation.client.exists(NEWER.stream(installation.keys, "One"))

    wait_until(is_moved, description="nothing of it is left")
    assert not system.started


def test_a_version_is_never_taken_for_the_one_that_follows_it(
    installation: Installation, settings: Settings, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(installation, RECORD)
    queue = RECORD.stream(installation.keys, "One")
    installation.registry.stage(NEWER)
    supervisor = Supervisor(settings, Scope(replicas=0), fork=system.fork)
    read, is_replaced = Registry._read, []

    def replace_after(registry: Registry, *places: str) -> Iterator[ApplicationRecord]:
        found = [*read(registry, *places)]
        if not is_replaced:
            is_replaced.append(True)
            installation.registry.promote(NEWER)
        return iter(found)

    supervisor.tick()
    waiting: Any = installation.client.xadd(queue, {"h": "a call"})
    installation.registry.announce("app")
    monkeypatch.setattr(Registry, "_read", replace_after)
    supervisor.tick()

    assert is_replaced
    assert not retire(installation, RECORD, True, RECORD)
    assert [entry for entry, _ in installation.client.xrange(queue)] == [waiting]


def test_a_worker_has_a_name_of_its_own_and_has_it_again_after_a_restart() -> None:
    first, other = WorkerId("a", "redis://x", "n"), WorkerId("a", "redis://x", "n")
    elsewhere = WorkerId("a", "redis://y", "n")
    assert first.name != other.name
    assert elsewhere.name not in (first.name, other.name), "it may be the same broker by another address"

    first.leave_to_parent()
    assert WorkerId("a", "redis://x", "n").name == first.name
