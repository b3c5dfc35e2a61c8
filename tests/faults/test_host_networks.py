"""Three hosts, two of them in networks of their own: one is cut off, and comes back."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from brokers import Broker
from invariants import check
from networks import Network, networks
from processes import Process, Site, wait_until
from rows import row
from stacks import Stack, children_of

GONE = "is gone; what it was to run is placed elsewhere"


@pytest.fixture
def two_networks() -> Iterator[list[Network]]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(networks(2))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no networks can be made here: {error}")
        yield made


def run_there(stack: Stack, host: Process) -> set[int]:
    """The processes of a host's replicas that report themselves."""
    return {one.pid for one in stack.replicas()} & {*children_of(host.pid)}


@row("F56")
def test_what_a_host_ran_that_is_cut_off_runs_elsewhere_and_comes_back_with_it(
    new_stack: Callable[..., Stack], site: Site, two_networks: list[Network]
) -> None:
    reached = ("--protected-mode", "no", "--bind", "127.0.0.1", *(one.address for one in two_networks))
    stack = new_stack(broker=Broker(site, options=reached, guarded=True))
    stack.supervisor = stack.worker("--name", "default", "--host", "first", "--places", "6")
    stack.front = stack.gateway()
    second, third = (
        stack.worker(
            *("--name", "default", "--host", f"host{number}", "--places", "6"),
            env={"QSERVE_BROKER_URL": f"redis://{network.address}:{stack.broker.port}/0"},
            within=network.within,
        )
        for number, network in enumerate(two_networks, 2)
    )
    hosts = (stack.supervisor, second, third)
    wait_until(lambda: stack.broker.client.hlen(stack.keys.hosts) == 3, description="three hosts offer places")
    deploying = stack.deploy()
    assert deploying.wait() == 0, deploying.output
    stack.wait_replicas()
    wait_until(stack.is_serving, description="the gateway is healthy")
    wait_until(lambda: all(len(run_there(stack, one)) == 2 for one in hosts), description="each host runs two")
    load = stack.load(rate=50)
    load.more(50)

    two_networks[1].cut()

    wait_until(
        lambda: len(run_there(stack, stack.supervisor)) + len(run_there(stack, second)) == 6,
        description="the other two hosts run all that is wanted",
    )
    load.more(100)
    two_networks[1].join()
    wait_until(lambda: len(run_there(stack, third)) == 2, description="the third runs as many as before")
    stack.wait_replicas()
    load.more(100)
    calls = load.stop()

    assert sum(one.output.count(GONE) for one in hosts) == 1, "one host decides that, and says so"
    # a replica may just start there when the network is cut
    allowed = ["connection", "sends no heartbeats", "are handed over", GONE, "cannot report that it has failed"]
    check(stack, calls, reruns=100, may_log=[*allowed, "can be started .*in its log"])
    for host in hosts:
        host.signal(signal.SIGTERM)
    assert [host.wait() for host in hosts] == [0, 0, 0]
