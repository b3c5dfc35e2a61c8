"""Who is lost is judged by counters and the observer's own clock, and a heartbeat notices that it was forgotten."""

from __future__ import annotations

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from qserve_workers.process.heartbeat import Heartbeat, Observer

from qserve.base.keys import Keys
from qserve.base.settings import Settings

LEASE_S = 2.0
SWEEP_S = LEASE_S / 8


class Watch:
    """An observer, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.observer = Observer(LEASE_S, clock=lambda: self.now)

    def look(self, after_s: float = SWEEP_S, **counters: int | None) -> set[str]:
        self.now += after_s
        return self.observer.update({name: None if n is None else str(n).encode() for name, n in counters.items()})

    def seconds_until_lost(self, counter: int | None) -> float:
        self.look(a=counter)
        began = self.now
        while "a" not in self.look(a=counter):
            assert self.now - began < 10 * LEASE_S
        return self.now - began


@pytest.mark.parametrize("counter", [7, None])
def test_a_counter_that_stands_still_for_a_lease_is_lost_and_no_earlier(counter: int | None) -> None:
    assert Watch().seconds_until_lost(counter) == pytest.approx(LEASE_S, abs=SWEEP_S)


@given(st.lists(st.tuples(st.floats(0.01, 1e6), st.integers(-5, 5)), min_size=1, max_size=50))
def test_a_counter_that_changes_is_never_lost_however_long_between(steps: list[tuple[float, int]]) -> None:
    watch, counter = Watch(), 0
    for after_s, change in steps:
        counter += change or 1
        assert watch.look(after_s, a=counter) == set()


def test_a_counter_that_begins_anew_is_alive() -> None:
    watch = Watch()
    watch.look(a=500)
    watch.look(a=None)  # the broker has lost its state
    assert watch.look(LEASE_S, a=1) == set()


def test_time_in_which_the_observer_itself_stood_still_accuses_nobody() -> None:
    watch = Watch()
    watch.look(a=1)
    assert watch.look(3600.0, a=1) == set()


def test_a_replica_that_was_lost_is_so_at_once_when_it_shows_up_again_without_a_beat() -> None:
    watch = Watch()
    watch.seconds_until_lost(7)
    assert watch.look() == set()
    assert watch.look(a=7) == {"a"}
    assert watch.look(a=8) == set()


def test_a_replica_whose_process_is_dead_is_lost_whatever_its_counter_says() -> None:
    watch = Watch()
    watch.observer.note_death("a")
    assert watch.look(a=1) == {"a"}
    assert watch.look(a=2, b=1) == {"a"}


def test_a_heartbeat_whose_count_begins_anew_tells_that_the_broker_has_lost_its_data(
    client: redis.Redis, settings: Settings, keys: Keys
) -> None:
    losses: list[bytes] = []
    heart = Heartbeat(
        client, settings, "a", may_beat=lambda: True, on_loss=lambda: losses.append(client.get(keys.beat("a")))
    )
    heart.beat()
    heart.beat()
    assert losses == []

    client.delete(keys.beat("a"))
    heart.beat()
    heart.beat()

    assert losses == [b"1"]
