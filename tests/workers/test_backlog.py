"""The backlog has two takers, and each call has one."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from qserve_workers.replica import reader as module
from qserve_workers.replica.reader import Backlog, Delivery, Tag

from qserve.base.keys import Keys
from qserve.exceptions import BrokerUnavailable


class FakeBroker:
    """Takes what is given back.

    Parameters:
      error: What it answers instead, as long as that is set.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self.given: list[bytes] = []
        self.error = error

    def execute_command(self, *command: Any) -> int:
        if self.error is not None:
            raise self.error
        entries = list(command[7:])  # after the number of them
        self.given += entries
        return len(entries)


def entries(count: int) -> list[Delivery]:
    return [Delivery(Tag("queue", str(number).encode()), {}) for number in range(count)]


def give_back(backlog: Backlog, broker: FakeBroker) -> int:
    return backlog.give_back(broker)[0]  # type: ignore[arg-type]


def test_what_has_just_come_stays() -> None:
    backlog, broker = Backlog(Keys(), "queue"), FakeBroker()
    batch = backlog.begin_each(entries(3))
    next(batch)
    assert give_back(backlog, broker) == 0
    assert len(list(batch)) == 2


def test_each_call_is_either_begun_or_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSTARTED_S", -1.0)
    backlog, broker, all_of_them = Backlog(Keys(), "queue"), FakeBroker(), entries(20_000)
    stop = threading.Event()

    def take_from_the_other_end() -> None:
        while not stop.is_set():
            give_back(backlog, broker)

    thread = threading.Thread(target=take_from_the_other_end)
    thread.start()
    begun: list[bytes] = []
    try:
        # as fast as the thread lets it: neither side may come away with everything
        for start in range(0, len(all_of_them), 100):
            begun += [entry.tag.entry_id for entry in backlog.begin_each(all_of_them[start : start + 100])]
    finally:
        stop.set()
        thread.join()

    assert sorted(begun + broker.given) == sorted(entry.tag.entry_id for entry in all_of_them)


def test_what_could_not_be_given_back_is_still_there_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSTARTED_S", -1.0)
    backlog, broker = Backlog(Keys(), "queue"), FakeBroker(ConnectionError("away"))
    batch = backlog.begin_each(entries(4))
    assert next(batch).tag.entry_id == b"0"

    with pytest.raises(BrokerUnavailable):
        give_back(backlog, broker)

    assert Tag("queue", b"3") not in backlog
    assert [entry.tag.entry_id for entry in batch] == [b"1", b"2", b"3"]
