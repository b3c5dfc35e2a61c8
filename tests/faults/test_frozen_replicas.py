"""Replicas that stand still, run for ever, or run out of memory: others finish what they held."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cgroups import limited
from invariants import check
from ledger import DIAMOND
from load import Call, new_job
from processes import PATIENCE_S, frozen, is_alive, wait_until
from proxy import Proxy
from rows import row
from stacks import LEASE_S, Stack, children_of, last

from qserve import Event

AT_ONCE = 100
LOGGED = ("blocked the event loop", "frozen", "died", "Current thread")
LATE_S = 10.0
"""How late the answer of a request may be whose deadline has passed; the promise is a second."""


@row("F5")
def test_the_work_of_a_frozen_replica_is_taken_over_after_its_lease(shared: Stack) -> None:
    stack = shared
    load = stack.load()
    load.more(50)
    client, gate = stack.handles(), stack.ledger.new_file("gate")
    call = client.send(new_job(gate={"left": gate}))
    first = wait_until(lambda: stack.ledger.lines(call.id, "left"), description="its call runs")[0]

    with load.fault(), frozen(first.pid):
        again = wait_until(lambda: stack.ledger.lines(call.id, "left")[1:], description="it runs elsewhere")[0]
        Path(gate).touch()
        client.wait([call])
        wait_until(lambda: not is_alive(first.pid), description="the frozen replica is killed")
        stack.wait_replicas()
    load.more(50)
    calls = load.stop()

    assert again.pid != first.pid
    assert f"frozen: no heartbeat for {LEASE_S:g} s" in stack.supervisor.output
    check(stack, [*calls, call], load=load, reruns=AT_ONCE)


def second_host(stack: Stack, **env: str) -> tuple[list[int], set[int]]:
    """One more supervisor with a replica of Left: all its processes, and the replicas among them."""
    host = stack.worker("--name", "default", "--deployment", "Left", "--replicas", "1", env=env)
    stack.wait_shared("Left", host)
    replicas = set(children_of(host.pid))
    return [host.pid, *replicas], replicas


@row("F5")
@pytest.mark.long  # tests/faults/test_replica_connections.py has what running code learns after a lost connection
def test_a_host_that_wakes_after_its_lease_is_told_that_others_have_run_its_calls_and_goes_on(stack: Stack) -> None:
    processes, replicas = second_host(stack)
    client, gate = stack.handles(), stack.ledger.new_file("gate")
    calls = [client.send(new_job(gate={"left": gate})) for _ in range(30)]
    wait_until(lambda: len(stack.ledger.lines(node="left")) == 30, description="30 calls run")
    held = {line.request for line in stack.ledger.lines(node="left") if line.pid in replicas}
    assert held

    with frozen(*processes):
        stack.supervisor.wait_for("sends no heartbeats any more")
        Path(gate).touch()
        client.wait(calls)
        Path(gate).unlink()  # the frozen executions would wait for ever
    woken_at = time.monotonic()
    wait_until(
        lambda: {line.request for line in stack.ledger.lines(node="left", event="told")} == held,
        description="the frozen calls are told",
    )
    assert {line.pid for line in stack.ledger.lines(node="left", event="told")} <= replicas
    load = stack.load()
    wait_until(
        lambda: [line.at for line in stack.ledger.lines(node="left") if line.at > woken_at and line.pid in replicas],
        description="the woken host takes calls again",
    )
    later = load.stop()

    assert all(map(is_alive, processes))
    assert all(call.is_right for call in calls)
    stack.processes[-1].signal(signal.SIGTERM)
    assert stack.processes[-1].wait() == 0
    # the last read of a frozen replica may be open longer than this short lease, and takes a call once more
    check(stack, [*calls, *later], reruns=2 * len(held))


def pairs(heard: list[Event]) -> set[tuple[str, str]]:
    """What was heard before what."""
    return set(itertools.combinations([one.name for one in heard], 2))


@row("F58")
def test_nobody_hears_what_a_frozen_replica_says_when_others_have_taken_over(stack: Stack) -> None:
    processes, replicas = second_host(stack)
    client, calls, pid = stack.handles(), list[Call](), 0
    while pid not in replicas:
        gate = stack.ledger.new_file("gate")
        if calls:
            Path(calls[-1].job["gate"]["left"]).touch()
            client.wait(calls)
        calls.append(client.send(new_job(gate={"left": gate}, tells=["left"])))
        pid = wait_until(lambda: stack.ledger.lines(calls[-1].id, "left"), description="its call runs")[0].pid
    followed, heard = calls[-1], list[Event]()
    ref = followed.ref
    assert ref is not None

    def follow() -> None:
        for event in ref.events():
            heard.append(event)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    wait_until(lambda: "progress" in [one.name for one in heard], description="the first one is heard")
    with frozen(*processes):
        wait_until(lambda: ("taken_over", "progress") in pairs(heard), description="the next one is heard")
    wait_until(
        lambda: stack.ledger.lines(followed.id, "left", event="told"), description="the first one has woken and gone on"
    )
    Path(gate).touch()
    client.wait(calls)
    reader.join(PATIENCE_S)

    names = [one.name for one in heard]
    before, after = heard[: names.index("taken_over")], heard[names.index("taken_over") :]
    assert {one.message for one in before if one.name == "progress"} == {str(pid)}
    assert not {one.message for one in after if one.name == "progress"} & set(map(str, replicas))
    assert [one.attempt for one in after[:2]] == [2, 2]
    assert (names[0], names[-1], heard[-1].status) == ("accepted", "end", "done")
    numbers = [int(one.id) for one in heard[:-1]]
    assert numbers == sorted(set(numbers))
    check(stack, calls, reruns=2)


@row("F11")
def test_a_host_that_is_cut_off_in_silence_is_taken_over_and_comes_back(stack: Stack) -> None:
    proxy = Proxy(stack.broker.port)
    _, replicas = second_host(stack, QSERVE_BROKER_URL=proxy.url)
    load = stack.load()
    load.more(50)
    client, gate = stack.handles(), stack.ledger.new_file("gate")
    calls = [client.send(new_job(gate={"left": gate})) for _ in range(30)]
    wait_until(
        lambda: {call.id for call in calls} <= {line.request for line in stack.ledger.lines(node="left")},
        description="30 calls run",
    )
    ids = {call.id for call in calls}
    assert [line for line in stack.ledger.lines(node="left") if line.pid in replicas and line.request in ids]

    with load.fault():
        proxy.black_hole()
        began = time.monotonic()
        # they come to their end at once, but only the host that was cut off knows
        Path(gate).touch()
        client.wait(calls)
        took_s = time.monotonic() - began
        last(4.0 - took_s if took_s < 4.0 else 0.0)
        proxy.restore()
        restored_at = time.monotonic()
        wait_until(
            lambda: any(line.at > restored_at and line.pid in replicas for line in stack.ledger.lines(node="left")),
            description="it takes calls again",
        )
    load.more(50)
    others = load.stop()

    assert all(call.is_right for call in calls)
    stack.processes[-1].signal(signal.SIGTERM)
    assert stack.processes[-1].wait() == 0
    check(
        stack, [*calls, *others], load=load, reruns=AT_ONCE,
        may_log=["silent", "connection", "cannot be reached"],
    )  # fmt: skip
    proxy.close()


@row("F18")
@pytest.mark.parametrize("ways", [("regex", "block"), pytest.param(("spin",), marks=pytest.mark.long)], ids="+".join)
def test_user_code_that_never_ends_costs_its_replica_and_nobody_else(shared: Stack, ways: tuple[str, ...]) -> None:
    stack = shared
    load = stack.load()
    load.more(50)
    client, endless = stack.http(), []

    with load.fault():
        for how in ways:
            # less than the lease: before it is taken from a frozen replica its deadline has passed
            call = client.send(new_job(do={"left": how}), {"x-request-timeout-seconds": "1"})
            endless.append(call)
            first = wait_until(lambda call=call: stack.ledger.lines(call.id, "left"), description=f"{how} runs")[0]
            client.wait([call])
            wait_until(lambda first=first: not is_alive(first.pid), description="its replica is killed")
            stack.wait_replicas()
            # its deadline had passed before it could be handed on
            assert len(stack.ledger.lines(call.id, "left")) == 1
            assert (call.status, json_code(call.error)) == (504, "deadline_exceeded")
            assert call.took_s <= 1.0 + LATE_S
    load.more(50)
    calls = load.stop()

    assert "in misbehave" in stack.supervisor.output
    check(stack, [*calls, *endless], load=load, reruns=len(ways) * AT_ONCE, may_log=[*LOGGED])


def json_code(text: str) -> str:
    """The word for programs in an error's body."""
    return str(json.loads(text)["error"]["code"])


@row("F15")
def test_a_call_that_runs_out_of_memory_fails_alone_and_is_named(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(replicas=1).start()
    client, gate = stack.handles(), stack.ledger.new_file("gate")
    with limited("memory", {"memory.limit_in_bytes": "400M"}) as group:
        stack.supervisor.signal(signal.SIGTERM)
        assert stack.supervisor.wait() == 0
        stack.supervisor = stack.worker(within=group)
        stack.wait_replicas()
        innocents = [client.send(new_job(gate={"left": gate})) for _ in range(63)]
        wait_until(lambda: len(stack.ledger.lines(node="left")) == 63, description="63 calls run")
        guilty = client.send(new_job(do={"left": "allocate"}))
        wait_until(lambda: stack.ledger.lines(guilty.id), description="the poison runs")
        Path(gate).touch()
        client.wait([guilty, *innocents])
        stack.wait_replicas()

        assert guilty.error.startswith("ReplicaLost"), guilty
        assert len(stack.ledger.lines(guilty.id, "left")) == 3
        assert all(call.is_right for call in innocents)
        assert "oom_killed: SIGKILL, because of the memory limit of 400 MiB" in stack.supervisor.output
        check(stack, [guilty, *innocents], reruns=63 + 2, may_fail=[guilty.id])


SLOW = DIAMOND.replace(
    'class Left:\n    async def __call__(self, job):\n        return await run(job, "left", lambda x: 2 * x)\n',
    """class Left:
    def __call__(self, job):
        while job.get("slow") and open(job["slow"]).read() == str(os.getpid()):
            time.sleep(0.01)
        try:
            run(job, "left", lambda x: 2 * x).send(None)  # awaits nothing for a job like these
        except StopIteration as end:
            return end.value
""",
)


@row("F14")
def test_a_slow_replica_does_not_sit_on_calls_that_others_could_run(new_stack: Callable[..., Stack]) -> None:
    assert SLOW != DIAMOND
    stack = new_stack(env={"QSERVE_STALL_LIMIT_S": "600"})
    stack.write_app(text=SLOW)
    stack.start()
    name = Path(stack.ledger.new_file("slow"))
    name.write_text("")
    load = stack.load(make=lambda: new_job(slow=str(name)))
    load.more(150)

    name.write_text(str(stack.replicas("Left")[0].pid))
    load.more(100)
    sent = [*load.calls]
    # one of them is slow for as long as this lasts, and all that lay behind it have been run by the other replica
    wait_until(lambda: sum(not call.ended_at for call in sent) == 1, description="all but the slow call have ended")
    name.write_text("")
    load.more(50)
    calls = load.stop()

    assert all(call.is_right for call in calls)
    check(stack, calls, reruns=0)
