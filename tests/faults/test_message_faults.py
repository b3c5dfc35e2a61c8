"""Requests that cannot be read, cannot be answered, are cancelled, or come too late."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from invariants import check
from load import Call, HttpClient, new_job
from processes import Site, free_port, frozen, is_alive, is_open, wait_until
from rows import row
from stacks import Stack

import qserve


def pids(stack: Stack) -> set[int]:
    return {one.pid for one in stack.replicas()}


@row("F24")
@row("F45")
def test_messages_that_nobody_of_us_wrote_become_dead_letters_and_delay_nothing(stack: Stack) -> None:
    before, random_bytes = pids(stack), random.Random(24)
    load = stack.load()
    load.more(50)
    good = load.calls[-1]
    wait_until(lambda: good.ended_at, description="a request has ended")
    canary = b"canary-of-a-payload"

    with load.fault():
        for number in range(50):
            stream = random_bytes.choice(stack.streams())
            stack.broker.client.xadd(stream, forged(number, random_bytes, canary))
        dead = stack.keys.dead_letters
        wait_until(lambda: stack.broker.client.zcard(dead) == 50, description="all are dead letters")
    load.more(50)
    calls = load.stop()

    assert pids(stack) == before
    log = stack.supervisor.output
    assert canary.decode() not in log
    assert all(len(line) <= 1024 for line in log.splitlines() if "ERROR" in line)
    check(stack, calls, load=load, reruns=0, may_log=["unreadable message", "cannot be read"])


def forged(number: int, source: random.Random, canary: bytes) -> dict[bytes, bytes]:
    """A message that no client of ours would send."""
    kinds: list[Callable[[], dict[bytes, bytes]]] = [
        lambda: {b"h": source.randbytes(80) + canary, b"s": b"0", b"0": canary},
        lambda: {b"s": b"0", b"0": canary},
        lambda: {b"h": os.urandom(16).hex().encode() + canary, b"s": b"0"},
        lambda: {b"": canary},
        lambda: {source.randbytes(5): canary},
        # as long as a header of ours, and of a format that nobody writes yet
        lambda: {b"h": os.urandom(16).hex().encode() + b"\xff" * 60, b"s": b"0", b"0": b"?"},
    ]
    return kinds[number % len(kinds)]()


@row("F26")
def test_what_is_cancelled_while_it_waits_never_runs(stack: Stack) -> None:
    client = stack.handles()
    left = [one.pid for one in stack.replicas("Left")]
    with frozen(*left):
        calls = [client.send(new_job()) for _ in range(20)]
        wait_until(lambda: all(call.accepted for call in calls), description="all are accepted")
        for call in calls:
            assert call.ref is not None
            call.ref.cancel()
        client.wait(calls)

    assert all(call.error.startswith("RequestCancelled") for call in calls)
    wait_until(lambda: stack.ask().is_right, description="the replicas go on")
    # what had been handed to a frozen reader may run, and has no effects
    assert len(stack.ledger.lines(node="left")) <= len(left) + 1 + 1
    assert [line for line in stack.ledger.lines(node="join") if line.request in {call.id for call in calls}] == []
    check(stack, calls, reruns=0, may_fail=[call.id for call in calls])


@row("F26")
@pytest.mark.parametrize("is_stubborn", [False, True])
def test_what_is_cancelled_while_it_runs_is_told_and_has_no_effects(shared: Stack, is_stubborn: bool) -> None:
    client, gate = shared.handles(), shared.ledger.new_file(f"gate{is_stubborn}")
    call = client.send(new_job(gate={"left": gate, "right": gate}, is_stubborn=is_stubborn))
    wait_until(lambda: len(shared.ledger.lines(call.id)) == 2, description="it runs")
    assert call.ref is not None

    call.ref.cancel()
    call.ref.cancel()
    client.wait([call], 5)
    wait_until(lambda: len(shared.ledger.lines(call.id, event="told")) == 2, description="both branches are told")
    Path(gate).touch()
    if is_stubborn:
        wait_until(lambda: len(shared.ledger.lines(call.id, event="end")) == 2, description="they end all the same")

    assert call.error.startswith("RequestCancelled")
    check(shared, [call, shared.ask()], reruns=0, may_fail=[call.id])
    assert shared.ledger.lines(call.id, "join") == []


@row("F26")
def test_what_is_cancelled_runs_nowhere_again_when_its_replica_dies(stack: Stack) -> None:
    client, gate = stack.handles(), stack.ledger.new_file("gate")
    call = client.send(new_job(gate={"left": gate}, is_stubborn=True))
    (line,) = wait_until(lambda: stack.ledger.lines(call.id, "left"), description="it runs")
    assert call.ref is not None

    call.ref.cancel()
    wait_until(lambda: stack.ledger.lines(call.id, event="told"), description="it is told")
    os.kill(line.pid, signal.SIGKILL)
    wait_until(lambda: len(stack.replicas("Left")) == 2 and line.pid not in pids(stack), description="it is replaced")
    client.wait([call], 5)

    assert call.error.startswith("RequestCancelled")
    check(stack, [call, stack.ask()], reruns=0, may_fail=[call.id], may_log=["was sent SIGKILL", "killed"])
    assert len(stack.ledger.lines(call.id, "left")) == 1


@row("F26")
def test_a_coroutine_that_ignores_its_cancellation_is_left_to_the_stall_limit(stack: Stack) -> None:
    client, gate = stack.handles(), stack.ledger.new_file("gate")
    call = client.send(new_job(gate={"left": gate}, is_stubborn=True))
    (line,) = wait_until(lambda: stack.ledger.lines(call.id, "left"), description="it runs")
    assert call.ref is not None

    call.ref.cancel()
    wait_until(lambda: not is_alive(line.pid), description="its replica is ended")
    client.wait([call], 5)

    assert call.error.startswith("RequestCancelled")
    told = stack.ledger.lines(call.id, event="told")
    assert [one.pid for one in told] == [line.pid] * 2  # by the cancellation, and before the end
    assert told[1].at - told[0].at >= float(stack.env["QSERVE_STALL_LIMIT_S"])
    check(stack, [call, stack.ask()], reruns=0, may_fail=[call.id], may_log=["still runs", "stalled"])
    assert len(stack.ledger.lines(call.id, "left")) == 1


@row("F27")
def test_what_runs_at_its_deadline_is_told_although_nobody_is_left_who_waits(stack: Stack) -> None:
    client, gate = stack.http(), stack.ledger.new_file("gate")
    call = client.send(new_job(gate={"left": gate}), {"x-request-timeout-seconds": "3"})
    wait_until(lambda: stack.ledger.lines(call.id, "left"), description="it runs")
    for pid in [stack.front.pid, *stack.gateway_workers()]:
        os.kill(pid, signal.SIGKILL)
    client.wait([call], 10)

    wait_until(lambda: stack.ledger.lines(call.id, event="told"), description="it is told")

    stack.front = stack.gateway()
    wait_until(stack.is_serving, description="the gateway is healthy")
    check(stack, [stack.ask()], reruns=0)
    assert stack.ledger.lines(call.id, "join") == []


@row("F26")
def test_a_thousand_cancellations_that_race_with_the_commit_give_a_result_or_a_cancellation(shared: Stack) -> None:
    client, source = shared.handles(), random.Random(26)
    calls: list[Call] = []
    timers = []
    for _ in range(1000):
        call = client.send(new_job())
        calls.append(call)
        assert call.ref is not None
        timer = threading.Timer(source.uniform(0.0, 0.02), call.ref.cancel)
        timer.start()
        timers.append(timer)
        if len(timers) >= 50:
            timers.pop(0).join()
    client.wait(calls)

    outcomes = Counter(call.ref.outcome().state for call in calls if call.ref is not None)
    assert set(outcomes) == {"c", "d"}, outcomes
    for call in calls:
        assert call.ref is not None
        state = shared.broker.client.hget(shared.keys.request(call.ref.request_id), "st")
        # the first call may be cancelled before the broker has told the client its epoch: it is never accepted then
        assert state == (call.ref.outcome().state.encode() if call.ref.acceptance.get_nowait() else None)
    cancelled = [call.id for call in calls if call.error.startswith("RequestCancelled")]
    check(shared, calls, reruns=0, may_fail=cancelled)


@row("F27")
def test_what_waited_past_its_deadline_is_answered_then_and_never_runs(stack: Stack) -> None:
    stack.supervisor.signal(signal.SIGTERM)
    assert stack.supervisor.wait() == 0
    client = stack.http()
    calls = [client.send(new_job(), {"x-request-timeout-seconds": "1"}) for _ in range(10)]
    client.wait(calls)

    for call in calls:
        assert call.status == 504
        assert 1.0 <= call.took_s <= 1.0 + 10.0
    left = {stream: stack.broker.client.xlen(stream) for stream in stack.streams()}
    assert set(left.values()) == {0}, left
    stack.supervisor = stack.worker()
    stack.wait_replicas()
    check(stack, [*calls, stack.ask()], reruns=0)
    ids = {call.id for call in calls}
    assert [line for line in stack.ledger.lines() if line.request in ids] == []


@row("F45")
def test_two_versions_of_the_functions_serve_one_queue(stack: Stack, site: Site) -> None:
    other = site.folder / "other"
    shutil.copytree(Path(qserve.__file__).parent, other / "qserve", ignore=shutil.ignore_patterns("__pycache__"))
    (changed,) = (other / "qserve" / "broker" / "lua").glob("commit.lua")
    changed.write_text(changed.read_text() + "-- a later version\n")
    env = {"PYTHONPATH": str(other)}
    before = functions(stack)
    # only who deploys may load functions: workers and gateways of a later version find them there
    loading = stack.site.start([sys.executable, "-c", LOADS, stack.broker.url], env=env)
    assert loading.wait() == 0, loading.output
    old = stack.http()
    newer = HttpClient(free_port())
    stack.gateway(port=newer.port, env=env)
    wait_until(lambda: is_open(newer.port), description="the newer gateway listens")
    newer_worker = stack.worker("--name", "default", "--deployment", "Left", "--replicas", "1", env=env)
    stack.wait_shared("Left", newer_worker)

    calls = []
    for _ in range(100):
        calls += [old.send(new_job()), newer.send(new_job())]
    old.wait(calls)

    assert len(functions(stack)) == len(before) + 1
    assert all(call.is_right for call in calls), [call for call in calls if not call.is_right][:3]
    ran = Counter(line.pid for line in stack.ledger.lines(node="left"))
    assert len(ran) == 2, ran
    stack.processes[-1].signal(signal.SIGTERM)
    assert stack.processes[-1].wait() == 0
    check(stack, calls, reruns=0)


LOADS = """
import sys
from qserve.broker.connection import connect, load_functions
load_functions(connect(sys.argv[1]))
"""


def functions(stack: Stack) -> set[bytes]:
    """The names of the libraries that are loaded."""
    found = stack.broker.client.execute_command("FUNCTION", "LIST")
    return {library[1] for library in found}
