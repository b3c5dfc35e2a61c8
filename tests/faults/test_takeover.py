"""A worker that is killed whole: others take its calls over long before its lease ends, and nobody else's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from invariants import check
from ledger import Line
from load import new_job
from processes import frozen, wait_until
from proxy import Proxy
from qserve_workers.process.connections import Connections
from rows import row
from stacks import SEAL, Stack, children_of, last

from qserve.deploy.installation import ReplicaReports

LEASE = {"QSERVE_LEASE_S": "600"}
"""None ends while a test runs: what is taken over is so by another sign."""
TAKEN = "has no connections any more; its "
RESETS, RESET_EVERY_S = 200, 0.1


def connections(stack: Stack, pids: set[int]) -> list[set[int]]:
    """The connections that each of these replicas has said it has; not of those that have said nothing."""
    client = stack.broker.client
    names = [one.name for one in stack.replicas("Left") if one.pid in pids]
    said = [Connections.read(SEAL, name, client.get(stack.keys.connections(name))) for name in names]
    return [set(words.ids) for words in said if words is not None]


def are_reading(stack: Stack, proxy: Proxy) -> bool:
    """Whether a replica behind a proxy waits at the broker for calls, which would be given to it at once."""
    return any(
        one["cmd"] == "xreadgroup" and "b" in one["flags"] and one["addr"] in proxy.addresses
        for one in stack.broker.client.client_list()
    )


def are_connected(stack: Stack, pids: set[int]) -> bool:
    """Whether these replicas have said which connections they have, and one of each is open."""
    is_open = {int(one["id"]) for one in stack.broker.client.client_list()}
    said = connections(stack, pids)
    return len(said) == len(pids) and all(ids & is_open for ids in said)


@row("F53")
def test_calls_of_a_worker_that_is_killed_whole_begin_elsewhere_before_its_lease_ends_and_only_those(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack().start(worker=LEASE)
    proxy, options = Proxy(stack.broker.port), ("--name", "default", "--deployment", "Left")
    behind = stack.worker(*options, env={**LEASE, "QSERVE_BROKER_URL": proxy.url})
    doomed = stack.worker(*options, env=LEASE)

    def is_theirs() -> bool:
        pids = {one.pid for one in stack.replicas("Left")}
        return len(pids) == 4 and pids == {*children_of(doomed.pid), *children_of(behind.pid)}

    wait_until(is_theirs, description="two workers run Left, which the first leaves to them")
    client, gate = stack.handles(), stack.ledger.new_file("gate")
    calls = [client.send(new_job(gate={"left": gate})) for _ in range(30)]
    ids, killed, reset = {call.id for call in calls}, {*children_of(doomed.pid)}, {*children_of(behind.pid)}

    def lines() -> list[Line]:
        return [line for line in stack.ledger.lines(node="left") if line.request in ids]

    wait_until(lambda: {line.request for line in lines()} == ids, description="30 calls run")
    held = {line.request for line in lines() if line.pid in killed}
    assert held and {line.request for line in lines() if line.pid in reset}

    # connections that are reset, those that the broker closes, and those of processes that stand still
    for _ in range(RESETS):
        proxy.cut()
        last(RESET_EVERY_S)
    stack.broker.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    wait_until(lambda: are_connected(stack, reset | killed), description="all have connected again")
    with frozen(behind.pid, *reset):
        wait_until(lambda: not are_reading(stack, proxy), description="the last reads of frozen replicas are over")
        os.killpg(doomed.pid, signal.SIGKILL)
        wait_until(lambda: stack.supervisor.output.count(TAKEN) == 2, description="two replicas are taken over")
        reports = ReplicaReports(stack.broker.client, stack.keys, SEAL, "default").replicas()
        assert killed.isdisjoint(one.pid for one in reports), "the status does not count them any more"
        Path(gate).touch()  # calls whose replica has died run alone, once the others of their replica have ended
        wait_until(
            lambda: held <= {line.request for line in lines() if line.pid not in killed},
            description="what the killed worker ran begins elsewhere",
        )
    client.wait(calls)
    behind.signal(signal.SIGTERM)
    assert behind.wait() == 0

    assert {line.request for line in lines()[len(ids) :]} == held
    assert stack.logs().count(TAKEN) == 2 and "sends no heartbeats" not in stack.logs()
    assert all(call.is_right for call in calls)
    check(stack, calls, reruns=len(held), may_log=["connection", "are handed over"])
    proxy.close()
