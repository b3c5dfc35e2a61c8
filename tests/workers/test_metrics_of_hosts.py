"""A supervisor adds up what its replicas count, stores it for the gateways, and answers Prometheus without waiting."""

from __future__ import annotations

import logging
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed
from qserve_workers.supervisor import metrics
from qserve_workers.supervisor.metrics import HostMetrics
from redis.exceptions import NoPermissionError

from qserve.base.keyring import Keyring
from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.exceptions import BrokerError
from qserve.metrics.recorder import Recorder
from qserve.metrics.table import TABLE
from qserve.metrics.totals import Reporter
from qserve.wire.sealing import Seal

PLACE = {"application": "shop", "deployment": "Model"}


class FakeInstallation:
    """The broker is not asked by what is tested here."""

    client: Any = None
    keys, seal = Keys(), Seal(Keyring())


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def host(listener: socket.socket) -> Iterator[HostMetrics]:
    host = HostMetrics(Settings(), FakeInstallation(), "host-1", listener)  # type: ignore[arg-type]
    yield host
    host.close()


def page_of(host: HostMetrics, listener: socket.socket, path: str = "/metrics", **headers: str) -> bytes:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}{path}"
    with ThreadPoolExecutor() as pool:
        asked: Future[bytes] = pool.submit(_read, urllib.request.Request(url, headers=headers))
        while not asked.done():
            host.turn({("shop", "Model"): 2})
        return asked.result()


def _read(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=30) as response:
        return bytes(response.read())


def numbers(page: bytes) -> dict[str, float]:
    return {one.name: one.value for family in parsed(page.decode()) for one in family.samples}


def test_its_page_has_what_replicas_and_itself_count_and_a_slow_client_holds_up_nobody(
    host: HostMetrics, listener: socket.socket
) -> None:
    with (
        socket.create_connection(listener.getsockname()) as slow,
        socket.create_connection(listener.getsockname()) as bad,
    ):
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no more
        bad.sendall(b"\xff" * 10_000)
        recorder = Recorder({**PLACE, "replica": "Model-1"})
        recorder.number(TABLE["retries"]).add(3)
        recorder.set(TABLE["serve_replica_processing_queries"], 1)
        Reporter(recorder, "Model-1", host.told).flush()
        host.count("takeovers", "shop", "Model", 4)

        found = numbers(page_of(host, listener))

    assert found["qserve_retries_total"] == 3
    assert found["qserve_takeovers_total"] == 4
    assert found["qserve_worker_replicas"] == 2
    assert found["qserve_serve_replica_processing_queries"] == 1
    host.forget("Model-1")
    after = numbers(page_of(host, listener, "/-/metrics?x=1"))
    assert "qserve_serve_replica_processing_queries" not in after
    assert after["qserve_retries_total"] == 3
    assert page_of(host, listener, accept="application/openmetrics-text").endswith(b"# EOF\n")
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        page_of(host, listener, "/")
    error.value.close()


def test_the_port_is_not_held_by_replicas(host: HostMetrics, listener: socket.socket) -> None:
    pid = os.fork()
    if not pid:
        os._exit(listener.fileno() != -1)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_is_counted_is_stored_when_it_has_changed_and_a_broker_that_forbids_it_is_asked_once(
    host: HostMetrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, stored = [100.0], list[bool]()

    def publish(*given: Any) -> bool:
        stored.append(given[-1])
        return True

    monkeypatch.setattr("qserve_workers.supervisor.metrics.time.monotonic", lambda: now[0])
    monkeypatch.setattr(metrics, "publish", publish)
    for second in range(21):  # only the first of them brings something new
        now[0] += 1
        if not second:
            host.count("takeovers", "shop", "Model")
            host.turn({})
        host.publish_if_due()
    assert stored == [True] * 3, "it has a page of its own"

    def refuse(*given: Any) -> bool:
        stored.append(False)
        raise BrokerError("refused") from NoPermissionError("this user may not")

    monkeypatch.setattr(metrics, "publish", refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            now[0] += 60
            host.publish_if_due()
    assert stored.count(False) == 1
    assert "see its user in `qserve doctor --acl`" in caplog.text
