"""Metrics of a whole stack: one page for all its processes, whichever process replies and whichever dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from http_client import Client
from processes import Site, frozen, wait_until
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parsed

APP = """
import asyncio, os, qserve
from qserve.metrics import Counter, Gauge, Histogram

seen = Counter("images_seen", tag_keys=("model",))

@qserve.deployment(max_retries=1, retry_backoff_s=0.01)
class Model:
    def __init__(self):
        self.loaded = Gauge("rows_loaded")
        self.loaded.set(7)

    @qserve.batch(max_batch_size=4)
    async def double(self, numbers):
        return [2 * number for number in numbers]

    @qserve.multiplexed(max_num_models_per_replica=1)
    async def load(self, name):
        return name

    async def __call__(self, request):
        what = request.query_params.get("what")
        if what == "wait":
            await asyncio.sleep(600)
        seen.inc(tags={"model": "small"})
        if what == "die":
            os._exit(1)
        if what == "raise":
            raise ValueError("it fails")
        await self.load("a")
        return await self.double(4)

app = Model.bind()
"""
APPLICATION = "application=default"
SERVED = (APPLICATION, "method=GET", "route=/", "status_code=200")
OF = ("application=default", "deployment=Model")


TRACE = "0af7651916cd43dd8448eb211c80319c"
FINAL = {
    state: ("requests_final_total", (APPLICATION, f"state={state}"), count)
    for state, count in (("done", 10), ("failed", 2), ("cancelled", 1), ("expired", 1))
}
"""How many requests have ended in each state: one was a dead letter, and the replica of one died three times."""
_LEFT_OUT = ("worker", "replica", "le")


class Page:
    """What the page says now, by names and labels; numbers of several replicas are added up."""

    def __init__(self, client: Client) -> None:
        text = client.get("/-/metrics", **{"Accept": "application/openmetrics-text"}).body.decode()
        self.values: dict[tuple[str, ...], float] = {}
        self.exemplars: set[str] = set()
        self.traces: set[str] = set()
        for family in parsed(text):
            for one in family.samples:
                labels = sorted(f"{name}={value}" for name, value in one.labels.items() if name not in _LEFT_OUT)
                key = (one.name.removeprefix("qserve_"), *labels)
                self.values[key] = self.values.get(key, 0) + one.value
                if one.exemplar:
                    self.exemplars.add(one.exemplar.labels["request_id"])
                    self.traces.add(f"{one.name} {one.exemplar.labels.get('trace_id')}")

    def __getitem__(self, key: tuple[str, ...]) -> float:
        return self.values.get(key, 0)


def page_when(client: Client, **wanted: Any) -> Page:
    def look() -> Page | None:
        page = Page(client)
        return page if all(page[(name, *labels)] == value for name, labels, value in wanted.values()) else None

    return wait_until(look, description=f"the page says {wanted}")


@pytest.mark.slow
def test_one_page_has_what_all_processes_have_counted_and_what_dead_ones_have(site: Site) -> None:
    serving = site.run("metered:app", "--workers", "2", "--name", "default", cwd=site.write("metered.py", APP))
    client = Client(serving.url)
    for number in range(10):
        client.get(f"/?n={number}", **{"X-Request-ID": f"request-{number}", "traceparent": f"00-{TRACE}-{7:016x}-01"})
    assert client.get("/?what=raise").status == 500

    page = page_when(
        client,
        requests=("serve_num_http_requests_total", SERVED, 10),
        errors=("serve_num_http_error_requests_total", (APPLICATION, "error_code=500", "method=GET", "route=/"), 1),
        seen=("images_seen_total", (*OF, "model=small"), 12),
        calls=("serve_deployment_request_counter_total", (*OF, "route=/"), 10),
        raised=("serve_deployment_error_counter_total", (*OF, "exception_type=ValueError", "route=/"), 2),
        retries=("retries_total", OF, 1),
        letters=("calls_dead_lettered_total", (*OF, "reason=retries"), 1),
        done=("requests_final_total", ("application=default", "state=done"), 10),
        failed=("requests_final_total", ("application=default", "state=failed"), 1),
        batches=("serve_batches_processed_total", (*OF, "function_name=Model.double"), 10),
        loads=("serve_multiplexed_models_load_counter_total", (*OF, "function_name=Model.load"), 1),
        commits=("broker_commit_latency_ms_count", OF, 10),
        letter=("dead_letters", (), 1),
        up=("broker_up", (), 1),
        replicas=("replicas_running", OF, 1),
        rows=("rows_loaded", OF, 7),
    )  # fmt: skip
    assert page.exemplars & {f"request-{number}" for number in range(10)}
    timed = ("http_request_latency_ms", "deployment_processing_latency_ms")
    assert page.traces >= {f"qserve_serve_{name}_bucket {TRACE}" for name in timed}

    assert client.get("/?what=die").status == 500
    place = client.send("GET", "/?what=wait", Prefer="respond-async").headers["location"]
    assert [client.send("DELETE", place).status for _ in range(2)] == [204, 204]
    assert client.get("/?what=wait", x_request_timeout_seconds="0.5").status == 504
    page_when(client, **FINAL)
    _kill_a_gateway_process(site)
    after = page_when(
        client,
        seen=("images_seen_total", (*OF, "model=small"), 12),
        deaths=("replica_deaths_total", OF, 3),
        starts=("serve_deployment_replica_starts_total", OF, 4),
        takeovers=("takeovers_total", OF, 3),
        requests=("serve_num_http_requests_total", SERVED, 10),
        rows=("rows_loaded", OF, 7),
        replicas=("replicas_running", OF, 1),
        **FINAL,
    )  # fmt: skip
    assert after[("requests_final_total", "application=default", "state=done")] == 10


@pytest.mark.slow
@pytest.mark.long  # tests/gateway/test_metrics_page.py has the page
def test_while_the_broker_is_away_the_page_has_what_was_counted_and_says_that_it_is(site: Site) -> None:
    serving = site.run("metered:app", "--name", "default", cwd=site.write("metered.py", APP))
    client = Client(serving.url)
    client.get("/?n=1")
    page_when(client, requests=("serve_num_http_requests_total", SERVED, 1), up=("broker_up", (), 1))
    (broker,) = [
        pid for pid, command in site.processes().items() if "broker.sock" in command or "server" in command.split()[0]
    ]

    with frozen(broker):
        page_when(client, requests=("serve_num_http_requests_total", SERVED, 1), up=("broker_up", (), 0))

    page_when(client, up=("broker_up", (), 1))


def _kill_a_gateway_process(site: Site) -> None:
    found = {pid for pid, command in site.processes().items() if "gateway" in command}
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in found}
    victim = next(pid for pid, parent in sorted(parents.items()) if parent in found)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in site.processes(), description="it is gone")
