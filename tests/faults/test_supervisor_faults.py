"""Supervisors that die or are told to go: replicas do not outlive them, and what they ran goes on elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from installation import Installation
from invariants import check
from ledger import Line
from load import new_job
from processes import PATIENCE_S, is_alive, wait_until
from rows import row
from stacks import Stack, children_of, kill

from qserve.exceptions import AppNotFound


@row("F4")
def test_replicas_do_not_outlive_a_killed_supervisor_and_the_next_one_goes_on(stack: Stack) -> None:
    load = stack.load()
    load.more(100)
    children = children_of(stack.supervisor.pid)

    with load.fault():
        kill(stack.supervisor.pid)
        stack.supervisor = stack.worker()
        wait_until(
            lambda: not any(is_alive(pid) for pid in children),
            description="no replica of the killed supervisor is left",
        )
        stack.wait_replicas()
    load.more(100)
    calls = load.stop()

    assert all(call.is_right for call in calls)
    # replicas are told by the kernel and finish what they run
    check(stack, calls, load=load, reruns=0)


@row("F21")
def test_hosts_that_leave_finish_what_they_run(stack: Stack) -> None:
    extra = [stack.worker("--name", "default", "--replicas", "2") for _ in range(3)]
    wait_until(lambda: len(stack.replicas()) == 18, description="three hosts run all that is wanted, and more")
    load = stack.load(make=lambda: new_job(sleep_s={"left": 0.05}))
    load.more(100)
    client = stack.handles()
    slow = [client.send(new_job(sleep_s={"left": 1.0})) for _ in range(40)]
    ids = {call.id for call in slow}
    leaving = children_of(extra[1].pid)

    def held() -> list[Line]:
        return [line for line in stack.ledger.lines(node="left") if line.request in ids]

    wait_until(lambda: len(held()) == len(slow), description="the slow calls run")
    told = next(line.pid for line in held() if line.pid in leaving)

    with load.fault():
        extra[0].signal(signal.SIGTERM)
        extra[1].signal(signal.SIGTERM)
        os.kill(told, signal.SIGTERM)
        extra[1].signal(signal.SIGTERM)
        codes = [host.wait() for host in extra[:2]]
        extra[2].signal(signal.SIGTERM)
        codes.append(extra[2].wait())
        client.wait(slow)
        stack.wait_replicas()
    load.more(100)
    calls = [*load.stop(), *slow]

    assert codes == [0, 0, 0]
    assert all(call.is_right for call in calls)
    check(stack, calls, load=load, reruns=0)


@row("F21")
def test_what_runs_longer_than_the_grace_is_handed_over(stack: Stack) -> None:
    host = stack.worker("--name", "default", "--deployment", "Left", "--replicas", "1")
    stack.wait_shared("Left", host)
    client, gate = stack.handles(), stack.ledger.new_file("gate")
    calls = [client.send(new_job(gate={"left": gate})) for _ in range(40)]
    leaving = set(children_of(host.pid))
    wait_until(lambda: len(stack.ledger.lines(node="left")) == 40, description="40 calls run")
    there = [line for line in stack.ledger.lines(node="left") if line.pid in leaving]
    assert there

    host.signal(signal.SIGTERM)
    assert host.wait() == 0
    Path(gate).touch()
    client.wait(calls)

    assert all(call.is_right for call in calls)
    check(stack, calls, reruns=len(there), may_log=["go to other replicas"])


@row("F52")
def test_what_killed_workers_held_ends_when_their_application_is_deleted(shop: Installation) -> None:
    worker = shop.serve()
    gate = shop.site.folder / "gate"
    calls = [shop.call("work", 0.0, str(gate), timeout_s=3600) for _ in range(2)]
    wait_until(lambda: shop.pending() > 0, description="one runs")
    worker.signal(signal.SIGKILL)
    worker.wait()

    # its replicas send heartbeats for a moment longer
    text = "import qserve; qserve.delete('default')"
    environment = {**os.environ, **shop.env}
    subprocess.run([sys.executable, "-c", text], env=environment, check=True, timeout=PATIENCE_S)

    for call in calls:
        with pytest.raises(AppNotFound, match="the application was deleted before this call was finished"):
            call.result(PATIENCE_S)
    assert not [*shop.client.scan_iter("*:q:default:*")]
