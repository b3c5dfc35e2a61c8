"""Replicas that die: what they ran is run again, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from invariants import check
from ledger import NODES
from load import new_job
from processes import wait_until
from rows import row
from stacks import LEASE_S, Stack, kill

LONG_LEASE_S = 600
"""So long that nothing is handed over because a lease has ended."""
KILLS = 5
AT_ONCE = 100
"""Calls that a replica takes at once, by default."""


@row("F1")
def test_calls_of_a_replica_that_is_killed_start_again_at_once_elsewhere(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(env={"QSERVE_LEASE_S": str(LONG_LEASE_S)}).start()
    load = stack.load()
    load.more(100)
    client = stack.http()
    calls = []

    for _ in range(KILLS):
        gate = stack.ledger.new_file("gate")
        job = new_job(gate={"left": gate})
        call = client.send(job)
        first = wait_until(lambda job=job: stack.ledger.lines(job["id"], "left"), description="its call has started")[0]
        with load.fault():
            kill(first.pid)
            again = wait_until(
                lambda job=job: stack.ledger.lines(job["id"], "left")[1:], description="it has started again"
            )[0]
            stack.wait_replicas()
        Path(gate).touch()
        client.wait([call])
        calls.append(call)

        assert again.pid != first.pid
        assert call.status == 200
        assert len(stack.ledger.lines(job["id"])) == 4
    load.more(100)
    check(stack, [*calls, *load.stop()], load=load, reruns=KILLS * AT_ONCE)


def fire(stack: Stack, failpoint: str) -> Path:
    """Start an installation in which one replica, once, does at a place what a failpoint says."""
    mark = Path(stack.ledger.new_file("fired"))
    stack.start(worker={"QSERVE_FAILPOINT": failpoint, "QSERVE_FAILPOINT_ONCE": str(mark)})
    return mark


@row("F2")
def test_a_replica_that_dies_between_user_code_and_commit_has_its_call_run_again(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack()
    mark = fire(stack, "commit.before_send:kill9")
    client = stack.handles()
    call = client.send(new_job())
    client.wait([call])

    assert mark.exists()
    runs = [len(stack.ledger.lines(call.id, node)) for node in NODES]
    assert sorted(runs) == [1, 1, 2], runs
    stack.wait_replicas()
    check(stack, [call], reruns=1)


@row("F3")
def test_a_replica_that_dies_right_after_its_commit_has_nothing_run_again(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack()
    mark = fire(stack, "commit.after_send:kill9")
    client = stack.handles()
    call = client.send(new_job())
    client.wait([call])

    wait_until(mark.exists, description="the replica has died")
    stack.wait_replicas()
    check(stack, [call], reruns=0)


@row("F6")
def test_a_call_that_takes_three_leases_is_run_once(shared: Stack) -> None:
    client = shared.handles()
    call = client.send(new_job(sleep_s={"left": 3 * LEASE_S}))
    load = shared.load()
    load.more(int(3 * LEASE_S * 50))
    client.wait([call])

    assert call.took_s >= 3 * LEASE_S
    check(shared, [*load.stop(), call], reruns=0)


def poison(new_stack: Callable[..., Stack], what: str) -> None:
    """Send one call that kills its replica among 63 that run in it, and see that it fails alone."""
    stack = new_stack(replicas=1).start()
    client = stack.handles()
    gate = stack.ledger.new_file("gate")
    innocents = [client.send(new_job(gate={"left": gate})) for _ in range(63)]
    wait_until(lambda: len(stack.ledger.lines(node="left")) == 63, description="63 calls run")

    guilty = client.send(new_job(do={"left": what}))
    wait_until(lambda: len(stack.ledger.lines(node="left")) >= 64, description="the poison runs")
    Path(gate).touch()
    client.wait([guilty, *innocents])

    assert guilty.error.startswith("ReplicaLost"), guilty
    assert all(call.is_right for call in innocents), [call for call in innocents if not call.is_right][:3]
    assert len(stack.ledger.lines(guilty.id, "left")) == 3
    assert "died (SIGSEGV)" in stack.supervisor.output
    assert "Fatal Python error: Segmentation fault" in stack.supervisor.output
    assert "in misbehave" in stack.supervisor.output
    # each innocent may have been hit by the first death only: afterwards the poison runs alone
    check(stack, [guilty, *innocents], reruns=63 + 2, may_fail=[guilty.id], may_log=["Fatal Python error"])


@row("F16")
@row("F17")
def test_one_segfault_among_63_calls_fails_alone_and_leaves_its_stack_in_the_log(
    new_stack: Callable[..., Stack],
) -> None:
    poison(new_stack, "segfault")
