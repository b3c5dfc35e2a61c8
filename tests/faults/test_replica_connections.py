"""Replicas that freeze, lose a reply or fall silent: their calls are answered nevertheless."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from installation import LEASE_S, Installation, Wire, elapsed, wired
from processes import Process, frozen, is_alive, wait_until

from qserve.broker.connection import BLOCK_S, READ_TIMEOUT_S

# -- frozen ----------------------------------------------------------------------------------------


def test_a_frozen_replica_is_killed_and_its_calls_run_elsewhere_within_a_lease_and_a_sweep(shop: Installation) -> None:
    worker = shop.start(replicas=2)
    slow = [shop.call("note", str(shop.site.folder / "ledger"), 0.5) for _ in range(20)]
    first = wait_until(lambda: shop.pending() == 20 and min(shop.pids()), description="all calls run")

    with frozen(first):
        took_s = elapsed(lambda: [one.result(20) for one in slow])
        wait_until(lambda: not is_alive(first), description="the frozen replica is killed")

    # after they were handed over they still take half a second, one at a time
    assert LEASE_S - 0.5 < took_s < LEASE_S * 1.25 + 1.0 + 20 * 0.5
    assert "frozen: no heartbeat for 2 s" in worker.stderr
    shop.wait_running(2, but={first})


@pytest.mark.slow
def test_a_host_that_stands_still_is_taken_over_by_another_and_goes_on_when_it_wakes(shop: Installation) -> None:
    ledger, gate = shop.site.folder / "ledger", shop.site.folder / "gate"
    frozen_host = shop.start()
    (replica,) = shop.pids()
    call = shop.call("hold", str(ledger), str(gate))
    wait_until(ledger.exists, description="the call runs")
    other_host = shop.worker()
    shop.wait_running(2)

    with frozen(frozen_host.pid, replica):
        stopped_at = time.monotonic()
        other_host.wait_for("sends no heartbeats any more", timeout_s=LEASE_S * 1.25 + 1)
        assert time.monotonic() - stopped_at > LEASE_S - 1.0  # it had beaten up to half a second before
        gate.touch()
        assert call.result(10) != replica

    # its late commit changes nothing, and it takes new calls
    took_s = elapsed(
        lambda: wait_until(
            lambda: replica in {one.result(5) for one in [shop.call("pid") for _ in range(30)]},
            description="the replica that was frozen answers",
        )
    )
    assert took_s < 1.5
    assert ledger.read_text().count(",") == 2
    wait_until(lambda: shop.pending() == 0, description="nothing is left behind")
    assert is_alive(replica)


# -- connections -----------------------------------------------------------------------------------


@pytest.mark.row("F29")
def test_a_call_whose_delivery_was_lost_on_the_wire_runs_once_and_at_once(shop: Installation) -> None:
    ledger = shop.site.folder / "ledger"
    with wired(shop.url) as wire:
        worker = shop.start(url=wire.url, QSERVE_LEASE_S="60")
        shop.ask("pid")
        wire.lose_next(b"note")

        call = shop.call("note", str(ledger))

        assert wire.lost.wait(5)
        assert elapsed(lambda: call.result(10)) < 2.0
        wait_until(lambda: shop.pending() == shop.client.xlen(shop.queue) == 0, description="nothing is left behind")
    assert ledger.read_text() == "x"
    assert "Traceback" not in worker.stderr


def test_what_was_cancelled_while_its_delivery_was_lost_never_runs(shop: Installation) -> None:
    with lost_delivery(shop) as (call, wire, _):
        shop.plane.cancel(call)
        wait_until(lambda: shop.client.xlen(shop.queue) == 0, description="the call is cancelled")
        assert shop.pending() == 0
        wire.accepts.set()

        shop.ask("pid")


def test_what_was_purged_while_its_delivery_was_lost_is_acknowledged_and_never_runs(shop: Installation) -> None:
    with lost_delivery(shop) as (_, wire, worker):
        shop.client.xtrim(shop.queue, maxlen=0)
        assert shop.pending() == 1
        wire.accepts.set()

        wait_until(lambda: shop.pending() == 0, description="the lost delivery is acknowledged")
        shop.ask("pid")
    assert "was ended before it was begun" in worker.stderr


@contextmanager
def lost_delivery(shop: Installation) -> Iterator[tuple[Any, Wire, Process]]:
    """A call that a replica was given whose connection broke, and cannot be made again until the wire accepts."""
    ledger = shop.site.folder / "ledger"
    with wired(shop.url) as wire:
        worker = shop.start(url=wire.url, QSERVE_LEASE_S="60")
        shop.ask("pid")
        wire.lose_next(b"note")
        wire.accepts.clear()
        call = shop.call("note", str(ledger))
        assert wire.lost.wait(5)
        yield call, wire, worker
    assert not ledger.exists()


@pytest.mark.slow
def test_connections_that_fall_silent_are_opened_anew_and_no_call_runs_twice(shop: Installation) -> None:
    ledger = shop.site.folder / "ledger"
    with wired(shop.url) as wire:
        worker = shop.start(url=wire.url, QSERVE_LEASE_S="60")
        running = [shop.call("note", str(ledger), 0.5) for _ in range(5)]
        wait_until(lambda: ledger.exists() and len(ledger.read_text()) == 5, description="the calls run")
        wire.fall_silent()
        queued = [shop.call("note", str(ledger)) for _ in range(5)]

        limit_s = BLOCK_S + READ_TIMEOUT_S + 3.0
        assert elapsed(lambda: [one.result(30) for one in running + queued]) < limit_s
    assert ledger.read_text() == "x" * 10
    assert "died" not in worker.stderr


def test_a_queue_that_is_gone_for_a_moment_is_made_anew_and_not_worth_many_lines(shop: Installation) -> None:
    worker = shop.start()
    shop.ask("pid")

    queue = shop.queue
    shop.client.delete(queue)

    wait_until(lambda: shop.client.exists(queue), description="the queue is there again")
    assert shop.ask("pid") in shop.pids()
    assert worker.stderr.count("the queue cannot be read") <= 1


@pytest.mark.slow
def test_a_broker_that_stands_still_ends_no_process_and_its_backlog_is_done_soon_after(shop: Installation) -> None:
    worker = shop.start(replicas=2)
    pids = shop.pids()
    shop.plane.cache_application(shop.plane.registry.get("default"), for_s=60)

    with frozen(shop.broker.pid):
        calls = [shop.call("pid") for _ in range(50)]
        time.sleep(3.0)

    assert elapsed(lambda: [one.result(10) for one in calls]) < 2.0
    assert shop.pids() == pids
    assert worker.exit_code() is None


@pytest.mark.slow
def test_a_broker_that_is_killed_and_started_again_loses_nothing_and_ends_no_process(shop: Installation) -> None:
    ledger = shop.site.folder / "ledger"
    worker = shop.start(replicas=2)
    pids = shop.pids()
    calls = [shop.call("note", str(ledger), 2.0) for _ in range(20)]
    wait_until(lambda: ledger.exists() and len(ledger.read_text()) == 20, description="the calls run")

    shop.broker.signal(signal.SIGKILL)
    shop.broker.wait()
    time.sleep(3.0)
    shop.start_broker()

    assert elapsed(lambda: [one.result(20) for one in calls]) < 3.0
    assert ledger.read_text() == "x" * 20
    assert shop.pids() == pids
    assert worker.exit_code() is None


def test_an_idle_replica_keeps_its_connections_and_opens_no_others(shop: Installation) -> None:
    shop.start()
    shop.ask("pid")
    (replica,) = shop.replicas()
    ours = {one["id"] for one in shop.client.client_list()}
    opened = shop.client.info("stats")["total_connections_received"]

    # it has beaten, been swept and read in vain, each several times
    beat = shop.keys.beat(replica.name)
    first = int(shop.client.get(beat) or 0)
    wait_until(lambda: int(shop.client.get(beat) or 0) >= first + 10, description="ten heartbeats", timeout_s=10)

    assert shop.client.info("stats")["total_connections_received"] == opened
    assert {one["id"] for one in shop.client.client_list()} == ours
