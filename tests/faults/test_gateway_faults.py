"""Gateways that die, clients that leave, stall or flood: accepted requests go on, and others are not held up."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from http_client import Client
from invariants import check
from ledger import DIAMOND, NODES, reference
from load import HttpClient, Load, new_job, percentile
from processes import PATIENCE_S, free_port, frozen, is_alive, is_open, wait_until
from rows import row
from stacks import Stack, kill

CALL_S, QUEUE = 0.07, 20
CAPACITY = 2 / CALL_S
"""Calls a second of two replicas that take one at a time; one client in Python can send ten times as many."""
SLOWER = 10
"""How many times longer than on an idle machine something may take."""
FULL_QUEUE_S = (QUEUE + 2) / CAPACITY
"""How long a call takes that was the last to find a place in the queue."""
REFUSED_S = 0.02


def ask(port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
    """One HTTP request: status, headers, and the body read as JSON where it is."""
    answer = Client(port).send(method, path, body, **(headers or {}))
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    return answer.status, answer.headers, answer.json if is_json else answer.text


def second_gateway(stack: Stack) -> int:
    """Start one more gateway beside the first, and answer its port."""
    port = free_port()
    stack.gateway(port=port)
    wait_until(lambda: is_open(port), description="the second gateway listens")
    wait_until(lambda: ask(port, "GET", "/-/healthz")[0] == 200, description="the second gateway serves")
    return port


@row("F7")
def test_answers_outlive_the_gateway_process_that_waited_for_them(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack().start(gateway_workers=2)
    workers, other_port = stack.gateway_workers(), second_gateway(stack)
    client, gate = stack.http(), stack.ledger.new_file("gate")
    jobs = [new_job(gate={"left": gate}) for _ in range(3)]
    places = [ask(stack.port, "POST", "/", job, {"prefer": "respond-async"})[1]["location"] for job in jobs]
    waiting = [client.send(new_job(gate={"left": gate}), {"idempotency-key": f"key-{n}"}) for n in range(20)]
    wait_until(lambda: len(stack.ledger.lines(node="left")) == 23, description="23 requests run")
    victim = max(workers, key=lambda pid: len(connections_of(pid)))
    others = Load(client, rate=25).start()
    others.more(25)

    with others.fault():
        kill(victim)
        wait_until(lambda: any(call.ended_at for call in waiting), description="its clients are cut off")
        wait_until(
            lambda: len(stack.gateway_workers()) == 2 and victim not in stack.gateway_workers(),
            description="another process is started",
        )
        wait_until(stack.is_serving, description="the gateway is healthy")
    Path(gate).touch()
    client.wait(waiting)
    others.more(25)
    again = [
        one.send(call.job, {"idempotency-key": f"key-{n}"})
        for one in (HttpClient(other_port), client)
        for n, call in enumerate(waiting)
    ]
    client.wait(again)
    load = others.stop()
    for job, place in zip(jobs, places, strict=True):
        status, _, answer = ask(other_port, "GET", place, headers={"prefer": "wait=10"})
        assert (status, answer["id"], answer["value"]) == (200, job["id"], reference(job["x"]))
        assert len(stack.ledger.lines(job["id"])) == len(NODES)

    cut_off = [call for call in waiting if call.status == 0]
    assert cut_off
    assert all(call.status == 200 for call in waiting if call not in cut_off)
    assert all(call.is_right for call in again), [call for call in again if not call.is_right][:3]
    # a request that the dead process had was cut off; its successor knows no applications in its first moments
    assert all(call.status in (0, 200) or (call.status == 503 and call.headers["retry-after"]) for call in load)
    mailboxes = list(stack.broker.client.scan_iter(stack.keys.mailbox("*").replace("[", "\\["), count=1000))
    assert all(0 < stack.broker.client.pttl(key) <= 120_000 for key in mailboxes)
    check(stack, [*waiting, *again, *load], reruns=0, may_log=["was sent SIGKILL"])


def connections_of(pid: int) -> list[str]:
    """The sockets of a process."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(entry.readlink()))
    return [name for name in found if name.startswith("socket:")]


@row("F8")
def test_a_gateway_whose_master_is_killed_leaves_its_port_and_is_started_again(stack: Stack) -> None:
    load = stack.load()
    load.more(50)
    workers = stack.gateway_workers()

    with load.fault():
        kill(stack.front.pid)
        wait_until(
            lambda: not any(is_alive(pid) for pid in workers), description="its processes are gone",
        )  # fmt: skip
        wait_until(lambda: not is_open(stack.port), description="the port is free")
        stack.front = stack.gateway()
        wait_until(stack.is_serving, description="the gateway is healthy")
    load.more(50)
    by_http = stack.http()
    last = by_http.send(new_job())
    by_http.wait([last])

    assert last.is_right
    check(stack, [*load.stop(), last], load=load, reruns=0)


@row("F19")
def test_a_client_that_leaves_ends_its_request(stack: Stack) -> None:
    gate = stack.ledger.new_file("gate")
    job = new_job(gate={"left": gate, "right": gate})
    body = json.dumps(job).encode()
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", stack.port)) as client:
        client.sendall(head.encode() + body)
        wait_until(lambda: len(stack.ledger.lines(job["id"])) == 2, description="it runs")

    wait_until(
        lambda: (
            not list(stack.broker.client.scan_iter(stack.keys.request("*"), count=1000))
            or any(
                stack.broker.client.hget(key, "st") == b"c"
                for key in stack.broker.client.scan_iter(stack.keys.request("*"), count=1000)
            )
        ),
        description="the request is cancelled",
    )
    wait_until(lambda: len(stack.ledger.lines(job["id"], event="told")) == 2, description="its calls are told")

    check(stack, [stack.ask()], reruns=0)
    assert stack.ledger.lines(job["id"], "join") == []


@row("F28")
def test_the_same_idempotency_key_runs_once_however_it_is_sent(stack: Stack) -> None:
    client = stack.http()
    pairs = []
    for number in range(100):
        job, key = new_job(), {"idempotency-key": f"pair-{number}"}
        pairs.append((client.send(job, key), client.send(job, key)))
    calls = [call for pair in pairs for call in pair]
    client.wait(calls)

    for first, second in pairs:
        assert first.is_right and second.is_right, (first, second)
        assert first.answer == second.answer
        assert first.headers["x-qserve-request-id"] == second.headers["x-qserve-request-id"]
    later = client.send(pairs[0][0].job, {"idempotency-key": "pair-0"})
    other = client.send(new_job(), {"idempotency-key": "pair-0"})
    client.wait([later, other])
    assert later.answer == pairs[0][0].answer
    assert (other.status, json.loads(other.error)["error"]["code"]) == (422, "idempotency_mismatch")
    job, key = new_job(), {"idempotency-key": "job"}
    place = ask(stack.port, "POST", "/", job, {"prefer": "respond-async", **key})[1]["location"]
    status, _, answer = ask(stack.port, "GET", place, headers={"prefer": "wait=10"})
    assert (status, answer["id"]) == (200, job["id"])

    stack.broker.kill()
    stack.broker.start()
    wait_until(stack.is_serving, description="the gateway is healthy again")
    after = client.send(pairs[1][0].job, {"idempotency-key": "pair-1"})
    client.wait([after])
    assert after.answer == pairs[1][0].answer
    assert ask(stack.port, "POST", "/", job, key)[::2] == (200, answer)
    assert ask(second_gateway(stack), "GET", place)[::2] == (200, answer)
    assert ask(stack.port, "POST", "/", new_job(), key)[0] == 422
    assert len(stack.ledger.lines(job["id"])) == len(NODES)
    check(stack, [*calls, later, other, after], reruns=0, may_log=["connection to the broker was lost", "cannot be"])


@row("F42")
def test_ten_times_too_much_is_refused_fast_and_what_was_accepted_is_answered(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack()
    stack.write_app(text=limited())
    stack.start()
    memory = resident(stack.gateway_workers()[0])
    http = stack.http()
    flood = Load(http, rate=10 * CAPACITY, make=lambda: new_job(block_s={"left": CALL_S}))
    flood.start()
    flood.more(1200)
    calls = flood.stop()
    after = http.send(new_job())
    http.wait([after])

    accepted = [call for call in calls if call.status == 200]
    refused = [call for call in calls if call.status != 200]
    for call in refused:
        assert call.status == 503, call
        assert json.loads(call.error)["error"]["code"] == "queue_full"
        assert int(call.headers["retry-after"]) >= 1
    assert all(call.is_right for call in accepted)
    assert percentile([call.took_s for call in accepted], 0.5) <= FULL_QUEUE_S * SLOWER
    lasted_s = calls[-1].sent_at - calls[0].sent_at
    assert len(accepted) >= CAPACITY * lasted_s / SLOWER, (len(accepted), lasted_s)
    assert after.is_right
    refused_s, healthy_s = refused_while_the_queue_is_full(stack)
    assert percentile(refused_s, 0.5) <= SLOWER * max(REFUSED_S, percentile(healthy_s, 0.5))
    assert resident(stack.gateway_workers()[0]) - memory <= 64 << 20
    check(stack, [*calls, after], reruns=0)


def refused_while_the_queue_is_full(stack: Stack) -> tuple[list[float], list[float]]:
    """Seconds that each of ten refusals takes with nothing else to do for anybody, and as many looks at the health."""
    gate, http = stack.ledger.new_file("gate"), stack.http()
    waiting = [http.send(new_job(gate={"left": gate})) for _ in range(40)]
    wait_until(lambda: any(call.status == 503 for call in waiting), description="the queue is full")
    refused_s, healthy_s = [], []
    for _ in range(10):
        call = http.send(new_job())
        http.wait([call])
        assert call.status == 503, call
        refused_s.append(call.took_s)
        began = time.monotonic()
        assert stack.is_serving()
        healthy_s.append(time.monotonic() - began)
    Path(gate).touch()
    http.wait(waiting)
    assert all(call.is_right or call.status == 503 for call in waiting)
    return refused_s, healthy_s


def limited() -> str:
    """The diamond with a step that takes one call at a time, and a queue for a few more."""
    options = "num_replicas=REPLICAS, graceful_shutdown_timeout_s=5"
    old = f"@qserve.deployment({options})\nclass Left:"
    assert old in DIAMOND
    return DIAMOND.replace(
        old, f"@qserve.deployment({options}, max_ongoing_requests=1, max_queued_requests={QUEUE})\nclass Left:"
    )


def resident(pid: int) -> int:
    """Memory of a process, in bytes."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


@row("F43")
def test_nine_hundred_slow_clients_hold_nobody_up(stack: Stack) -> None:
    idle, stalled = [], []
    with contextlib.ExitStack() as open_sockets:
        for number in range(900):
            sock = open_sockets.enter_context(socket.create_connection(("127.0.0.1", stack.port), timeout=60))
            if number % 2:
                sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-")
                idle.append(sock)
            else:
                sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
                stalled.append(sock)
        good = Load(stack.http(), rate=50).start()
        good.more(150)
        calls = good.stop()
        wait_until(lambda: all(is_closed(sock) for sock in idle), description="idle headers are cut")

        share = sum(call.status == 200 for call in calls) / len(calls)
        assert share >= 0.95
        assert all(call.is_right for call in calls if call.status == 200)
        answered = [sock for sock in stalled if first_line(sock).startswith(b"HTTP/1.1 408")]
        assert len(answered) >= 0.95 * len(stalled)
    check(stack, calls, reruns=0)


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side has closed a connection without a word."""
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def first_line(sock: socket.socket) -> bytes:
    """The status line that arrives on a connection; "" when it is cut."""
    sock.settimeout(PATIENCE_S)
    try:
        return sock.recv(256).partition(b"\r\n")[0]
    except ConnectionError:
        return b""


@row("F47", priority=True)
def test_results_are_fetched_by_id_for_so_long_and_then_known_to_have_been(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(env={"QSERVE_RESULT_TTL_S": "1000"}).start()
    gate, other_port, key = stack.ledger.new_file("gate"), second_gateway(stack), {"idempotency-key": "k"}
    jobs = [new_job(gate={"left": gate}), new_job()]
    status, headers, _ = ask(stack.port, "POST", "/", jobs[0], {"prefer": "respond-async", **key})
    assert status == 202
    place = headers["location"]

    began = time.monotonic()
    running, told, _ = ask(stack.port, "GET", place, headers={"prefer": "wait=1"})
    waited_s = time.monotonic() - began
    Path(gate).touch()
    first = ask(stack.port, "GET", place, headers={"prefer": "wait=30"})
    second = ask(other_port, "GET", place)
    wrong = place[:-1] + ("0" if place[-1] != "0" else "1")

    assert (running, waited_s >= 1.0) == (202, True)
    assert int(told["retry-after"]) >= 1
    assert first[::2] == second[::2] == (200, first[2])
    assert first[2]["value"] == reference(jobs[0]["x"])
    assert ask(stack.port, "GET", wrong)[0] == 404
    assert ask(stack.port, "DELETE", place)[0] == 409
    request = stack.keys.request(place.rpartition("/")[2])
    assert 500_000 < stack.broker.client.pttl(request) <= 1_000_000

    stack.broker.client.pexpire(request, 1)
    wait_until(lambda: ask(stack.port, "GET", place)[0] != 200, description="it is kept no more")
    for method in ("GET", "DELETE"):
        status, _, gone = ask(stack.port, method, place)
        assert (status, gone["error"]["code"]) == (410, "result_expired")
    status, _, answer = ask(stack.port, "POST", "/", jobs[1], key)
    assert (status, answer["id"], answer["value"]) == (200, jobs[1]["id"], reference(jobs[1]["x"]))
    assert [len(stack.ledger.lines(job["id"])) for job in jobs] == [len(NODES)] * 2
    check(stack, [stack.ask()], reruns=0)


@row("F39")
def test_a_gateway_without_files_refuses_and_recovers(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack().start()
    (worker,) = stack.gateway_workers()
    usual = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (64, usual[1]))
    hoard = []
    for _ in range(80):
        with contextlib.suppress(OSError):
            hoard.append(socket.create_connection(("127.0.0.1", stack.port), timeout=2))
    for sock in hoard:
        sock.close()
    resource.prlimit(worker, resource.RLIMIT_NOFILE, usual)

    client = stack.http()
    wait_until(stack.is_serving, description="the gateway is healthy")
    call = client.send(new_job())
    client.wait([call])

    assert call.is_right
    check(stack, [call], reruns=0, may_log=["Too many open files", "EMFILE"])


@row("F10")
def test_requests_that_a_frozen_broker_cannot_take_are_refused_in_time(stack: Stack) -> None:
    with frozen(stack.broker.process.pid):
        client = stack.http()
        calls = [client.send(new_job()) for _ in range(20)]
        client.wait(calls)

    for call in calls:
        assert call.status == 503, call
        assert int(call.headers["retry-after"]) >= 1
    wait_until(stack.is_serving, description="the gateway is healthy")
    check(stack, [*calls, stack.ask()], reruns=0, may_log=["connection", "cannot be reached"])
