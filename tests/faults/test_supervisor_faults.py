"""Supervisors that die or are told to go: replicas do not outlive them, and what they ran goes on elsewhere."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from invariants import check
from ledger import Line
from load import new_job
from processes import is_alive, wait_until
from rows import row
from stacks import SLACK, Stack, children_of, kill

ORPHANS_FOR_S = 5.0
RESTART_S = 3.0 * SLACK
AT_ONCE = 100


@row("F4")
def test_replicas_do_not_outlive_a_killed_supervisor_and_the_next_one_goes_on(stack: Stack) -> None:
    load = stack.load()
    load.more(100)
    children = children_of(stack.supervisor.pid)

    with load.fault():
        killed_at = time.monotonic()
        kill(stack.supervisor.pid)
        stack.supervisor = stack.worker()
        wait_until(
            lambda: not any(is_alive(pid) for pid in children),
            description="no replica of the killed supervisor is left",
            timeout_s=ORPHANS_FOR_S * SLACK,
        )
        stack.wait_replicas()
        ready_at = time.monotonic()
    load.more(100)
    calls = load.stop()

    assert ready_at - killed_at <= RESTART_S
    assert all(call.is_right for call in calls)
    # replicas are told by the kernel and finish what they run
    check(stack, calls, load=load, reruns=0)


@row("F21")
def test_hosts_that_leave_finish_what_they_run(stack: Stack) -> None:
    extra = [stack.worker("--name", "default") for _ in range(3)]
    wait_until(lambda: len(stack.replicas()) == 24, description="four hosts run replicas", timeout_s=30)
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
        began = time.monotonic()
        codes = [host.wait(20) for host in extra[:2]]
        took_s = time.monotonic() - began
        extra[2].signal(signal.SIGTERM)
        codes.append(extra[2].wait(20))
        client.wait(slow, 10)
        stack.wait_replicas()
    load.more(100)
    calls = [*load.stop(), *slow]

    assert codes == [0, 0, 0]
    assert took_s <= (0.05 + 2.0) * SLACK
    assert all(call.is_right for call in calls)
    check(stack, calls, load=load, reruns=0)


@row("F21")
def test_what_runs_longer_than_the_grace_is_handed_over(stack: Stack) -> None:
    host = stack.worker("--name", "default", "--deployment", "Left")
    wait_until(lambda: len(stack.replicas("Left")) == 4, description="two hosts run Left", timeout_s=30)
    client, gate = stack.handles(timeout_s=60), stack.ledger.new_file("gate")
    calls = [client.send(new_job(gate={"left": gate})) for _ in range(40)]
    leaving = set(children_of(host.pid))
    wait_until(lambda: len(stack.ledger.lines(node="left")) == 40, description="40 calls run")
    there = [line for line in stack.ledger.lines(node="left") if line.pid in leaving]
    assert there

    host.signal(signal.SIGTERM)
    assert host.wait(60) == 0
    Path(gate).touch()
    client.wait(calls, 30)

    assert all(call.is_right for call in calls)
    check(stack, calls, reruns=len(there), deadline_s=60, may_log=["are handed over"])
