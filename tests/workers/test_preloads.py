"""The process that runs ``preload`` of a deployment, as its supervisor sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

import pytest
from processes import wait_until
from qserve_workers.replica.spec import ReplicaSpec
from qserve_workers.supervisor import preloads
from qserve_workers.supervisor.preloads import PreloadFailed, PreloadProcess, Preloads

from qserve.base import forks, import_path
from qserve.base.settings import Settings
from qserve.deploy.sources import read_sources
from qserve.wire.application import ApplicationRecord, DeploymentRecord

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each replica runs it")
CODE = """
import time
import qserve

def quick():
    return 1

def slow():
    time.sleep(600)

@qserve.deployment
class One:
    pass

app = One.bind()
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Preloads]:
    (tmp_path / "preloads_of_this_test.py").write_text(CODE)
    monkeypatch.setattr(import_path, "_folders", [str(tmp_path)])
    # a supervisor has no event loop; one that another test has left would end the child as a fork of user code
    monkeypatch.setattr(forks, "_leavers", WeakSet())
    made, pids = Preloads(), set[int]()
    monkeypatch.setattr(PreloadProcess, "kill", lambda own, kill=PreloadProcess.kill: (pids.add(own.pid), kill(own)))
    yield made
    made.keep(())
    for pid in pids - {0}:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def spec_of(function: str, start_timeout_s: float = 60.0) -> ReplicaSpec:
    target, own = "preloads_of_this_test:app", f"preloads_of_this_test:{function}"
    record = ApplicationRecord(
        "a", "v", "One", target=target, deployments={"One": DeploymentRecord("One", preload=own)}
    )
    settings = Settings(start_timeout_s=start_timeout_s)
    return ReplicaSpec("One-host-00000000", record, "One", settings, sources=read_sources(target))


def ready(host: Preloads, spec: ReplicaSpec) -> PreloadProcess:
    return wait_until(lambda: host.get(spec, b""), description="it is ready")


def test_a_preload_that_hangs_is_ended_and_nobody_waits_for_it(host: Preloads) -> None:
    spec = spec_of("slow", start_timeout_s=0.3)

    with pytest.raises(PreloadFailed, match=r"start_timeout: its preload \S+:slow did not return within 0.3 s"):
        wait_until(lambda: host.get(spec, b""), description="it has failed")

    assert host.pids == set()


@pytest.mark.slow
def test_a_process_that_stands_still_when_it_is_to_fork_costs_a_moment(
    host: Preloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preloads, "_FORK_WITHIN_S", 0.2)
    process = ready(host, spec_of("quick"))
    os.kill(process.pid, signal.SIGSTOP)

    with pytest.raises(TimeoutError):
        process.fork(spec_of("quick"))


@pytest.mark.slow
def test_a_process_that_has_ended_is_started_again(host: Preloads) -> None:
    spec = spec_of("quick")
    first = ready(host, spec)
    pid = first.pid
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)

    with pytest.raises(OSError):
        first.fork(spec)
    host.note_end(pid, status)

    assert ready(host, spec).pid != pid
