"""What nobody holds of stored values is removed, wherever it is, and what is held stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from processes import wait_until
from qserve_workers.supervisor.values import ValueSweep

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.deploy.installation import Installation
from qserve.payloads import folder as folders
from qserve.payloads.store import ValueStore

pytest.importorskip("fsspec")


@pytest.fixture
def sweep(settings: Settings, client: redis.Redis, tmp_path: Path) -> Iterator[ValueSweep]:
    sweep = ValueSweep(Installation(replace(settings, payloads=(f"file://{tmp_path}",)), client))
    yield sweep
    for pid in sweep.pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.slow
def test_a_process_removes_from_a_folder_what_nobody_holds(
    sweep: ValueSweep,
    settings: Settings,
    client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folders, "UNKNOWN_FOR_S", 0.0)
    store = ValueStore(replace(settings, payloads=(f"file://{tmp_path}",)), str)
    held, lost = (store.put([(0, memoryview(b"x" * 1000))], 1000) for _ in range(2))
    key = Keys(settings.namespace).value(held.name)
    client.hset(key, "n", 1)
    client.expire(key, 60)

    sweep.sweep_if_due()

    def names() -> set[str]:
        return {path.name for path in tmp_path.rglob("*") if path.is_file()}

    wait_until(lambda: lost.name not in names(), description="what nobody holds is removed")
    assert names() == {held.name}


@pytest.mark.slow
def test_the_process_is_started_once_and_not_again_at_once_when_it_dies(sweep: ValueSweep) -> None:
    sweep.sweep_if_due()
    (pid,) = sweep.pids

    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    sweep.note_end(pid)
    sweep._due_at = 0.0
    sweep.sweep_if_due()

    assert not sweep.pids


def test_without_a_folder_no_process_is_started(settings: Settings, client: redis.Redis) -> None:
    sweep = ValueSweep(Installation(settings, client))

    sweep.sweep_if_due()

    assert not sweep.pids
