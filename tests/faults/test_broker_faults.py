"""A broker that is killed, frozen, full or emptied: what was accepted is kept, and nobody has to be restarted."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from brokers import Broker
from invariants import check
from load import Load, new_job
from processes import PATIENCE_S, Site, is_alive, wait_until
from rows import row
from stacks import Stack, last

from qserve.calls.ref import Ref

AT_ONCE = 100
_LOST_CONNECTION = r"the connection to the broker was lost|cannot be reached"


def roles_alive(stack: Stack) -> bool:
    """Whether no process has ended that was there at the start."""
    return all(is_alive(pid) for pid in (stack.supervisor.pid, stack.front.pid))


def wait_answered(load: Load, since: float) -> None:
    """Wait until a request that was sent after a moment has its right answer."""
    wait_until(
        lambda: any(call.sent_at >= since and call.is_right for call in load.calls),
        description="a request is answered again",
    )


@row("F9")
def test_a_broker_that_is_killed_and_comes_back_has_lost_nothing(shared: Stack) -> None:
    stack = shared
    pids = {one.pid for one in stack.replicas()}
    load = stack.load()
    by_http = Load(stack.http(), rate=25).start()
    load.more(100)
    slow = stack.handles()
    waiting = [slow.send(new_job(sleep_s={"left": 2.0})) for _ in range(20)]
    wait_until(lambda: all(call.accepted for call in waiting), description="20 callers wait")

    with load.fault():
        stack.broker.kill()
        # longer than a submission is repeated: what is sent meanwhile has to be refused, and not to hang
        by_http.more(75)
        wait_until(lambda: any(call.status == 503 for call in by_http.calls), description="one of them is refused")
        stack.broker.start()
        wait_answered(by_http, since=time.monotonic())
        wait_until(stack.is_serving, description="the gateway is healthy")
    slow.wait(waiting)
    load.more(100)
    calls, answers = load.stop(), by_http.stop()

    assert [call for call in waiting if not call.is_right] == []
    refused = [call for call in answers if call.status != 200]
    assert refused
    for call in refused:
        assert call.status == 503, call
        assert int(call.headers["retry-after"]) >= 1
        assert call.took_s < PATIENCE_S / 2, "it is refused long before its deadline"
    assert roles_alive(stack)
    assert {one.pid for one in stack.replicas()} == pids
    check(stack, [*calls, *waiting, *answers], load=load, reruns=0, may_log=[_LOST_CONNECTION])


@row("F10", priority=True)
def test_a_broker_that_stands_still_for_three_seconds_only_delays(shared: Stack) -> None:
    stack = shared
    pids = {one.pid for one in stack.replicas()}
    load = stack.load()
    load.more(100)

    with load.fault():
        with stack.broker.frozen():
            last(3.0)
        thawed_at = time.monotonic()
        backlog = [call for call in load.calls if call.sent_at < thawed_at]
        wait_until(lambda: all(call.ended_at for call in backlog), description="the backlog is done")
    load.more(100)
    calls = load.stop()

    assert all(call.is_right for call in calls)
    assert roles_alive(stack)
    assert {one.pid for one in stack.replicas()} == pids
    check(stack, calls, load=load, reruns=0, may_log=[_LOST_CONNECTION])


@row("F33")
def test_flushed_functions_are_loaded_again_before_anybody_notices(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(guarded=False).start()  # with the sample ACL only who deploys may load them
    load = stack.load()
    by_http = Load(stack.http(), rate=25).start()
    load.more(50)

    with load.fault():
        stack.broker.client.script_flush()
        stack.broker.client.execute_command("FUNCTION", "FLUSH")
        load.more(25)
    load.more(50)
    calls = [*load.stop(), *by_http.stop()]

    assert all(call.is_right for call in calls), [call for call in calls if not call.is_right][:3]
    check(stack, calls, load=load, reruns=0)


@row("F31")
def test_a_full_broker_finishes_what_it_took_and_refuses_what_is_new(shared: Stack) -> None:
    stack = shared
    client, gateway = stack.handles(), stack.http()
    gate = stack.ledger.new_file("gate")
    accepted = [client.send(new_job(gate={"left": gate, "right": gate})) for _ in range(200)]
    wait_until(lambda: all(call.accepted for call in accepted), description="200 requests are accepted")
    used = int(stack.broker.client.info("memory")["used_memory"])

    stack.broker.client.config_set("maxmemory", used // 2)
    refused = [gateway.send(new_job()) for _ in range(20)]
    gateway.wait(refused)
    Path(gate).touch()
    client.wait(accepted)
    stack.broker.client.config_set("maxmemory", 0)
    after = [gateway.send(new_job())]
    gateway.wait(after)

    for call in refused:
        assert (call.status, json.loads(call.error)["error"]["code"]) == (503, "broker_full")
        assert int(call.headers["retry-after"]) >= 1
    assert all(call.is_right for call in accepted)
    assert after[0].is_right
    check(stack, [*accepted, *refused, *after], reruns=0)


@row("F32")
def test_a_broker_that_was_emptied_tells_those_who_wait_and_serves_again(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(guarded=False).start()  # with the sample ACL it is to be deployed again
    pids = {stack.supervisor.pid, stack.front.pid}
    gateway, client = stack.http(), stack.handles()
    gate = stack.ledger.new_file("gate")
    by_http = [gateway.send(new_job(gate={"left": gate})) for _ in range(10)]
    by_handle = [client.send(new_job(gate={"left": gate})) for _ in range(10)]
    waiting = [*by_http, *by_handle]
    wait_until(lambda: len(stack.ledger.lines(node="left")) == 20, description="20 requests run")
    lines, replicas = len(stack.logs().splitlines()), {one.name for one in stack.replicas()}

    stack.broker.client.flushall()
    flushed_at = time.monotonic()
    gateway.wait(waiting)
    Path(gate).touch()
    wait_until(lambda: stack.ask().is_right, description="a request is answered again")

    for call in by_http:
        assert (call.status, json.loads(call.error)["error"]["code"]) == (503, "broker_state_lost")
        assert int(call.headers["retry-after"]) >= 1
    assert all(call.error.startswith("BrokerStateLost") for call in by_handle), by_handle[:2]
    assert all(is_alive(pid) for pid in pids)
    stack.wait_replicas()
    assert {one.name for one in stack.replicas()} == replicas
    spent_s = time.monotonic() - flushed_at
    assert len(stack.logs().splitlines()) - lines <= 10 + 9 * (1 + spent_s)
    functions = stack.broker.client.execute_command("FUNCTION", "LIST")
    assert functions
    lost = [call.id for call in waiting]
    check(stack, [*waiting, stack.ask()], reruns=20, may_fail=lost, may_log=["lost"])


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own for a broker."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@row("F25")
def test_a_full_disk_refuses_what_is_new_and_loses_nothing(new_stack: Callable[..., Stack], site: Site) -> None:
    with small_disk(site.folder / "disk", "6m") as disk:
        stack = new_stack(broker=Broker(site, disk)).start()
        pids = {stack.supervisor.pid, stack.front.pid, stack.broker.process.pid, *(one.pid for one in stack.replicas())}
        client = stack.handles()
        stored = client.send(new_job())
        client.wait([stored])
        assert stored.ref is not None
        gate = stack.ledger.new_file("gate")
        waiting = [client.send(new_job(gate={"left": gate})) for _ in range(20)]
        wait_until(lambda: len(stack.ledger.lines(node="left")) == 21, description="20 calls run")

        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        gateway = stack.http()
        wait_until(lambda: disk_is_full(stack), description="the broker notices")
        refused = [gateway.send(new_job()) for _ in range(10)]
        gateway.wait(refused)
        again = Ref(stored.ref.request_id, stack.plane())
        assert again.result(60)["id"] == stored.id
        filler.unlink()
        Path(gate).touch()
        wait_until(lambda: stack.ask().is_right, description="requests are answered again")
        client.wait(waiting)

        for call in refused:
            assert (call.status, json.loads(call.error)["error"]["code"]) == (503, "broker_disk_full")
            assert int(call.headers["retry-after"]) >= 1
        assert all(call.is_right for call in waiting)
        assert all(is_alive(pid) for pid in pids)
        check(stack, [stored, *waiting, *refused], reruns=0, may_log=["MISCONF", "cannot answer now"])
        stack.close()
        stack.broker.process.stop()


def disk_is_full(stack: Stack) -> bool:
    """Whether the broker refuses to write."""
    try:
        stack.broker.client.set("{qserve}:probe", "x" * 4096, px=1000)
    except redis.ResponseError as error:
        return str(error).startswith("MISCONF")
    return False
