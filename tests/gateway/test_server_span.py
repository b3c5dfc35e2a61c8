"""The span of an HTTP request: it ends with the reply, whatever the reply is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from fakes import FakePlane, driver_app
from flask.testing import FlaskClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from qserve_gateway.application import create_app

from qserve.base.settings import Settings
from qserve.exceptions import BrokerUnavailable
from qserve.tracing.spans import Spans
from qserve.tracing.switch import switch

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(switch, "spans", Spans(provider, is_own=True))
    yield exporter


@pytest.fixture
def plane() -> FakePlane:
    return FakePlane(driver_app(prefix="/shop"))


@pytest.fixture
def client(plane: FakePlane) -> FlaskClient:
    return create_app(Settings(tenant_header="x-tenant"), plane, watch=False).test_client()  # type: ignore[arg-type]


def test_a_request_has_one_span_by_its_route_and_its_call_is_below_that(
    client: FlaskClient, plane: FakePlane, exporter: InMemorySpanExporter
) -> None:
    sent = {"traceparent": PARENT, "tracestate": "a=1", "X-Tenant": "acme", "X-Request-ID": "my-id"}
    client.post("/shop/tea", json=1, headers=sent)
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind.name, span.parent.span_id) == ("POST /shop", "SERVER", int(PARENT[36:52], 16))
    told = span.attributes
    assert (told["http.route"], told["http.response.status_code"], told["url.path"]) == ("/shop", 200, "/shop/tea")
    assert (told["qserve.application"], told["qserve.request_id"]) == ("graph", "my-id")
    carried = plane.calls[0].carried
    assert carried is not None
    assert carried.traceparent == f"{PARENT[:36]}{span.context.span_id:016x}-01"
    assert (carried.tracestate, carried.tenant) == ("a=1", "acme")


@pytest.mark.parametrize(
    ("path", "given", "error", "status", "is_error"),
    [
        ("/nothing", {"json": 1}, None, 404, False),
        ("/shop", {"data": b"{"}, None, 400, False),
        ("/shop", {"json": 1}, BrokerUnavailable("it is away"), 503, True),
        ("/shop", {"json": 1}, RuntimeError("a fault of ours"), 500, True),
    ],
)
def test_a_request_that_fails_has_its_span_with_the_status(
    client: FlaskClient, plane: FakePlane, exporter: InMemorySpanExporter, path: str, given: Any, error: Any,
    status: int, is_error: bool,
) -> None:  # fmt: skip
    plane.error = error
    assert client.post(path, **given).status_code == status
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == status
    assert (span.status.status_code.name == "ERROR") is is_error
    assert span.name == ("POST" if path == "/nothing" else "POST /shop" if plane.calls else "POST")


@pytest.mark.parametrize("parent", ["00-" + "0" * 32 + "-b7ad6b7169203331-01", "x" * 10_240, f"{PARENT},{PARENT}"])
def test_a_hostile_trace_context_begins_a_new_trace(
    client: FlaskClient, exporter: InMemorySpanExporter, parent: str
) -> None:
    client.post("/shop/%0d%0a%1b" + "y" * 5000, json=1, headers={"traceparent": parent, "tracestate": "a=1," * 2560})
    (span,) = exporter.get_finished_spans()
    assert span.parent is None and not span.context.trace_state
    assert len(span.attributes["url.path"]) <= 1024


def test_pages_of_the_gateway_have_no_spans(client: FlaskClient, exporter: InMemorySpanExporter) -> None:
    assert client.get("/-/routes").status_code == 200
    assert not exporter.get_finished_spans()
