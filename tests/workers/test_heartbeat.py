"""Who is lost is judged by counters and the observer's own clock, and a heartbeat notices that it was forgotten."""

from __future__ import annotations

import itertools
import os

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from qserve_workers.process.heartbeat import Heartbeat, Observer, read_beat

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.wire.sealing import Seal

LEASE_S = 2.0
SWEEP_S = LEASE_S / 8


class Watch:
    """An observer, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.observer = Observer(LEASE_S, clock=lambda: self.now)

    def look(self, after_s: float = SWEEP_S, **counters: int | None) -> set[str]:
        self.now += after_s
        return self.observer.update(counters)

    def seconds_until_lost(self, counter: int | None) -> float:
        self.look(a=counter)
        began = self.now
        while "a" not in self.look(a=counter):
            assert self.now - began < 10 * LEASE_S
        return self.now - began


@pytest.mark.parametrize("counter", [7, None])
def test_a_counter_that_stands_still_for_a_lease_is_lost_and_no_earlier(counter: int | None) -> None:
    assert Watch().seconds_until_lost(counter) == pytest.approx(LEASE_S, abs=SWEEP_S)


@given(st.lists(st.tuples(st.floats(0.01, 1e6), st.integers(1, 5)), min_size=1, max_size=50))
def test_a_counter_that_grows_is_never_lost_however_long_between(steps: list[tuple[float, int]]) -> None:
    watch, counter = Watch(), 0
    for after_s, more in steps:
        counter += more
        assert watch.look(after_s, a=counter) == set()


def test_a_counter_that_is_set_back_or_put_back_does_not_count_as_a_beat() -> None:
    watch, began = Watch(), 0.0
    for count in (5, 6, 7):
        watch.look(a=count)
        began = watch.now
    for old in itertools.cycle((5, 6, None, 7)):
        if watch.look(a=old):
            break
    assert watch.now - began == pytest.approx(LEASE_S, abs=SWEEP_S)
    assert watch.look(a=6) == watch.look(a=7) == {"a"}
    assert watch.look(a=8) == set()


def test_a_counter_that_was_gone_for_a_moment_is_alive() -> None:
    watch = Watch()
    watch.look(a=500)
    watch.look(a=None)  # the broker has lost its state
    assert watch.look(LEASE_S, a=501) == set()


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


@pytest.fixture
def heart(client: redis.Redis, settings: Settings) -> Heartbeat:
    return Heartbeat(client, settings, "a", may_beat=lambda: True, report=lambda send: None)


def test_a_replica_is_reported_again_with_each_heartbeat(client: redis.Redis, settings: Settings) -> None:
    reports: list[int] = []
    heart = Heartbeat(client, settings, "a", may_beat=lambda: True, report=lambda send: reports.append(1))
    heart.beat()
    heart.beat()
    assert reports == [1, 1]


def test_a_heartbeat_that_somebody_touches_is_sent_again_and_named_once(
    heart: Heartbeat, client: redis.Redis, keys: Keys, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    heart.replica = os.urandom(4).hex()
    seal, key = Seal(settings.keyring), keys.beat("a")
    heart.beat()
    first = client.get(key)
    heart.beat()
    assert not caplog.records

    for _ in range(3):
        client.set(key, first)
        heart.beat()

    assert [record.message for record in caplog.records] == [
        f"the heartbeat of replica {heart.replica} was changed in the broker, and is sent again"
    ]
    assert read_beat(seal, heart.replica, client.get(key)) == 5


def test_a_heartbeat_is_believed_of_its_own_replica_only(
    heart: Heartbeat, client: redis.Redis, keys: Keys, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    heart.beat()
    genuine, seal = client.get(keys.beat("a")), Seal(settings.keyring)
    assert read_beat(seal, "a", genuine) == 1
    for name, forged in (("b", genuine), ("a", b"7"), ("a", b""), ("a", seal.seal(b"beat|a", b"7\xff"))):
        assert read_beat(seal, name, forged) is None
    assert "the heartbeat of replica b is ignored: a message's signature is wrong" in caplog.text
