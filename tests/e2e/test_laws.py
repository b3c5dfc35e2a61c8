"""The laws of what a request costs at the broker, held by counts and ratios and never by times.

``benchmarks/`` measures what the same costs in milliseconds. That nothing connects while nothing happens is in
test_idle.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import redis
from http_client import Client
from processes import Site, new_site

pytestmark = pytest.mark.slow

SOURCE = """
import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

@qserve.deployment
class Steps:
    def add_one(self, x: int) -> int:
        return x + 1

    def make(self, size: int) -> bytes:
        return bytes(size)

    def pass_on(self, value: bytes) -> bytes:
        return value

    def length(self, value: bytes) -> int:
        return len(value)

def chain(method, start, steps):
    for _ in range(steps):
        start = method.bind(start)
    return start

steps = Steps.bind()
with InputNode() as sent:
    made = steps.make.bind(sent)
    routes = {f"/small/{count}": chain(steps.add_one, sent, count) for count in (1, 5)}
    routes |= {f"/large/{count}": steps.length.bind(chain(steps.pass_on, made, count)) for count in (1, 5)}
app = DAGDriver.bind(routes, http_adapter=json_request)
"""
LONGER = 4
"""How many hops the longer chain of each pair has more."""
LARGE = 1_000_000
COUNT = 200


class Counted(NamedTuple):
    """What a broker has done since it started."""

    commands: int
    functions: int
    connections: int
    received: int
    sent: int

    def since(self, before: Counted) -> Counted:
        return Counted(*(now - then for now, then in zip(self, before, strict=True)))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with new_site() as made:
        yield made


@pytest.fixture(scope="module")
def serving(site: Site) -> tuple[Client, redis.Redis]:
    running = site.run("laws:app", cwd=site.write("laws.py", SOURCE))
    (socket,) = site.folder.glob("qserve-*/broker.sock")
    return Client(running.port), redis.Redis(unix_socket_path=str(socket))


def counted(broker: redis.Redis) -> Counted:
    calls: Any = broker.info("commandstats")
    stats: Any = broker.info("stats")
    return Counted(
        sum(one["calls"] for one in calls.values()),
        calls["cmdstat_fcall"]["calls"],
        stats["total_connections_received"],
        stats["total_net_input_bytes"],
        stats["total_net_output_bytes"],
    )


def cost_of(serving: tuple[Client, redis.Redis], path: str, body: int, answer: int, count: int) -> Counted:
    """What so many requests cost, one after the other."""
    client, broker = serving
    assert client.post(path, body).json == answer  # whatever is done once is done
    before = counted(broker)
    for _ in range(count):
        assert client.post(path, body).json == answer
    return counted(broker).since(before)


def test_a_hop_is_two_calls_of_functions_and_a_fixed_number_of_commands(serving: tuple[Client, redis.Redis]) -> None:
    short, longer = (cost_of(serving, f"/small/{steps}", 0, steps, COUNT) for steps in (1, 1 + LONGER))

    hops = COUNT * LONGER
    # one reads the call, one commits it; the heartbeats of a slow machine are among them
    assert 1.8 < (longer.functions - short.functions) / hops < 2.4
    assert (longer.commands - short.commands) / hops < 16, "more commands a hop, those inside functions included"
    assert longer.connections == 0, "a request has opened a connection"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
def test_a_large_value_does_not_pass_through_the_broker_at_all(serving: tuple[Client, redis.Redis]) -> None:
    short, longer = (cost_of(serving, f"/large/{steps}", LARGE, LARGE, 5) for steps in (1, 1 + LONGER))

    carried = 5 * LONGER * LARGE
    assert (longer.received - short.received) / carried < 0.05
    assert (longer.sent - short.sent) / carried < 0.05
