"""A result of which only the length was announced is fetched whole, late, or with the error that says why not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from qserve.base.settings import Settings
from qserve.calls import client
from qserve.calls.client import ClientPlane
from qserve.exceptions import BrokerUnavailable, DeadlineExceeded, ResultUnavailable
from qserve.wire.failure import Failure
from qserve.wire.outcome import Outcome
from qserve.wire.sealing import seal_end

ID = "a" * 32


class Plane(ClientPlane):
    """Answers with what the test has prepared; with nothing when that is used up."""

    def prepare(self, *replies: Any) -> None:
        self.replies = list(replies)

    def post(self, command: Any, on_reply: Any) -> None:
        assert command[:2] == ("HMGET", self.keys.request(ID))
        if self.replies:
            on_reply(self.replies.pop(0))


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    monkeypatch.setattr(client, "FETCH_PAUSE_S", 0.0)
    with closing(Plane(Settings(broker_url="redis://127.0.0.1:1"), counts_results=True)) as plane:
        yield plane


def test_a_result_is_fetched_when_the_broker_is_back(plane: Plane) -> None:
    away = BrokerUnavailable("away")
    open_again = [b"o", None]  # another server had not yet received the end
    plane.prepare(away, open_again, away, [b"d", seal_end(plane.seal, ID, "d", b"result")])
    assert plane.fetch(ID, 60) == Outcome("d", b"result")


def test_a_result_that_is_not_stored_any_more_is_an_error(plane: Plane) -> None:
    plane.prepare([None, None])
    assert isinstance(Failure.decode(plane.fetch(ID, 60).payload).to_exception(), ResultUnavailable)


@pytest.mark.parametrize("state", [b"a", b"", b"d"])
def test_what_was_not_sealed_is_not_believed(plane: Plane, state: bytes) -> None:
    plane.prepare([state, b"12"])
    assert plane.fetch(ID, 60).state == "f"


def test_a_broker_that_stays_away_or_silent_is_an_error_at_the_deadline(plane: Plane) -> None:
    for replies, error in (([BrokerUnavailable("away")] * 9, BrokerUnavailable), ([], DeadlineExceeded)):
        plane.prepare(*replies)
        with pytest.raises(error):
            plane.fetch(ID, 0.0)
    plane.prepare([b"d", seal_end(plane.seal, ID, "d", b"result")])
    assert plane.fetch(ID, 0.0) == Outcome("d", b"result")
