"""Webhooks whose senders are killed, and whose receivers are away: each that was accepted is delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from http_client import Client
from invariants import check
from load import new_job
from processes import is_alive, wait_until
from rows import row
from stacks import Stack, children_of, kill
from webhook_receiver import VARIABLES, WebhookReceiver

POINTS = {"webhook.before_post": 1, "webhook.after_post": 2}
"""Where a gateway is killed, and how often the receiver gets the webhook then."""


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with closing(WebhookReceiver()) as made:
        yield made


def begin(stack: Stack, receiver: WebhookReceiver, job: dict[str, Any]) -> str:
    """Send a request, and return its ID."""
    headers = {"Prefer": "respond-async", "X-Qserve-Webhook": receiver.url}
    answer = Client(stack.port).send("POST", "/", job, **headers)
    assert answer.status == 202, answer
    return str(answer.json["request_id"])


def kill_gateway(stack: Stack) -> None:
    """End all processes of the gateway at once: those that serve would go on for a moment without the first."""
    pids = [stack.front.pid, *children_of(stack.front.pid)]
    for pid in pids:
        kill(pid)
    wait_until(lambda: not any(map(is_alive, pids)), description="the gateway is gone")


def are_settled(stack: Stack) -> bool:
    """Whether no webhook is left."""
    client, keys = stack.broker.client, stack.keys
    pattern = keys.webhook("*").replace("[", "\\[")
    return not client.zcard(keys.webhooks) and not [*client.scan_iter(pattern, count=1000)]


def end_lease(stack: Stack, request_id: str) -> None:
    """Let the minute be over for which a sender has a webhook."""
    stack.broker.client.zadd(stack.keys.webhooks, {request_id: 1}, xx=True)


@row("F62")
@pytest.mark.parametrize("point", POINTS)
def test_a_webhook_whose_sender_is_killed_is_sent_by_another_with_the_same_id(
    new_stack: Callable[..., Stack], receiver: WebhookReceiver, point: str
) -> None:
    stack = new_stack()
    mark = Path(stack.ledger.new_file("fired"))
    failing = {"QSERVE_FAILPOINT": f"{point}:kill9", "QSERVE_FAILPOINT_ONCE": str(mark)}
    stack.start(gateway={**VARIABLES, **failing})
    receiver.start()
    job = new_job()

    request_id = begin(stack, receiver, job)
    wait_until(mark.exists, description="its sender is killed")
    wait_until(stack.is_serving, description="the gateway is healthy")
    end_lease(stack, request_id)

    wait_until(lambda: are_settled(stack), description="the broker knows that it is delivered")
    bodies = receiver.of(request_id)
    assert len(bodies) == POINTS[point]
    assert all(body == bodies[0] for body in bodies)
    assert bodies[0]["data"]["result"]["id"] == job["id"]
    assert not receiver.forged
    check(stack, [stack.ask()], may_log=["was sent SIGKILL"])


@row("F62")
def test_the_end_of_a_request_is_sent_although_no_gateway_was_there_when_it_came(
    new_stack: Callable[..., Stack], receiver: WebhookReceiver
) -> None:
    stack = new_stack().start(gateway=VARIABLES)
    receiver.start()
    gate = stack.ledger.new_file("gate")
    job = new_job(gate={"left": gate})
    request_id = begin(stack, receiver, job)
    wait_until(lambda: stack.ledger.lines(job["id"], node="left"), description="the request runs")

    kill_gateway(stack)
    Path(gate).touch()
    client, request = stack.broker.client, stack.keys.request(request_id)
    wait_until(lambda: client.hget(request, "st") == b"d", description="the request has ended")
    assert not receiver.received
    stack.front = stack.gateway(env=VARIABLES)

    wait_until(lambda: are_settled(stack), description="the broker knows that it is delivered")
    (body,) = receiver.of(request_id)
    assert (body["type"], body["data"]["result"]["id"]) == ("request.done", job["id"])
    wait_until(stack.is_serving, description="the gateway is healthy")
    check(stack, [stack.ask()], may_log=["was sent SIGKILL"])


@row("F62")
def test_a_request_that_nobody_takes_and_nobody_waits_for_has_its_end_sent_at_its_deadline(
    new_stack: Callable[..., Stack], receiver: WebhookReceiver
) -> None:
    stack = new_stack().start(gateway=VARIABLES)
    receiver.start()
    stack.supervisor.stop()
    headers = {"Prefer": "respond-async", "X-Qserve-Webhook": receiver.url, "x-request-timeout-seconds": "3"}
    answer = Client(stack.port).send("POST", "/", new_job(), **headers)
    assert answer.status == 202, answer
    kill_gateway(stack)
    stack.front = stack.gateway(env=VARIABLES)

    request_id = answer.json["request_id"]
    wait_until(lambda: receiver.of(request_id), description="its end is sent")
    assert [body["type"] for body in receiver.of(request_id)] == ["request.expired"]
    wait_until(lambda: are_settled(stack), description="the broker knows that it is delivered")


@row("F63")
def test_a_receiver_that_is_away_or_fails_gets_the_webhook_when_it_is_back(
    new_stack: Callable[..., Stack], receiver: WebhookReceiver
) -> None:
    stack = new_stack().start(gateway=VARIABLES)
    job = new_job()
    request_id = begin(stack, receiver, job)
    wait_until(lambda: "was not delivered, again in" in stack.front.output, description="a try has failed")
    receiver.status = 503
    receiver.start()
    wait_until(lambda: receiver.of(request_id), description="it is tried again")
    assert not are_settled(stack)
    receiver.status = 204

    def is_due_again() -> bool:
        score = stack.broker.client.zscore(stack.keys.webhooks, request_id)
        return score is not None and score > 1000 * (stack.broker.client.time()[0] + 100)

    wait_until(is_due_again, description="the second wait has begun, of five minutes")
    end_lease(stack, request_id)  # which are over

    wait_until(lambda: are_settled(stack), description="the broker knows that it is delivered")
    assert [body["data"]["result"]["id"] for body in receiver.of(request_id)] == [job["id"]] * 2
    check(stack, [stack.ask()])


@row("F63")
def test_a_receiver_that_is_gone_for_good_is_given_up_in_one_line(
    new_stack: Callable[..., Stack], receiver: WebhookReceiver
) -> None:
    stack = new_stack().start(gateway=VARIABLES)
    receiver.status = 410
    receiver.start()
    request_id = begin(stack, receiver, new_job())

    wait_until(lambda: are_settled(stack), description="nothing is left of it")
    (line,) = [line for line in stack.front.output.splitlines() if "given up" in line]
    assert (
        f"the webhook of request {request_id} is given up after 1 tries: {receiver.url.partition('/done')[0]}: " in line
    )
    assert line.endswith("it replied 410")
    check(stack, [stack.ask()], may_log=["is given up"])
