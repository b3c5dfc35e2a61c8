"""Replicas that lose a reply, a queue or a connection: their calls are answered nevertheless."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from installation import SHOP, Installation
from processes import PATIENCE_S, Site, new_site, wait_until
from proxy import Proxy

from qserve.calls.ref import Ref


class Wired(Installation):
    """A worker with one replica whose way to the broker is a proxy, for tests that leave it as it was."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, SHOP)
        self.proxy = Proxy(self.broker_port)
        self.worker_process = self.serve(url=self.proxy.url, QSERVE_LEASE_S="600")

    def lose_delivery(self) -> None:
        """Lose the next delivery of a call of ``note``."""
        self.ask("pid")
        self.dropped = self.proxy.dropped
        self.proxy.drop_reply_with(b"note")

    def wait_lost(self) -> None:
        wait_until(lambda: self.proxy.dropped == self.dropped + 1, description="its delivery is lost")


@pytest.fixture(scope="module")
def wired() -> Iterator[Wired]:
    with new_site() as site, closing(Wired(site)) as made, closing(made.proxy):
        yield made


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.mark.slow
@pytest.mark.row("F29")
def test_a_call_whose_delivery_was_lost_on_the_wire_runs_once_and_at_once(wired: Wired, ledger: Path) -> None:
    shop = wired
    shop.lose_delivery()

    call = shop.call("note", str(ledger))

    shop.wait_lost()
    call.result(PATIENCE_S)
    wait_until(lambda: shop.pending() == shop.client.xlen(shop.queue) == 0, description="nothing is left behind")
    assert ledger.read_text() == "x"
    assert "Traceback" not in shop.worker_process.stderr


@pytest.mark.slow
def test_what_was_cancelled_while_its_delivery_was_lost_never_runs(wired: Wired, ledger: Path) -> None:
    shop, proxy = wired, wired.proxy
    with lost_delivery(shop, ledger) as call:
        shop.plane.cancel(call)
        wait_until(lambda: shop.client.xlen(shop.queue) == 0, description="the call is cancelled")
        assert shop.pending() == 0
        proxy.accepts.set()

        shop.ask("pid")


@pytest.mark.slow
def test_what_was_purged_while_its_delivery_was_lost_is_acknowledged_and_never_runs(wired: Wired, ledger: Path) -> None:
    shop, proxy = wired, wired.proxy
    with lost_delivery(shop, ledger):
        shop.client.xtrim(shop.queue, maxlen=0)
        assert shop.pending() == 1
        proxy.accepts.set()

        wait_until(lambda: shop.pending() == 0, description="the lost delivery is acknowledged")
        shop.ask("pid")
    assert "was ended before it started" in shop.worker_process.stderr


@contextmanager
def lost_delivery(shop: Wired, ledger: Path) -> Iterator[Ref]:
    """A call that a replica was given whose connection broke, and cannot be made again until the proxy accepts."""
    shop.lose_delivery()
    shop.proxy.accepts.clear()
    try:
        call = shop.call("note", str(ledger))
        shop.wait_lost()
        yield call
    finally:
        shop.proxy.accepts.set()
    assert not ledger.exists()


@pytest.mark.slow
def test_connections_that_fall_silent_are_opened_anew_and_no_call_runs_twice(wired: Wired, ledger: Path) -> None:
    shop = wired
    running = [shop.call("note", str(ledger), 0.5) for _ in range(5)]
    wait_until(lambda: ledger.exists() and len(ledger.read_text()) == 5, description="the calls run")
    shop.proxy.fall_silent()
    queued = [shop.call("note", str(ledger)) for _ in range(5)]

    [one.result(PATIENCE_S) for one in running + queued]  # a lease is longer
    assert ledger.read_text() == "x" * 10
    assert "died" not in shop.worker_process.stderr


def test_a_queue_that_is_gone_for_a_moment_is_made_anew_and_not_worth_many_lines(shop: Installation) -> None:
    worker = shop.serve()
    shop.ask("pid")

    queue = shop.queue
    shop.client.delete(queue)

    wait_until(lambda: shop.client.exists(queue), description="the queue is there again")
    assert shop.ask("pid") in shop.pids()
    assert worker.stderr.count("reading the queue failed") <= 1


def test_an_idle_replica_keeps_its_connections_and_opens_no_others(shop: Installation) -> None:
    shop.serve()
    shop.ask("pid")
    (replica,) = shop.replicas()
    ours = {one["id"] for one in shop.client.client_list()}
    opened = shop.client.info("stats")["total_connections_received"]

    # it has beaten, been swept and read in vain, each several times
    beat = shop.keys.beat(replica.name)
    beats = set[bytes | None]()
    wait_until(lambda: beats.add(shop.client.get(beat)) or len(beats) > 10, description="ten heartbeats")

    assert shop.client.info("stats")["total_connections_received"] == opened
    assert {one["id"] for one in shop.client.client_list()} == ours


@pytest.mark.slow
@pytest.mark.row("F26")
@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_running_code_is_told_after_the_connection_is_lost_that_should_have_brought_word(
    wired: Wired, ledger: Path, end: str
) -> None:
    shop, proxy = wired, wired.proxy
    shop.ask("pid")
    call, other = shop.call("until_told", str(ledger), timeout_s=600), shop.call("work", 0.0, str(ledger))
    wait_until(lambda: shop.pending() == 2, description="both run")
    if end == "cancel":
        before = proxy.dropped
        proxy.drop_reply_with(call.request_id.encode())
        shop.plane.cancel(call)
        wait_until(lambda: proxy.dropped == before + 1, description="the word of it is lost")
    else:  # nobody tells: the request is gone with its result
        shop.client.delete(shop.keys.request(call.request_id))
        proxy.cut()

    wait_until(lambda: ledger.exists(), description="it is told")
    other.result(PATIENCE_S)
    assert ledger.read_text() == "told"
    assert "Traceback" not in shop.worker_process.stderr
