"""Replicas that are forked from a process which has run ``preload``: what they share, and what that survives."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from http_client import Client
from processes import Site, Started, is_alive, new_site, wait_until
from serving import ask

import qserve
from qserve.exceptions import DeployError

pytestmark = pytest.mark.slow

LARGE = 60 << 20
SHOP = f"""
import os
import threading

import qserve

STATE = {{}}

def load():
    STATE["loaded by"] = os.getpid()
    return os.urandom({LARGE})

@qserve.deployment(preload=load, num_replicas=4, ray_actor_options={{"num_cpus": 0.01}})
class Model:
    async def __call__(self, request):
        return {{
            "pid": os.getpid(), "parent": os.getppid(), "loaded_by": STATE["loaded by"],
            "size": len(qserve.get_replica_context().preloaded),
        }}

app = Model.bind()
"""


def preloading(site: Site) -> dict[int, str]:
    return {pid: title for pid, title in site.processes().items() if "qserve preload" in title}


def kilobytes(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def run_shop(site: Site) -> Client:
    return Client(site.run("preload_shop:app", cwd=site.write("preload_shop.py", SHOP)).port)


@pytest.fixture(scope="module")
def shop() -> Iterator[tuple[Site, Client]]:
    with new_site() as site:
        yield site, run_shop(site)


def replicas_of(client: Client, but: int = 0) -> dict[int, Any]:
    """Ask until all four replicas have answered, none of which has this process id."""
    seen: dict[int, Any] = {}

    def have_answered() -> bool:
        found = client.get("/").json
        seen[found["pid"]] = found
        return len(seen.keys() - {but}) == 4

    wait_until(have_answered, description="four replicas have answered")
    return {pid: found for pid, found in seen.items() if pid != but}


def test_four_replicas_share_what_one_process_has_loaded(shop: tuple[Site, Client]) -> None:
    site, client = shop

    replicas = replicas_of(client)

    (source,) = preloading(site)
    assert {one["loaded_by"] for one in replicas.values()} == {source}
    assert {one["size"] for one in replicas.values()} == {LARGE}
    (supervisor,) = {one["parent"] for one in replicas.values()}
    assert "qserve worker" in site.processes()[supervisor]
    # each would have 60 MB of its own otherwise
    assert sum(kilobytes(pid, "Pss") for pid in (source, *replicas)) < 1.5 * LARGE / 1024 + 5 * 40_000


@pytest.mark.row("F64")
def test_a_replica_that_dies_is_forked_again_without_loading_again(shop: tuple[Site, Client]) -> None:
    site, client = shop
    (source,) = preloading(site)
    (victim, *_) = replicas_of(client)

    os.kill(victim, signal.SIGKILL)

    assert {one["loaded_by"] for one in replicas_of(client, but=victim).values()} == {source}


@pytest.mark.row("F64")
@pytest.mark.long  # tests/workers/test_preloads.py has that the process is started again
def test_when_the_process_itself_dies_another_one_loads_for_the_next_replica(site: Site) -> None:
    client = run_shop(site)
    (source,) = preloading(site)
    (victim, *_) = replicas_of(client)

    os.kill(source, signal.SIGKILL)
    os.kill(victim, signal.SIGKILL)

    loaded_by = {one["loaded_by"] for one in replicas_of(client, but=victim).values()}
    assert loaded_by == {source, *preloading(site)}
    assert source not in preloading(site)


def load() -> int:
    return os.getpid()


@qserve.deployment(preload=load)
class Model:
    def loaded_by(self) -> int:
        loaded: int = qserve.get_replica_context().preloaded
        return loaded


def start_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(600,), name="refreshes-the-cache", daemon=True).start()


def pretend_to_use_cuda() -> None:
    sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))  # type: ignore[assignment]


def end_the_process() -> None:
    os._exit(3)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def end_a_thread_in_time() -> int:
    thread = threading.Thread(target=time.sleep, args=(0.01,))
    thread.start()
    thread.join()
    return os.getpid()


def use_numpy() -> int:
    """OpenBLAS has threads of its own from its import on, which it ends and starts again for a fork."""
    import numpy

    ones = numpy.ones((400, 400))
    assert (ones @ ones)[0, 0] == 400
    return os.getpid()


@pytest.mark.row("F64")
@pytest.mark.parametrize(
    ("function", "why"),
    [
        (start_a_thread, r"preload '\S+:start_a_thread' of deployment 'Model' started threads \(refreshes-the-cache\)"),
        (pretend_to_use_cuda, r"preload '\S+:pretend_to_use_cuda' of deployment 'Model' initialized CUDA"),
        (end_the_process, r"its preload \S+:end_the_process ended its process: exit code 3"),
        (crash, r"its preload \S+:crash ended its process: SIGSEGV"),
    ],
)
def test_what_replicas_could_not_use_is_refused_and_the_version_before_goes_on(
    started: Started, function: Any, why: str
) -> None:
    handle = qserve.run(Model.bind())
    before = ask(handle.loaded_by)
    (supervisor,) = (pid for pid, title in started.site.processes().items() if "qserve worker" in title)

    with pytest.raises(DeployError, match=rf"'Model'(?s:.*){why}"):
        qserve.run(Model.options(preload=function).bind())

    assert ask(handle.loaded_by) == before
    assert is_alive(supervisor)
    wait_until(lambda: preloading(started.site).keys() == {before}, description="only the version before has a process")


@pytest.mark.parametrize("function", [end_a_thread_in_time, use_numpy])
def test_threads_that_end_before_a_fork_are_fine(started: Started, function: Any) -> None:
    loaded_by = ask(qserve.run(Model.options(preload=function).bind()).loaded_by)

    assert loaded_by in preloading(started.site)


def test_another_version_loads_anew_and_frees_what_was_loaded_for_the_one_before(started: Started) -> None:
    first = ask(qserve.run(Model.bind()).loaded_by)

    second = ask(qserve.run(Model.options(version="2").bind()).loaded_by)

    assert second != first
    wait_until(lambda: preloading(started.site).keys() == {second}, description="the first version's process has ended")
    qserve.delete("default")
    wait_until(lambda: not preloading(started.site), description="no process has anything loaded")
