"""An installation that has nothing to do does next to nothing: counted in commands, connections, wake-ups and memory.

``benchmarks/idle.py`` measures what that costs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from http_client import Client
from processes import Site, new_site, wait_until

pytestmark = pytest.mark.slow

SOURCE = """
import qserve

def leaf(name):
    class Leaf:
        def __call__(self):
            return name
    return qserve.deployment(name=name, ray_actor_options={"num_cpus": 0.01})(Leaf)

@qserve.deployment(ray_actor_options={"num_cpus": 0.01})
class Front:
    def __init__(self, *leaves):
        self.leaves = leaves
    async def __call__(self, request):
        return [await (await leaf.remote()) for leaf in self.leaves]

app = Front.bind(leaf("A").bind(), leaf("B").bind())
"""
WATCHED_S = 16.0
"""Long enough for every loop that turns once in a heartbeat of 3.75 s to turn four times."""


@dataclass
class Seen:
    """What an installation has done in a minute, and how often its processes woke up in it, by their titles."""

    commands: float
    connections: float
    wakeups: dict[str, float]

    def of(self, title: str) -> float:
        return sum(count for name, count in self.wakeups.items() if title in name)


def wakeups(pid: int) -> int:
    """Return how often the threads of a process went to sleep."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            found += int(line.split()[1]) if line.startswith("voluntary_ctxt_switches") else 0
    return found


def own_kilobytes(pid: int) -> int:
    """Return how much memory belongs to a process alone."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))


def commands_of(client: redis.Redis) -> int:
    stats: Any = client.info("commandstats")
    return sum(one["calls"] for one in stats.values())


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with new_site() as made:
        yield made


@pytest.fixture(scope="module")
def seen(site: Site) -> Seen:
    serving = site.run("idle_shop:app", cwd=site.write("idle_shop.py", SOURCE))
    assert Client(serving.port).get("/").json == ["A", "B"]
    (socket,) = site.folder.glob("qserve-*/broker.sock")
    client = redis.Redis(unix_socket_path=str(socket))

    def is_at_rest() -> bool:
        """Return whether the leader has seen for long enough that nothing changes, in a whole round of heartbeats."""
        before = commands_of(client)
        time.sleep(4.0)
        return commands_of(client) - before < 90

    wait_until(is_at_rest, description="the installation is at rest")
    titles = site.processes()
    before = {pid: wakeups(pid) for pid in titles}
    commands, connections = commands_of(client), client.info("stats")["total_connections_received"]
    began = time.monotonic()
    time.sleep(WATCHED_S)
    minutes = (time.monotonic() - began) / 60
    return Seen(
        (commands_of(client) - commands - 2) / minutes,
        (client.info("stats")["total_connections_received"] - connections) / minutes,
        {f"{title} {pid}": (wakeups(pid) - before[pid]) / minutes for pid, title in titles.items()},
    )


def test_nobody_connects(seen: Seen) -> None:
    assert seen.connections == 0


def test_the_broker_gets_few_commands(seen: Seen) -> None:
    assert seen.commands < 2_000


def test_qserve_run_sleeps_until_a_child_ends(seen: Seen) -> None:
    assert seen.of("-m qserve run") < 10


def test_a_supervisor_wakes_up_for_its_own_heartbeat_and_what_the_broker_says(seen: Seen) -> None:
    assert seen.of("qserve worker") < 8 * 60


def test_a_replica_wakes_up_for_its_heartbeat_and_little_else(seen: Seen) -> None:
    assert seen.of("qserve replica") / 3 < 2 * 60


def test_a_further_replica_of_code_that_is_imported_takes_little_memory(site: Site, seen: Seen) -> None:
    """Nearly all of its pages are those of its supervisor: 15 MB are its own, and 25 would be news."""
    replicas = [pid for pid, title in site.processes().items() if "qserve replica" in title]
    own = [own_kilobytes(pid) for pid in replicas]

    assert len(own) == 3
    assert max(own) < 25_000, own
