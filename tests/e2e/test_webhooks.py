"""Webhooks at the end of requests: what is sent, to whom, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from http_client import Client
from processes import Serving, Site, new_site, wait_until
from webhook_receiver import VARIABLES, WebhookReceiver

import qserve
from qserve.base.settings import Settings
from qserve.deploy.installation import Installation
from qserve.overview.traces import trace

SECRET = "the-key-of-this-test"
APP = """
import asyncio, qserve
from starlette.responses import Response

@qserve.deployment
class Inner:
    async def add(self, number):
        return number + 1


@qserve.deployment(max_concurrent_queries=8)
class Work:
    def __init__(self, inner):
        self.inner = inner
    async def __call__(self, request):
        body = (await request.body()).decode()
        if body.startswith("http"):
            self.inner.options(webhook=body, trace=True).add.remote(1)
            return "begun"
        if body == "fail":
            raise ValueError("not today")
        if body == "wait":
            await asyncio.sleep(600)
        if body == "long":
            return "x" * 50_000
        if body == "bytes":
            return Response(b"\\0\\xff", media_type="application/octet-stream")
        return {"was": body}

app = Work.bind(Inner.bind())
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Site]:
    with new_site() as site:
        site.write("work.py", APP)
        yield site


@pytest.fixture(scope="module")
def settings(home: Site) -> Settings:
    return Settings(broker_url=home.broker(), secret_key=SECRET.encode())


@pytest.fixture(scope="module")
def serving(home: Site, settings: Settings) -> Serving:
    return home.run("work:app", env={**settings.to_env(), **VARIABLES})


@pytest.fixture(scope="module")
def client(serving: Serving) -> Client:
    return Client(serving.port)


@pytest.fixture(scope="module")
def receiver() -> Iterator[WebhookReceiver]:
    with closing(WebhookReceiver()) as made:
        made.start()
        yield made


def begin(client: Client, receiver: WebhookReceiver, body: str, **headers: str) -> str:
    answer = client.send(
        "POST", "/", body.encode(), Prefer="respond-async", **{"X-Qserve-Webhook": receiver.url, **headers}
    )
    assert answer.status == 202, answer
    return str(answer.json["request_id"])


def sent(receiver: WebhookReceiver, request_id: str) -> Any:
    """The webhook about a request, once it has come."""
    wait_until(lambda: receiver.of(request_id), description="the webhook has come")
    (body,) = receiver.of(request_id)
    assert body["timestamp"].endswith("Z")
    data = body["data"]
    assert (data.pop("request_id"), data.pop("location")) == (request_id, f"/-/requests/{request_id}")
    assert body["type"] == f"request.{data.pop('status')}"
    return body["type"].partition(".")[2], data


@pytest.mark.slow
def test_the_result_is_sent_as_it_would_be_fetched(client: Client, receiver: WebhookReceiver) -> None:
    request_id = begin(client, receiver, "x")
    assert sent(receiver, request_id) == ("done", {"status_code": 200, "result": {"was": "x"}})


@pytest.mark.slow
def test_an_error_is_sent_as_it_would_be_fetched(client: Client, receiver: WebhookReceiver) -> None:
    state, data = sent(receiver, begin(client, receiver, "fail"))
    assert (state, data["status_code"]) == ("failed", 500)
    assert (data["error"]["code"], data["error"]["message"]) == ("user_code_failed", "ValueError: not today")


@pytest.mark.slow
@pytest.mark.parametrize("body", ["long", "bytes"])
def test_of_a_result_that_is_long_or_not_text_only_its_place_is_sent(
    client: Client, receiver: WebhookReceiver, body: str
) -> None:
    state, data = sent(receiver, begin(client, receiver, body))
    assert (state, data.keys() - {"status_code"}) == ("done", set())


@pytest.mark.slow
def test_a_request_that_is_cancelled_or_not_finished_in_time_has_its_end_sent(
    client: Client, receiver: WebhookReceiver
) -> None:
    cancelled = begin(client, receiver, "wait")
    assert client.send("DELETE", f"/-/requests/{cancelled}").status == 204
    state, data = sent(receiver, cancelled)
    assert (state, data["error"]["code"]) == ("cancelled", "cancelled")

    late = begin(client, receiver, "wait", x_request_timeout_seconds="0.5")
    state, data = sent(receiver, late)
    assert (state, data["status_code"], data["error"]["code"]) == ("expired", 504, "deadline_exceeded")


@pytest.mark.slow
def test_a_request_with_an_idempotency_key_has_its_end_sent_once_and_answered_as_well(
    client: Client, receiver: WebhookReceiver
) -> None:
    headers = {"Idempotency-Key": "k", "X-Qserve-Webhook": receiver.url}
    first, second = (client.send("POST", "/", b"x", **headers) for _ in range(2))
    assert first.json == second.json == {"was": "x"}
    request_id = first.headers["x-qserve-request-id"]
    assert sent(receiver, request_id)[0] == "done"
    other = client.send("POST", "/", b"x", **{**headers, "X-Qserve-Webhook": receiver.url + "1"})
    assert (other.status, other.code) == (422, "idempotency_mismatch")


@pytest.mark.slow
def test_calls_from_python_have_their_end_sent_as_well(
    settings: Settings, client: Client, receiver: WebhookReceiver
) -> None:
    with qserve.connect(settings.broker_url, secret_key=SECRET) as program:
        handle = program.get_deployment_handle("Inner").options(webhook=receiver.url)
        request_id = handle.add.remote(4).request_id
    assert sent(receiver, request_id) == ("done", {"result": 5})
    assert client.get(f"/-/requests/{request_id}").json == 5


@pytest.mark.slow
def test_a_call_by_handle_with_a_webhook_goes_on_after_the_request_that_made_it(
    settings: Settings, client: Client, receiver: WebhookReceiver
) -> None:
    before = len(receiver.received)
    assert client.send("POST", "/", receiver.url.encode()).body == b"begun"
    wait_until(lambda: len(receiver.received) > before, description="the webhook has come")
    request_id, body = receiver.received[before]
    assert body["data"]["result"] == 2
    assert [one.deployment for one in trace(Installation(settings), request_id).tries] == ["Inner"]


@pytest.mark.slow
def test_an_address_that_may_not_receive_it_is_refused_before_anything_begins(
    client: Client, receiver: WebhookReceiver
) -> None:
    for url in ("https://10.0.0.1/", "https://169.254.169.254/latest/meta-data", "http://8.8.8.8/", "nonsense"):
        answer = client.send("POST", "/", b"x", Prefer="respond-async", **{"X-Qserve-Webhook": url})
        assert (answer.status, answer.code) == (400, "invalid_webhook"), url
    answer = client.send("POST", "/", b"x", **{"X-Qserve-Webhook": receiver.url})
    assert (answer.status, answer.code) == (400, "invalid_webhook")
    assert "Prefer: respond-async" in answer.error["message"]


@pytest.mark.slow
def test_a_name_that_turns_out_to_be_private_is_given_up_at_once_and_said_once(
    client: Client, serving: Serving, receiver: WebhookReceiver
) -> None:
    url = "https://localhost/secret"
    request_id = begin(client, receiver, "x", **{"X-Qserve-Webhook": url})
    wait_until(lambda: "is given up after 1 tries" in serving.process.output, description="it is given up")
    (line,) = [line for line in serving.process.output.splitlines() if "given up" in line]
    assert request_id in line
    assert "is private, and in no network of" in line
    assert "secret" not in line


@pytest.mark.slow
def test_a_receiver_with_tls_gets_it_once_the_gateway_trusts_its_certificate(
    client: Client, serving: Serving, site: Site, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    with closing(WebhookReceiver(authority.server)) as receiver:
        receiver.start()
        refused = begin(client, receiver, "x")
        wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in serving.process.output, description="the reason is logged")
        assert f"the webhook of request {refused} was not delivered" in serving.process.output

        site.write("work.py", APP)
        trusting = site.run("work:app", env={**VARIABLES, "SSL_CERT_FILE": str(authority.file)})
        request_id = begin(Client(trusting.port), receiver, "x")
        assert sent(receiver, request_id) == ("done", {"status_code": 200, "result": {"was": "x"}})
        assert not receiver.of(refused)


@pytest.mark.slow
def test_tries_are_counted(client: Client, receiver: WebhookReceiver) -> None:
    sent(receiver, begin(client, receiver, "x"))

    def is_counted() -> bool:
        lines = client.get("/-/metrics").body.decode().splitlines()
        return any(line.startswith('qserve_webhook_tries_total{outcome="delivered"}') for line in lines)

    wait_until(is_counted, description="the delivery is counted")
    assert not receiver.forged


@pytest.mark.slow
@pytest.mark.long  # tests/gateway/test_receivers.py has it
def test_a_gateway_without_a_secret_sends_none_and_says_what_is_missing(site: Site) -> None:
    site.write("work.py", APP)
    client = Client(site.run("work:app").port)
    answer = client.send("POST", "/", b"x", Prefer="respond-async", **{"X-Qserve-Webhook": "https://example.com/"})
    assert (answer.status, answer.code) == (400, "invalid_webhook")
    assert "QSERVE_WEBHOOK_SECRET" in answer.error["message"]
    assert json.loads(client.send("POST", "/", b"x").body) == {"was": "x"}
