"""The page ``/-/metrics``: what this gateway has counted, and what the broker knows, also while that is away."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakePlane, driver_app, plain_app
from flask.testing import FlaskClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as parsed
from qserve_gateway import metrics
from qserve_gateway.application import create_app
from qserve_gateway.metrics import METRICS_PATH

from qserve.base.settings import Settings
from qserve.exceptions import BrokerUnavailable, TaskError
from qserve.metrics.table import TABLE
from qserve.wire.totals import Family, Published


def client_of(plane: Any, settings: Settings | None = None) -> FlaskClient:
    return create_app(settings or Settings(), plane, watch=False).test_client()


def numbers(client: FlaskClient) -> dict[tuple[str, ...], float]:
    page = client.get(METRICS_PATH)
    assert page.status_code == 200
    return {
        (one.name, *sorted(one.labels.values())): one.value
        for family in parsed(page.get_data(as_text=True))
        for one in family.samples
    }


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the broker says: ``facts`` and ``workers``, which may be called; it counts how often it is asked."""
    said: dict[str, Any] = {"facts": {}, "workers": {}, "asked": 0}

    def facts(*of: Any) -> Any:
        said["asked"] += 1
        return said["facts"]() if callable(said["facts"]) else said["facts"]

    monkeypatch.setattr("qserve.fleet.facts.broker_facts", facts)
    monkeypatch.setattr("qserve.fleet.totals.worker_totals", lambda *of: said["workers"])
    yield said


@pytest.mark.usefixtures("broker")
def test_requests_are_counted_by_the_pattern_of_their_route_and_never_by_what_clients_invent() -> None:
    plane = FakePlane(driver_app(routes=("/users/{name}", "/"), prefix="/api"), plain_app(prefix="/plain"))
    client = client_of(plane)
    for number in range(20):
        client.post(f"/api/users/{number}", json=1, headers={"x-request-id": f"id-{number}"})
        client.get(f"/nowhere/{number}")
        client.open("/plain/x", method=f"VERB{number}")
    client.get("/plain/?q=1")
    plane.error = TaskError("it fails")
    client.post("/api", json=1)

    found = numbers(client)

    counts = {key[1:]: value for key, value in found.items() if key[0] == "qserve_serve_num_http_requests_total"}
    assert counts == {
        ("/api/users/{name}", "200", "POST", "graph"): 20,
        ("", "", "404", "GET"): 20,
        ("", "", "405", "other"): 20,
        ("/plain", "200", "GET", "plain"): 1,
        ("/api", "500", "POST", "graph"): 1,
    }
    errors = {key[1:]: value for key, value in found.items() if "http_error_requests" in key[0]}
    assert errors == {key: value for key, value in counts.items() if "200" not in key}
    assert not [key for key in found if any("id-" in label for label in key)]


HOSTILE_IDS = (
    'a"b',
    "a\\",
    "a\\nb 5",
    '{le="1"}',
    "# TYPE x counter",
    "\xe9",
    "r" * 500,
    " ",
    "a,b=c",
    "%0a",
    "r" * 100,
)


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_ids_that_clients_choose_do_not_break_the_page(accept: str) -> None:
    client = client_of(FakePlane(plain_app()))
    for hostile in HOSTILE_IDS:
        assert client.get("/", headers={"x-request-id": hostile}).status_code == 200
        text = client.get(METRICS_PATH, headers={"accept": accept}).get_data(as_text=True)
        read = [*(open_metrics if accept else parsed)(text)]

        told = {one.exemplar.labels["request_id"] for family in read for one in family.samples if one.exemplar}
        assert all(re.fullmatch(r"[0-9a-f]{32}|r{100}", one) for one in told), told
    counts = [one.value for family in read for one in family.samples if one.name.endswith("http_requests_total")]
    assert counts == [len(HOSTILE_IDS)]


@pytest.mark.usefixtures("broker")
def test_the_page_obeys_the_rules_of_all_pages_and_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert client_of(FakePlane(plain_app()), Settings(metrics=False)).get(METRICS_PATH).status_code == 404

    monkeypatch.setenv("QSERVE_API_TOKEN", "the-token")
    client = client_of(FakePlane(plain_app()), Settings(metrics_prefix="ray_"))
    assert client.get(METRICS_PATH).status_code == 401
    page = client.get(METRICS_PATH, headers={"authorization": "Bearer the-token"})
    assert (page.status_code, page.headers["x-request-id"] != "") == (200, True)
    assert client.post(METRICS_PATH, headers={"authorization": "Bearer the-token"}).status_code == 405


def test_the_broker_is_read_once_for_all_scrapes_of_a_second(
    broker: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_FACTS_S", 60.0)
    broker["facts"] = {"queue_depth": Family(TABLE["queue_depth"], {("shop", "Model"): 3.0})}
    starts = {TABLE["takeovers"].name: Family(TABLE["takeovers"], {("shop", "Model"): 5.0})}
    broker["workers"] = {"a": Published(0.0, False, starts), "b": Published(0.0, True, starts)}
    client = client_of(FakePlane(plain_app()))

    for _ in range(3):
        found = numbers(client)

    assert found["qserve_queue_depth", "Model", "shop"] == 3
    assert {key for key in found if "takeovers" in key[0]} == {("qserve_takeovers_total", "Model", "a", "shop")}
    assert broker["asked"] == 1


def test_while_the_broker_is_away_the_page_says_so_and_shows_what_is_counted(
    broker: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Any:
        raise BrokerUnavailable("the broker cannot be reached")

    client = client_of(FakePlane(plain_app()))
    client.get("/")
    is_over, replies = threading.Event(), {"refused": away, "silent": lambda: is_over.wait(60) and {}}
    for facts in replies.values():
        monkeypatch.setattr(metrics, "_FACTS_S", 0.0)
        broker["facts"] = facts

        found = numbers(client)

        assert found[("qserve_broker_up",)] == 0
        assert found["qserve_serve_num_http_requests_total", "/", "200", "GET", "plain"] == 1
    is_over.set()
