"""Metrics as Prometheus reads them."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain

from qserve.metrics import Counter, Gauge, Histogram
from qserve.metrics.exposition import quantile, render
from qserve.metrics.recorder import Recorder
from qserve.metrics.table import TABLE
from qserve.wire.totals import Description, Distribution, Exemplar, Family, Kind, Snapshot

HTTP = TABLE["serve_http_request_latency_ms"]
TRACE = "0af7651916cd43dd8448eb211c80319c"
HOSTILE = 'a"b\\c\n{le="1"} 5 # é'


@pytest.fixture
def snapshot(here: Recorder) -> Snapshot:
    counts = (1, 2, *[0] * (len(HTTP.bounds) - 1))
    Counter("seen", description=HOSTILE, tag_keys=("user",)).inc(2, tags={"user": HOSTILE})
    Gauge("load").set(-1.5)
    Histogram("pixels", boundaries=[1, 2.5]).observe(2)
    found = here.take()
    found[HTTP.name] = Family(
        HTTP,
        {
            ("/a", "GET", "shop", "200"): Distribution(counts, 4.5, {1: Exemplar("request-1", 1.5, 1_700_000_000.0)}),
            ("/a", "GET", "shop", "503"): Distribution(counts, 4.5, {1: Exemplar(HOSTILE, 1.5, 1.0)}),
            ("/b", "GET", "shop", "200"): Distribution(counts, 4.5, {1: Exemplar("request-2", 2.5, 1.0, TRACE)}),
            ("/c", "GET", "shop", "200"): Distribution(counts, 4.5, {1: Exemplar("r" * 79, 3.5, 1.0, TRACE)}),
            ("/d", "GET", "shop", "200"): Distribution(counts, 4.5, {1: Exemplar(HOSTILE, 4.5, 1.0, TRACE)}),
            ("/e", "GET", "shop", "200"): Distribution(counts, 4.5, {1: Exemplar("request-3", 5.5, 1.0, HOSTILE)}),
        },
    )
    found["requests_final"] = Family(TABLE["requests_final"], {("shop", "done"): 3.0, ("shop", "expired"): 2.0})
    return found


def samples(families: Any) -> dict[tuple[str, ...], float]:
    return {
        (one.name, *(f"{name}={value}" for name, value in sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


def test_both_formats_say_the_same_and_only_one_has_exemplars(snapshot: Snapshot) -> None:
    text, kind = render([(snapshot, {})], "qserve_")
    open_text, open_kind = render([(snapshot, {})], "qserve_", "application/openmetrics-text;version=1.0.0,text/plain")

    assert (kind.split(";")[0], open_kind.split(";")[0]) == ("text/plain", "application/openmetrics-text")
    read, open_read = [*plain(text.decode())], [*open_metrics(open_text.decode())]
    assert samples(read) == samples(open_read)
    assert b"request_id" not in text
    exemplars = [one.exemplar for family in open_read for one in family.samples if one.exemplar]
    assert [(one.labels, one.value) for one in exemplars] == [
        ({"request_id": "request-1"}, 1.5),
        ({"request_id": "request-2", "trace_id": TRACE}, 2.5),
        ({"trace_id": TRACE}, 3.5),  # OpenMetrics allows 128 characters
        ({"trace_id": TRACE}, 4.5),  # an id that could break the page is left out
        ({"request_id": "request-3"}, 5.5),
    ]
    for name in ("Accept", "text/plain;version=?", 'application/openmetrics-text;version=x;escaping="', "\x00"):
        assert render([(snapshot, {})], "qserve_", name)[0]


def test_numbers_that_follow_from_others_are_not_counted_but_shown(snapshot: Snapshot) -> None:
    found = samples(plain(render([(snapshot, {})], "ray_")[0].decode()))

    of = ("application=shop", "method=GET", "route=/a")
    assert found[("ray_serve_num_http_requests_total", *of, "status_code=200")] == 3
    assert found[("ray_serve_num_http_error_requests_total", of[0], "error_code=503", *of[1:])] == 3
    assert found["ray_deadline_exceeded_total", "application=shop"] == 2
    assert found["ray_seen_total", "application=shop", "deployment=Model", f"user={HOSTILE}"] == 2
    assert found["ray_load", "application=shop", "deployment=Model", "replica=Model-1"] == -1.5
    assert ("ray_serve_num_http_error_requests_total", of[0], "error_code=200", *of[1:]) not in found


def test_workers_are_told_apart_and_a_name_with_two_meanings_is_shown_once(snapshot: Snapshot) -> None:
    other = {"seen": Family(Description("seen", Kind.GAUGE, "", ()), {(): 1.0})}
    page = render([({}, {}), (snapshot, {"worker": "a"}), (snapshot, {"worker": "b"}), (other, {"worker": "c"})], "")[0]

    found = samples(plain(page.decode()))
    assert {key[-1] for key in found if key[0] == "seen_total"} == {"worker=a", "worker=b"}
    assert page.count(b"# TYPE seen") == 1
    tagged = {"by": Family(Description("by", Kind.GAUGE, "", ("worker",)), {("mine",): 1.0})}
    labels = [one.labels for one in next(iter(plain(render([(tagged, {"worker": "a"})], "")[0].decode()))).samples]
    assert labels == [{"worker": "mine", "qserve_worker": "a"}], "a tag of a user keeps its value"


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed: apt-get install prometheus")
def test_promtool_finds_nothing_wrong(snapshot: Snapshot) -> None:
    page = render([(snapshot, {"worker": "a"})], "qserve_")[0]

    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True)

    assert not [
        line for line in done.stderr.decode().splitlines() if "should" not in line and "abbreviated" not in line
    ]


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [((0, 0, 0), 0.5, None), ((4, 4, 0), 0.5, 10), ((4, 4, 0), 0.75, 15), ((0, 0, 9), 0.5, 20)],
)
def test_a_quantile_is_estimated_as_prometheus_does(counts: tuple[int, ...], share: float, value: float | None) -> None:
    assert quantile(Distribution(counts, 0.0), (10, 20), share) == value
