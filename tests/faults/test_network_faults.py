"""Connections that lose replies, fall silent, or are cut again and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from invariants import check
from load import Call, Crowd, new_job
from processes import wait_until
from proxy import Proxy
from rows import row
from stacks import Stack, last

RESETS, RESET_EVERY_S = 200, 0.1
REQUESTS, AT_ONCE = 50_000, 200


def behind_proxy(new_stack: Callable[..., Stack], *roles: str) -> tuple[Stack, Proxy]:
    """An installation of which these roles, or else its workers, reach the broker through a proxy."""
    stack = new_stack()
    proxy = Proxy(stack.broker.port)
    stack.start(**{role: {"QSERVE_BROKER_URL": proxy.url} for role in roles or ("worker",)})
    return stack, proxy


def lose(proxy: Proxy, *texts: str) -> None:
    """Lose a reply from now on."""
    proxy.dropped = 0
    proxy.drop_reply(*texts)


def wait_lost(proxy: Proxy) -> None:
    """Wait until it was lost."""
    wait_until(lambda: proxy.dropped == 1, description="a reply is lost")


@row("F29")
def test_a_submission_whose_reply_is_lost_is_accepted_once(stack: Stack) -> None:
    proxy = Proxy(stack.broker.port)
    client = stack.handles(broker_url=proxy.url)
    warm = client.send(new_job())
    client.wait([warm])

    lose(proxy, "qserve_submit")
    call = client.send(new_job())
    client.wait([call])
    wait_lost(proxy)

    assert call.accepted
    check(stack, [warm, call], reruns=0)
    proxy.close()


@row("F29")
def test_a_commit_whose_reply_is_lost_had_its_effects_once(new_stack: Callable[..., Stack]) -> None:
    stack, proxy = behind_proxy(new_stack)
    client = stack.handles()

    lose(proxy, "qserve_commit", ":Left")
    call = client.send(new_job())
    client.wait([call])
    wait_lost(proxy)

    check(stack, [call], reruns=0, may_log=["connection"])
    proxy.close()


@row("F29")
@pytest.mark.long  # tests/workers/test_heartbeat.py has when a replica is lost
def test_a_heartbeat_whose_reply_is_lost_changes_nothing(new_stack: Callable[..., Stack]) -> None:
    stack, proxy = behind_proxy(new_stack)
    pids = {one.pid for one in stack.replicas()}
    load = stack.load()

    lose(proxy, "}:b:")
    wait_lost(proxy)
    load.more(100)
    calls = load.stop()

    assert {one.pid for one in stack.replicas()} == pids
    check(stack, calls, reruns=0)
    proxy.close()


@row("F30")
def test_two_hundred_resets_among_fifty_thousand_requests_leave_nothing_behind(new_stack: Callable[..., Stack]) -> None:
    stack, proxy = behind_proxy(new_stack, "worker", "gateway")
    handles, http = stack.handles(), stack.http()
    warm = [http.send(new_job()), *some(Crowd(handles, AT_ONCE).start(), 2_000)]
    http.wait(warm)

    def clients() -> list[str]:
        return [f"{one['age']} s, idle {one['idle']} s: {one['cmd']}" for one in stack.broker.client.client_list()]

    connections, before = proxy.connections, {pid: usage(pid) for pid in processes(stack)}
    clients_before = clients()
    pids = {one.pid for one in stack.replicas()}

    crowd, cut = Crowd(handles, AT_ONCE).start(), 0
    for _ in range(RESETS):
        cut += proxy.cut()
        last(RESET_EVERY_S)
    calls = [*warm, *some(crowd, REQUESTS - len(warm) - len(crowd.calls)), http.send(new_job())]
    http.wait(calls)

    assert len(calls) >= REQUESTS and cut >= RESETS
    assert [call for call in calls if not call.is_right][:3] == []
    assert {one.pid for one in stack.replicas()} == pids
    try:
        wait_until(lambda: proxy.connections <= connections, description="no connection is left over")
    except AssertionError as error:
        said = "\n".join(map(str, [f"{connections} before:", *clients_before, f"{proxy.connections} now:", *clients()]))
        raise AssertionError(f"{error}; {said}") from None
    for pid, (memory, files, threads) in before.items():
        now = usage(pid)
        assert now[0] - memory <= 10 << 20, f"{pid}: {(now[0] - memory) >> 20} MB more"
        assert now[1] - files <= 2 and now[2] <= threads, (pid, before[pid], now)
    check(stack, calls, reruns=RESETS, may_log=["connection"])
    proxy.close()


def some(crowd: Crowd, count: int) -> list[Call]:
    """What a crowd has sent when that is so many more, each of it ended."""
    crowd.more(count)
    return crowd.stop(60)


def processes(stack: Stack) -> list[int]:
    """All that speak to the broker through the proxy."""
    hosts = [stack.supervisor.pid, stack.front.pid, *stack.gateway_workers()]
    return [*hosts, *(one.pid for one in stack.replicas())]


def usage(pid: int) -> tuple[int, int, int]:
    """Memory in bytes, open files and threads of a process."""
    root = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (root / "status").read_text().splitlines())
    resident = int(fields["VmRSS"].split()[0]) * 1024
    return resident, len(list((root / "fd").iterdir())), int(fields["Threads"])
