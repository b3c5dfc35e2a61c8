"""A loop that must live: what its errors cost, and what is logged about them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from qserve.base import turns as module
from qserve.base.turns import Turns
from qserve.exceptions import BrokerUnavailable

log = logging.getLogger("qserve.tests.turns")


class Loop:
    """Turns of a loop, whose clock the test moves."""

    def __init__(self, eager_for_s: float = 0.0) -> None:
        self.now = 100.0
        self.turns = Turns("the test", log, eager_for_s=eager_for_s, monotonic=lambda: self.now)

    def turn(self, error: BaseException | None = None, after_s: float = 0.0) -> None:
        self.now += after_s
        with self.turns:
            if error is not None:
                raise error

    def part(self, item: str, error: Exception | None = None) -> bool:
        def act() -> None:
            if error is not None:
                raise error

        return self.turns.attempt(item, act)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, log.name)

    def take() -> list[str]:
        found = [f"{record.message}{' + traceback' * bool(record.exc_info)}" for record in caplog.records]
        caplog.clear()
        return found

    return take


def test_an_error_is_logged_once_with_its_traceback_and_its_end_is_logged_too(lines: Callable[[], list[str]]) -> None:
    loop = Loop()
    for _ in range(3):
        loop.turn(ValueError("bad record"), after_s=0.5)
    assert lines() == ["the test failed: bad record; trying again + traceback"]

    loop.turn(after_s=0.5)
    assert lines() == ["the test works again after 3 errors in 1.5 s"]

    loop.turn()
    assert lines() == []


def test_a_repeated_error_is_counted_and_logged_less_and_less_often(lines: Callable[[], list[str]]) -> None:
    loop = Loop()
    for number in range(100 * 60):
        loop.turn(ValueError(f"bad record {number}"), after_s=1.0)
    found = lines()
    assert found[1:4] == [
        "the test failed again (5 times): bad record 5",
        "the test failed again (10 times): bad record 15",
        "the test failed again (20 times): bad record 35",
    ]
    assert len(found) < 20


def test_a_different_error_is_logged_with_its_own_traceback(lines: Callable[[], list[str]]) -> None:
    loop = Loop()
    loop.turn(ValueError("one"))
    loop.turn(KeyError("two"))
    assert len([line for line in lines() if line.endswith("+ traceback")]) == 2


def test_an_error_in_every_other_turn_does_not_fill_the_log(lines: Callable[[], list[str]]) -> None:
    loop = Loop()
    for _ in range(1000):
        loop.turn(ValueError("flapping"), after_s=0.1)
        loop.turn(after_s=0.1)
    assert len(lines()) < 20


def test_a_second_outage_is_logged_like_the_first(lines: Callable[[], list[str]]) -> None:
    loop = Loop()
    for _ in range(2):
        loop.turn(BrokerUnavailable("away"), after_s=30.0)
        loop.turn(after_s=3.0)
    begin, end = (
        "the test failed: away; trying again",
        "the broker answers again after 3.0 s, and the test after 1 error",
    )
    assert lines() == [begin, end] * 2


def test_the_pause_doubles_up_to_the_longest_and_ends_with_a_success() -> None:
    loop = Loop()
    pauses = []
    for _ in range(10):
        loop.turn(ValueError("bad"))
        pauses.append(loop.turns.pause_s)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]

    loop.turn()
    assert loop.turns.pause_s == 0.0


def test_a_broker_that_is_not_there_yet_is_polled_quickly_and_without_a_word_for_a_while(
    lines: Callable[[], list[str]],
) -> None:
    loop = Loop(eager_for_s=3.0)
    for _ in range(29):
        loop.turn(BrokerUnavailable("starting"), after_s=0.1)
    assert (loop.turns.pause_s, lines()) == (0.1, [])

    loop.turn(ValueError("a bug is no outage"))
    loop.turn(BrokerUnavailable("still away"), after_s=0.5)
    assert len(lines()) == 2


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_meant_to_end_a_loop_does(error: BaseException) -> None:
    with pytest.raises(type(error)):
        Loop().turn(error)


def test_a_part_that_fails_is_left_out_for_its_own_pause_and_the_others_are_done(
    lines: Callable[[], list[str]],
) -> None:
    loop = Loop()
    assert not loop.part("queue a", ValueError("bad"))
    assert loop.part("queue b")
    assert not loop.part("queue a")  # its pause is not over

    loop.now += 0.2
    assert loop.part("queue a")
    assert lines() == [
        "the test (queue a) failed: bad; trying again + traceback",
        "the test (queue a) works again after 1 error in 0.2 s",
    ]
    assert loop.turns.failures == 0


def test_a_broker_that_is_away_ends_the_whole_turn(lines: Callable[[], list[str]]) -> None:
    with pytest.raises(BrokerUnavailable):
        Loop().part("queue a", BrokerUnavailable("away"))
    assert lines() == []


def test_parts_that_come_and_go_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ITEMS_KEPT", 3)
    loop = Loop()
    for number in range(10):
        loop.part(f"queue {number}", ValueError("bad"))
    assert len(loop.turns._items) == 3
