"""What a request carries, and its spans, through real processes: retries, lost replicas, dead letters and replays."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from commands import typed
from http_client import Client
from processes import READY, Serving, Site, free_port, new_site, wait_until

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from qserve.base.settings import Settings
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Ref

CALLER = "b7ad6b7169203331"
PROGRAM = """
import os
import pathlib
import signal

import qserve
from qserve import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

HERE = pathlib.Path(__file__).parent


def seen():
    context = qserve.get_request_context()
    return [context.tenant, context.headers.get("x-region"), context.traceparent[3:35], context.tracestate]


@qserve.deployment
def first(x):
    return {"what": x, "seen": [seen()]}


@qserve.deployment
class Inner:
    def look(self):
        return seen()


@qserve.deployment(max_retries=1, retry_backoff_s=0.01)
class Risky:
    def __init__(self, inner):
        self.inner = inner.options(use_new_handle_api=True)

    async def run(self, given):
        what, mark = given["what"], HERE / given["what"]
        if what in ("retry", "kill", "dead") and not mark.exists():
            if what != "dead":
                mark.touch()
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise LookupError("the model's file is missing")
        return {**given, "seen": [*given["seen"], seen(), await self.inner.look.remote()]}


@qserve.deployment
def last(given):
    return [*given["seen"], seen()]


with InputNode() as x:
    graph = DAGDriver.bind(last.bind(Risky.bind(Inner.bind()).run.bind(first.bind(x))), http_adapter=json_request)
"""


class Collector:
    """Takes spans as a collector of OpenTelemetry does, by OTLP over HTTP."""

    def __init__(self) -> None:
        self._received: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                packed = self.headers.get("Content-Encoding") == "gzip"
                collector._received.append(gzip.decompress(body) if packed else body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *about: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self, trace_id: str) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        requests = [ExportTraceServiceRequest.FromString(body) for body in self._received]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == trace_id
        ]

    def wait(self, trace_id: str, names: list[str]) -> list[Any]:
        """Wait for spans of a trace with exactly these names, and return them in their order."""
        wait_until(lambda: len(self.spans(trace_id)) >= len(names), description=f"there are spans of {names}")
        found = sorted(self.spans(trace_id), key=lambda span: span.start_time_unix_nano)
        assert sorted(span.name for span in found) == sorted(names)
        return found


def told(span: Any, name: str) -> Any:
    (value,) = [pair.value for pair in span.attributes if pair.key == f"qserve.{name}"]
    return getattr(value, value.WhichOneof("value"))


class Shop:
    """A graph of three steps, served over a broker that the commands reach."""

    def __init__(self, site: Site) -> None:
        self.collector = Collector()
        self.folder = site.write("shop.py", PROGRAM)
        self.env = {"QSERVE_BROKER_URL": site.broker(), "QSERVE_SECRET_KEY": "the-key-of-this-test"}
        own = {
            "QSERVE_FORWARD_HEADERS": "X-Region",
            "QSERVE_TENANT_HEADER": "X-Tenant",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "QSERVE_SERVER_TIMING": "asked",
        }
        port = free_port()
        process = site.qserve("run", "shop:graph", "--port", str(port), cwd=self.folder, env={**self.env, **own})
        process.wait_for(READY)
        self.client = Client(Serving(process, port).url)

    def dlq(self, *arguments: str) -> str:
        done = typed("dlq", *arguments, env=self.env)
        assert done.exit_code == 0, done.output
        return done.stdout

    def send(self, what: str, trace_id: str, **more: str) -> Any:
        """Send a request of a tenant, in a trace, which has the trouble that it names once."""
        (self.folder / what).unlink(missing_ok=True)
        parent = f"00-{trace_id}-{CALLER}-01"
        headers = {"X-Tenant": "acme", "X-Region": "eu", "traceparent": parent, "tracestate": "a=1"}
        return self.client.send("POST", "/", what, **headers, **more)


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with new_site() as site:
        yield Shop(site)


def seen(trace_id: str) -> list[Any]:
    return [["acme", "eu", trace_id, "a=1"]] * 4


BEGIN = ["POST /", "send DAGDriver", "process first.__call__", "send Risky"]
END = ["send Inner", "process Inner.look", "send last", "process last.__call__"]
RISKY = "process Risky.run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "tries"),
    [pytest.param("plain", 1, marks=pytest.mark.long), ("retry", 2), ("kill", 1)],  # a retry has all that is plain
)
def test_each_step_sees_what_the_request_carries_and_has_a_span_below_what_caused_it(
    shop: Shop, what: str, tries: int
) -> None:
    trace_id = os.urandom(16).hex()
    assert shop.send(what, trace_id).json == seen(trace_id)

    spans = shop.collector.wait(trace_id, [*BEGIN, *[RISKY] * tries, *END])
    ids = {span.span_id: span for span in spans}
    below = {span.name: ids[span.parent_span_id].name for span in spans if span.parent_span_id in ids}
    assert below == {
        "send DAGDriver": "POST /",
        "process first.__call__": "send DAGDriver",
        "send Risky": "process first.__call__",
        RISKY: "send Risky",
        "send Inner": RISKY,
        "process Inner.look": "send Inner",
        "send last": RISKY,
        "process last.__call__": "send last",
    }
    (request,) = [span for span in spans if span.name == "POST /"]
    assert request.parent_span_id.hex() == CALLER
    risky = [span for span in spans if span.name == RISKY]
    committed = [span for span in spans if span.name.startswith("process ") and told(span, "committed")]
    assert {span.name for span in committed} == {"process first.__call__", RISKY, *END[1::2]}
    assert len(committed) == 4 and risky[-1] in committed
    assert told(risky[-1], "attempt") == (1 if what == "plain" else 2)
    assert told(risky[-1], "queue_ms") >= 0
    if what == "plain":
        assert not risky[0].links
    elif what == "retry":
        first, second = risky
        assert [link.span_id for link in second.links] == [first.span_id]
        assert (told(first, "outcome"), told(first, "committed"), first.events[0].name) == (
            "retried",
            False,
            "exception",
        )
    else:  # the span of the first try was lost with its replica
        assert len(risky[0].links) == 1 and risky[0].links[0].trace_id.hex() == trace_id


@pytest.mark.slow
def test_a_replay_carries_what_its_request_did_and_its_spans_link_back(shop: Shop) -> None:
    trace_id = os.urandom(16).hex()
    assert shop.send("dead", trace_id).status == 500
    (letter,) = json.loads(shop.dlq("list", "--json"))
    assert json.loads(shop.dlq("show", letter["request_id"], "--json"))["trace_id"] == trace_id
    shop.collector.wait(trace_id, [*BEGIN, RISKY, RISKY])
    (shop.folder / "dead").touch()
    shop.dlq("replay", letter["request_id"])
    plane = ClientPlane(Settings.from_env(shop.env))
    rendered = Ref(letter["request_id"], plane)
    rendered.follow()
    assert rendered.done.wait(60)
    assert json.dumps(seen(trace_id), separators=(",", ":")).encode() in rendered.outcome().payload
    plane.close()

    spans = shop.collector.wait(trace_id, [*BEGIN, RISKY, RISKY, RISKY, *END])
    first, second, third = [span for span in spans if span.name == RISKY]
    assert [told(span, "outcome") for span in (first, second, third)] == ["retried", "dead letter", "forwarded"]
    assert [link.span_id for link in third.links] == [first.span_id]
    assert third.parent_span_id == first.parent_span_id != b""
    (last,) = [span for span in spans if span.name == "process last.__call__"]
    assert [link.span_id for link in last.links] == [first.span_id]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["plain", "retry", "kill", "dead"])
def test_a_response_has_the_times_of_each_step_if_its_request_asks_for_them(shop: Shop, what: str) -> None:
    answer = shop.send(what, os.urandom(16).hex(), X_Server_Timing="1")
    if what == "dead":
        assert answer.status == 500 and "server-timing" not in answer.headers
        (letter,) = json.loads(shop.dlq("list", "--json"))
        shown = json.loads(shop.dlq("show", letter["request_id"], "--json"))
        assert "'what': 'dead'" in shown["payload"][0]
        shop.dlq("purge", letter["request_id"])
        return
    entries = [entry.split(";") for entry in answer.headers["server-timing"].split(", ") if ";dur=" in entry]
    assert [entry[0] for entry in entries] == ["first", "Risky.run", "last"]
    for _, duration, *_ in entries:
        assert float(duration.removeprefix("dur=")) >= 0
    assert len(answer.json) == 4
    assert "server-timing" not in shop.client.send("POST", "/", "plain").headers
