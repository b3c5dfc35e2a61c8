"""Releases under load: in every order of their steps, each answer comes wholly from one version."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledger import DIAMOND
from load import Load
from processes import Process, new_site, wait_until
from rows import row
from stacks import Stack

WAITS = "this worker does not run version"


class Releases(Stack):
    """A stack in which each version of the code has a folder of its own, and workers of its own.

    Parameters:
      version: The version that is deployed.
      workers: Those that have its code.
    """

    version = 0
    workers: Process

    def folder(self, version: int) -> Path:
        """The folder with the code of a version."""
        folder = self.site.folder / f"v{version}"
        folder.mkdir(exist_ok=True)
        text = DIAMOND.replace("REPLICAS", "1").replace("VERSION = 1", f"VERSION = {version}")
        (folder / "diamond.py").write_text(text)
        return folder

    def start_workers(self, version: int) -> Process:
        return self.worker("--name", "default", "--app-dir", str(self.folder(version)))

    def start_deploy(self, version: int) -> Process:
        return self.command("deploy", "diamond:app", "--app-dir", str(self.folder(version)))

    def stop(self, workers: Process) -> None:
        workers.signal(signal.SIGTERM)
        assert workers.wait() == 0, workers.output


def finish(deploy: Process) -> None:
    assert deploy.wait(60) == 0, deploy.output


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


def in_place(stack: Releases, version: int) -> None:
    folder = stack.folder(stack.version)
    (folder / "diamond.py").write_text((stack.folder(version) / "diamond.py").read_text())
    finish(stack.command("deploy", "diamond:app", "--app-dir", str(folder)))


@pytest.fixture(scope="module")
def releases() -> Iterator[Releases]:
    with new_site() as site:
        stack = Releases(site, replicas=1)
        stack.workers = stack.start_workers(1)
        stack.front = stack.gateway()
        finish(stack.start_deploy(1))
        stack.version = 1
        wait_until(stack.is_serving, description="the gateway is healthy", timeout_s=30)
        yield stack
        stack.close()


ORDERS = [new_workers_first, deploy_first, both_at_once, in_place]


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
    assert [call for call in calls if not call.is_right] == []
    versions = {tuple(call.answer["versions"]) for call in calls}
    assert versions == {(before,) * 3, (after,) * 3}


@row("F50")
def test_requests_wait_while_no_worker_has_the_code_and_are_not_mixed(releases: Releases) -> None:
    before, after = releases.version, releases.version + 1
    by_handle, by_http = releases.load(rate=50), Load(releases.http(), rate=50).start()
    by_handle.more(20)

    releases.stop(releases.workers)
    stopped_at = time.monotonic()
    releases.workers = releases.start_workers(after)
    releases.workers.wait_for(WAITS)
    finish(releases.start_deploy(after))
    deployed_at = time.monotonic()

    releases.version = after
    by_handle.more(60)
    calls = [*by_handle.stop(), *by_http.stop()]
    versions = {tuple(call.answer["versions"]) for call in calls if call.answer}
    assert versions == {(before,) * 3, (after,) * 3}
    waited = [call for call in calls if not call.is_right]
    assert all(stopped_at - 1 < call.sent_at < deployed_at + 1 for call in waited)
