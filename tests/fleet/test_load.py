"""The load that decides on replicas is what the broker holds, and nothing that could not be read."""

from __future__ import annotations

import pytest
import redis
from desk import Desk

from qserve.base.keys import GROUP
from qserve.broker import functions
from qserve.exceptions import BrokerError
from qserve.fleet.load import read_loads


def test_what_waits_and_runs_is_read_for_all_queues_at_once(desk: Desk) -> None:
    then_ms = desk.client.time()[0] * 1000 - 5000
    for number in range(3):
        desk.client.xadd(desk.one, {b"h": b"x"}, id=f"{then_ms}-{number}")
    desk.client.xreadgroup(GROUP, "replica", {desk.one: ">"}, count=1)

    first, second = read_loads(desk.client, [desk.one, desk.two], at=7.0)

    assert (first.at, first.waiting, first.running) == (7.0, 2, 1)
    assert first.oldest_s >= 5
    assert (second.waiting, second.running, second.oldest_s) == (0, 0, 0.0)


def test_no_queue_is_no_question(client: redis.Redis) -> None:
    client.close()

    assert read_loads(client, [], at=1.0) == []


def test_an_error_is_no_load(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "backlog", lambda queues: ("FCALL", "a_function_of_a_newer_version", 0))

    with pytest.raises(BrokerError, match="Function not found"):
        read_loads(desk.client, [desk.one], at=1.0)
