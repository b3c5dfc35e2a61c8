"""Deadlines by the broker's clock: whatever clocks are set, nothing expires before its time."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.base.clock import JUMP_S, MEASURE_INTERVAL_S, OVERLAP_S, Clock

HOUR_S = 3600.0


class Hosts:
    """A host and a broker, each with a clock that somebody may set."""

    def __init__(self, broker_ahead_s: float = 0.0, host_s: float = 1_000_000.0) -> None:
        self.passed_s = 50.0
        self.host_s = host_s
        self.ahead_s = broker_ahead_s
        self.clock = Clock(lambda: self.passed_s, lambda: self.host_s + self.passed_s)

    @property
    def broker_s(self) -> float:
        return 1_000_000.0 + self.passed_s + self.ahead_s

    def measure(self, took_s: float = 0.0) -> None:
        asked_at = self.passed_s
        self.passed_s += took_s / 2
        seconds, micros = divmod(round(self.broker_s * 1e6), 1_000_000)
        self.passed_s += took_s / 2
        self.clock.observe(seconds + micros / 1e6, asked_at)


@pytest.mark.parametrize("host_s", [1_000_000.0 - HOUR_S, 1_000_000.0, 1_000_000.0 + HOUR_S])
def test_a_hosts_own_clock_does_not_matter_once_the_brokers_was_measured(host_s: float) -> None:
    hosts = Hosts(host_s=host_s)
    hosts.measure()
    hosts.passed_s += 7
    assert hosts.clock.stamp_ms() == pytest.approx(hosts.broker_s * 1000)
    assert hosts.clock.judge_ms() == pytest.approx(hosts.broker_s * 1000)


def test_setting_the_hosts_clock_changes_nothing() -> None:
    hosts = Hosts()
    before_ms = hosts.clock.stamp_ms()
    hosts.host_s -= HOUR_S
    hosts.passed_s += 1
    assert hosts.clock.stamp_ms() == pytest.approx(before_ms + 1000)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, JUMP_S * 1.1])
def test_a_deadline_from_before_a_jump_passes_when_its_time_is_over_and_not_before(jump_s: float) -> None:
    hosts = Hosts()
    hosts.measure()
    deadline_ms = hosts.clock.stamp_ms() + 60_000
    hosts.ahead_s += jump_s
    hosts.passed_s += 1
    hosts.measure()
    assert hosts.clock.judge_ms() < deadline_ms
    hosts.passed_s += 58
    assert hosts.clock.judge_ms() < deadline_ms
    if jump_s > 0:
        hosts.passed_s += 2
        assert hosts.clock.judge_ms() > deadline_ms


@given(
    jump_s=st.floats(-2 * HOUR_S, 2 * HOUR_S),
    noticed_s=st.tuples(st.floats(0, MEASURE_INTERVAL_S), st.floats(0, MEASURE_INTERVAL_S)),
    timeout_s=st.floats(10, 100),
    elapsed=st.floats(0, 0.99),
)
def test_no_deadline_passes_early_whoever_notices_the_jump_first(
    jump_s: float, noticed_s: tuple[float, float], timeout_s: float, elapsed: float
) -> None:
    giver, judge = Hosts(), Hosts(host_s=1_000_000.0 + HOUR_S)
    for hosts in (giver, judge):
        hosts.measure()
        hosts.ahead_s += jump_s
    # the deadline is given after the jump, when either has noticed it or not
    now_s = noticed_s[0] + 1e-3
    for hosts, at_s in zip((giver, judge), noticed_s, strict=True):
        hosts.passed_s += at_s
        if at_s <= now_s:
            hosts.measure()
        hosts.passed_s += now_s - at_s
    deadline_ms = giver.clock.stamp_ms() + timeout_s * 1000
    judge.passed_s += timeout_s * elapsed
    assert judge.clock.judge_ms() < deadline_ms + JUMP_S * 1000
    if abs(jump_s) > JUMP_S:
        assert judge.clock.judge_ms() < deadline_ms


def test_the_time_before_a_jump_is_given_up_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    hosts = Hosts()
    hosts.measure()
    hosts.ahead_s -= HOUR_S
    with caplog.at_level(logging.WARNING, "qserve"):
        hosts.measure()
        hosts.measure()
    assert [line.partition(":")[0] for line in caplog.messages] == ["clock_jump"]
    assert hosts.clock.stamp_ms() - hosts.clock.judge_ms() == pytest.approx(HOUR_S * 1000)
    hosts.passed_s += OVERLAP_S + 1
    assert hosts.clock.stamp_ms() == hosts.clock.judge_ms() == pytest.approx(hosts.broker_s * 1000)


def test_a_clock_that_is_set_and_set_back_is_followed_both_times() -> None:
    hosts = Hosts()
    hosts.measure()
    for jump_s in (HOUR_S, -HOUR_S):
        hosts.ahead_s += jump_s
        hosts.measure()
    assert hosts.clock.judge_ms() == pytest.approx(hosts.broker_s * 1000)
    assert hosts.clock.stamp_ms() == pytest.approx((hosts.broker_s + HOUR_S) * 1000)
    hosts.passed_s += OVERLAP_S + 1
    assert hosts.clock.stamp_ms() == pytest.approx(hosts.broker_s * 1000)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_after_a_jump_both_times_are_near_and_now_is_the_new_one(jump_s: float) -> None:
    hosts = Hosts()
    hosts.measure()
    before_ms = hosts.clock.now_ms()
    hosts.ahead_s += jump_s
    hosts.measure()
    assert hosts.clock.now_ms() == pytest.approx(hosts.broker_s * 1000)
    assert hosts.clock.is_near(hosts.broker_s * 1000, 1000) and hosts.clock.is_near(before_ms, 1000)
    assert not hosts.clock.is_near((before_ms + hosts.broker_s * 1000) / 2, 1000)
    hosts.passed_s += OVERLAP_S + 1
    assert not hosts.clock.is_near(before_ms, 1000 * (OVERLAP_S + 2))


@given(took_s=st.floats(0, 30))
def test_a_slow_answer_is_no_jump(took_s: float) -> None:
    hosts = Hosts()
    hosts.measure()
    hosts.measure(took_s)
    assert hosts.clock.stamp_ms() == hosts.clock.judge_ms() == pytest.approx(hosts.broker_s * 1000, abs=1)


def test_drift_is_followed_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    hosts = Hosts()
    hosts.measure()
    with caplog.at_level(logging.WARNING, "qserve"):
        for _ in range(100):
            hosts.ahead_s += 0.1
            hosts.passed_s += MEASURE_INTERVAL_S
            hosts.measure()
    assert hosts.clock.judge_ms() == pytest.approx(hosts.broker_s * 1000)
    assert caplog.messages == []


def test_it_is_measured_again_after_a_few_seconds_and_a_refusal_changes_nothing() -> None:
    hosts = Hosts()
    assert hosts.clock.is_due()
    before_ms = hosts.clock.stamp_ms()
    hosts.clock.observe(None, 0.0)
    assert hosts.clock.stamp_ms() == before_ms
    hosts.measure()
    assert not hosts.clock.is_due()
    hosts.passed_s += MEASURE_INTERVAL_S
    assert hosts.clock.is_due()
