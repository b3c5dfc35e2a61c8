"""Releases under load: in every order of their steps, each answer comes wholly from one version."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger import DIAMOND
from load import Call, Load, new_job
from processes import Process, new_site, wait_until
from rows import row
from stacks import Stack, kill

from qserve.wire.status import ReplicaStatus

WAITS = "this worker does not run version"


class Releases(Stack):
    """A stack in which each version of the code has a folder of its own, and workers of its own.

    Parameters:
      version: The version that is deployed.
      workers: Those that have its code.
    """

    version = 0
    workers: Process
    folders: dict[Process, Path]
    """Where workers look for code."""

    def folder(self, version: int) -> Path:
        """The folder with the code of a version."""
        folder = self.site.folder / f"v{version}"
        folder.mkdir(exist_ok=True)
        text = DIAMOND.replace("REPLICAS", "1").replace("VERSION = 1", f"VERSION = {version}")
        (folder / "diamond.py").write_text(text)
        return folder

    def start_workers(self, version: int) -> Process:
        folder = self.folder(version)
        workers = self.worker("--name", "default", "--app-dir", str(folder))
        self.folders[workers] = folder
        return workers

    def start_workers_without_code(self) -> Process:
        folder = self.site.folder / f"empty{len(self.folders)}"
        folder.mkdir()
        options = ("--name", "default", "--app-dir", str(folder))
        workers = self.command("worker", *options, within=("env", "-C", str(folder)))
        self.folders[workers] = folder
        return workers

    def start_deploy(self, version: int) -> Process:
        return self.command("deploy", "diamond:app", "--app-dir", str(self.folder(version)))

    def stop(self, workers: Process) -> None:
        workers.signal(signal.SIGTERM)
        assert workers.wait() == 0, workers.output


def finish(deploy: Process) -> None:
    assert deploy.wait() == 0, deploy.output


def new_workers_first(stack: Releases, version: int) -> None:
    new = stack.start_workers(version)
    new.wait_for(WAITS)
    finish(stack.start_deploy(version))
    stack.stop(stack.workers)
    stack.workers = new


def deploy_first(stack: Releases, version: int) -> None:
    deploy = stack.start_deploy(version)
    deploy.wait_for("0/1 starting")
    new = stack.start_workers(version)
    finish(deploy)
    stack.stop(stack.workers)
    stack.workers = new


def both_at_once(stack: Releases, version: int) -> None:
    new, deploy = stack.start_workers(version), stack.start_deploy(version)
    finish(deploy)
    stack.stop(stack.workers)
    stack.workers = new


def old_workers_stopped_first(stack: Releases, version: int) -> None:
    stack.stop(stack.workers)
    stack.workers = stack.start_workers(version)
    stack.workers.wait_for(WAITS)
    finish(stack.start_deploy(version))


def old_workers_stopped_during_the_deploy(stack: Releases, version: int) -> None:
    deploy = stack.start_deploy(version)
    deploy.wait_for("0/1 starting")
    stack.stop(stack.workers)
    stack.workers = stack.start_workers(version)
    finish(deploy)


def old_workers_come_back(stack: Releases, version: int) -> None:
    stack.stop(stack.workers)
    stack.workers = stack.start_workers(stack.version)
    new_workers_first(stack, version)


def by_value(stack: Releases, version: int) -> None:
    new = stack.start_workers_without_code()
    finish(stack.start_deploy(version))
    stack.stop(stack.workers)
    stack.workers = new


def in_place(stack: Releases, version: int) -> None:
    folder = stack.folders[stack.workers]
    (folder / "diamond.py").write_text((stack.folder(version) / "diamond.py").read_text())
    finish(stack.command("deploy", "diamond:app", "--app-dir", str(folder)))


@pytest.fixture(scope="module")
def releases() -> Iterator[Releases]:
    with new_site() as site:
        stack = Releases(site, replicas=1, guarded=False)
        stack.folders = {}
        stack.workers = stack.start_workers(1)
        stack.front = stack.gateway()
        finish(stack.start_deploy(1))
        stack.version = 1
        wait_until(stack.is_serving, description="the gateway is healthy")
        yield stack
        stack.close()


def is_replaced(call: Call) -> bool:
    """Whether a call ended early because nobody had the code any more that it was half-way through."""
    return "version_replaced" in call.error or call.error.startswith("VersionReplaced")


WITHOUT_OLD_WORKERS = (old_workers_stopped_first, old_workers_stopped_during_the_deploy)
ORDERS = [
    new_workers_first,
    in_place,
    # the same acts in another order: tests/workers/test_own_code.py and test_offer.py have which version a worker runs
    pytest.param(by_value, marks=pytest.mark.long),
    pytest.param(old_workers_stopped_first, marks=pytest.mark.long),
    pytest.param(deploy_first, marks=pytest.mark.long),
    pytest.param(both_at_once, marks=pytest.mark.long),
    pytest.param(old_workers_stopped_during_the_deploy, marks=pytest.mark.long),
    pytest.param(old_workers_come_back, marks=pytest.mark.long),
]


@row("F50", priority=True)
@pytest.mark.parametrize("release", ORDERS)
def test_answers_are_never_mixed_and_none_fails_whatever_the_order_of_a_release(
    releases: Releases, release: Callable[[Releases, int], None]
) -> None:
    before, after = releases.version, releases.version + 1
    by_handle, by_http = releases.load(rate=50), Load(releases.http(), rate=50).start()
    by_handle.more(20)

    release(releases, after)

    releases.version = after
    by_handle.more(60)
    calls = [*by_handle.stop(), *by_http.stop()]
    # without a worker that has the old code, a request that is half-way can only end early
    may_end_early = release in WITHOUT_OLD_WORKERS
    failed = [call for call in calls if not call.is_right and not (may_end_early and is_replaced(call))]
    assert failed == []
    versions = {tuple(call.answer["versions"]) for call in calls if call.answer}
    assert versions == {(before,) * 3, (after,) * 3}


@row("F50", priority=True)
@pytest.mark.long  # tests/workers/test_supervisor.py has the repair
def test_an_old_registration_that_is_put_back_does_not_bring_the_old_version_back(releases: Releases) -> None:
    client, key, after = releases.broker.client, releases.keys.application("default"), releases.version + 1
    old: Any = client.hget(key, "active")
    new_workers_first(releases, after)
    releases.version = after
    wait_until(lambda: releases.ask().answer["versions"] == [after] * 3, description="the new version serves")
    genuine = client.hget(key, "active")
    by_handle, by_http = releases.load(rate=50), Load(releases.http(), rate=50).start()
    by_handle.more(20)

    client.hset(key, "active", old)
    client.xadd(releases.keys.changes, {"app": "default"})

    wait_until(lambda: client.hget(key, "active") == genuine, description="the registration is repaired")
    by_handle.more(60)
    calls = [*by_handle.stop(), *by_http.stop()]
    assert {tuple(call.answer["versions"]) for call in calls} == {(after,) * 3}
    for process in (releases.workers, releases.front):
        refused = [line for line in process.stderr.splitlines() if "'default' is refused" in line]
        assert len(refused) <= 1 and all("ERROR" in line for line in refused)
    assert "'default' is refused" in releases.workers.stderr


@row("F50")
def test_a_replica_that_dies_after_its_files_were_replaced_starts_again_with_its_old_code(releases: Releases) -> None:
    file = releases.folders[releases.workers] / "diamond.py"
    (pid,) = [one.pid for one in releases.replicas("Left")]
    file.write_text("raise RuntimeError('half a release')")

    kill(pid)

    wait_until(lambda: [one.pid for one in releases.replicas("Left")] not in ([pid], []), description="it starts again")
    assert releases.ask().answer["versions"] == [releases.version] * 3
    file.write_text((releases.folder(releases.version) / "diamond.py").read_text())


@row("F50", priority=True)
@pytest.mark.long  # tests/deploy/test_rollout.py has which options need new replicas
def test_other_options_restart_no_replica(releases: Releases) -> None:
    file, before = releases.folder(releases.version) / "app.yaml", {one.name for one in releases.replicas()}
    load = releases.load(rate=50)

    def deploy(**options: object) -> list[ReplicaStatus]:
        part = {"name": "default", "import_path": "diamond:app", "deployments": [{"name": "Left", **options}]}
        file.write_text(json.dumps({"applications": [part]}))
        finish(releases.command("deploy", str(file), "--app-dir", str(file.parent)))
        return releases.replicas()

    more = deploy(num_replicas=2, max_ongoing_requests=7, health_check_period_s=3, graceful_shutdown_timeout_s=4)
    assert {one.name for one in more} > before and len(more) == len(before) + 1
    deploy()
    wait_until(lambda: {one.name for one in releases.replicas()} < {one.name for one in more}, description="one ends")

    load.more(20)
    assert [call for call in load.stop() if not call.is_right] == []
    assert len({one.name for one in releases.replicas()} & before) >= len(before) - 1


@row("F55")
def test_a_deployer_that_dies_leaves_the_old_version_serving_and_nothing_to_clean_up(releases: Releases) -> None:
    before, after = releases.version, releases.version + 1
    new, load = releases.start_workers(after), releases.load(rate=50)
    deploy = ("deploy", "diamond:app", "--app-dir", str(releases.folder(after)))

    for point in ("rollout.after_claim", "rollout.after_stage", "rollout.before_promote"):
        dying = releases.command(*deploy, env={"QSERVE_FAILPOINT": f"{point}:kill9"})
        assert dying.wait() == -signal.SIGKILL, dying.output
    load.more(50)
    assert {tuple(call.answer["versions"]) for call in load.calls if call.answer} == {(before,) * 3}
    last = releases.command(*deploy)
    finish(last)
    assert "waiting for the end of that" in last.output

    releases.stop(releases.workers)
    releases.workers, releases.version = new, after
    load.more(50)
    calls = load.stop()
    assert [call for call in calls if not call.is_right] == []
    assert {tuple(call.answer["versions"]) for call in calls} == {(before,) * 3, (after,) * 3}


@row("F50", priority=True)
@pytest.mark.long  # tests/deploy/test_rollout.py goes back and forward again
def test_rolling_back_is_one_deploy_while_the_old_workers_run(releases: Releases) -> None:
    before, after = releases.version, releases.version + 1
    new = releases.start_workers(after)
    finish(releases.start_deploy(after))
    load = releases.load(rate=50)
    load.more(20)

    finish(releases.start_deploy(before))

    releases.stop(new)
    load.more(60)
    calls = load.stop()
    assert [call for call in calls if not call.is_right] == []
    assert {tuple(call.answer["versions"]) for call in calls} == {(before,) * 3, (after,) * 3}


@row("F50", priority=True)
@pytest.mark.long  # tests/deploy/test_rollout.py goes back; tests/workers/test_own_code.py has who runs what was sent
def test_a_rollback_brings_back_code_that_no_folder_has_any_more(releases: Releases) -> None:
    before = releases.version
    in_place(releases, before + 1)
    releases.stop(releases.workers)
    releases.workers = releases.start_workers(before + 1)  # which has never seen the code before
    load = releases.load(rate=50)
    load.more(20)

    finish(releases.command("rollback", "default"))

    load.more(60)
    calls = load.stop()
    assert [call for call in calls if not call.is_right] == []
    assert {tuple(call.answer["versions"]) for call in calls} == {(before + 1,) * 3, (before,) * 3}
    listed = releases.command("rollback", "default", "--list")
    finish(listed)
    assert len(listed.stdout.splitlines()) > 2 and "(serves)" in listed.stdout.splitlines()[0]
    # the tests that follow find workers whose own code serves
    releases.stop(releases.workers)
    releases.workers = releases.start_workers(before)
    finish(releases.command("deploy", "diamond:app", "--app-dir", str(releases.folder(before)), "--restart"))


@row("F50", priority=True)
@pytest.mark.parametrize("is_same_code", [True, False])
def test_requests_whose_workers_were_killed_go_on_whole_or_end_early(releases: Releases, is_same_code: bool) -> None:
    before, after = releases.version, releases.version + (not is_same_code)
    client, gate = releases.handles(timeout_s=120.0), releases.ledger.new_file("gate")
    half_way = client.send(new_job(gate={"join": gate}))
    at_its_beginning = client.send(new_job(gate={"left": gate, "right": gate}))
    for call, node in ((half_way, "join"), (at_its_beginning, "left"), (at_its_beginning, "right")):
        wait_until(lambda call=call, node=node: releases.ledger.lines(call.id, node), description=f"{node} runs")

    kill(releases.workers.pid)
    releases.workers = releases.start_workers(after)
    finish(releases.start_deploy(after))

    releases.version = after
    if not is_same_code:
        client.wait([half_way], 60)
        assert half_way.error.startswith("VersionReplaced"), half_way
    Path(gate).touch()
    client.wait([half_way, at_its_beginning], 60)
    assert at_its_beginning.answer["versions"] == [after] * 3
    assert half_way.is_right == is_same_code
    assert not is_same_code or half_way.answer["versions"] == [before] * 3
