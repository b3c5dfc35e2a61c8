"""A replica is gone when the broker has lost all of its connections for good, and for no other reason."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from processes import PATIENCE_S, wait_until
from qserve_workers.process.connections import ABSENT_S, LOOK_S, Absences, Connections
from qserve_workers.process.heartbeat import Heartbeat, Observer
from qserve_workers.supervisor.takeover import Takeover

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.deploy.installation import Installation
from qserve.wire.sealing import Seal

LOOKS = int(ABSENT_S / LOOK_S) + 1
"""So many looks in which it has no connection are enough."""
OTHER = 10**15
"""The id of a connection that there is not yet."""
Look = tuple[float, str, int, str, set[int], set[int]]
"""Seconds since the last one, the broker's run; of the replica the count, the run and the ids it says; what is open."""


def look(
    *, after: float = LOOK_S, run: str = "one", count: int = 1, said_of: str = "one", ids: str = "56", opened: str = ""
) -> Look:
    return after, run, count, said_of, {int(one) for one in ids}, {int(one) for one in opened}


GONE = [look() for _ in range(LOOKS)]
ALMOST = GONE[1:]
STORIES: dict[str, tuple[list[Look], bool]] = {
    "it was killed": ([look(opened="56"), *GONE], True),
    "it was killed before anybody looked": (GONE, True),
    "it was killed, and its ids belong to nobody else ever": ([*ALMOST, look(opened="789")], True),
    "too few looks": (ALMOST, False),
    "looks in quick succession": ([look(after=0.1) for _ in range(2 * LOOKS)], False),
    "it is frozen, or its network is cut: the broker keeps its connections": ([look(opened="56")] * 99, False),
    "it has one of two connections": ([look(opened="6")] * 99, False),
    "it was away for a moment": ([*ALMOST, look(opened="5"), *ALMOST], False),
    "it connects again and says so, between all looks": (
        [look(count=count, ids=str(count)) for count in range(1, 10)],
        False,
    ),
    "it beats without a connection that the broker names": ([look(count=count) for count in range(1, 10)], False),
    "the broker was started again": ([look(run="two")] * 99, False),
    "the broker is started again in the middle": ([*ALMOST, look(run="two"), *ALMOST], False),
    "another primary, with what the first one has stored": ([*ALMOST, *[look(run="two")] * 99], False),
    "it was killed after the broker was started again": ([look(run="two", said_of="two")] * LOOKS, True),
    "the observer stood still": ([*ALMOST, look(after=60.0), *ALMOST[1:]], False),
    "the observer stood still, and then it was gone for as long as ever": ([*ALMOST, look(after=60.0), *ALMOST], True),
    "it says no ids: its broker does not tell": ([look(ids="")] * 99, False),
    "old words of it are put back": ([look(count=7, ids="9", opened="9"), *[look(count=6)] * 99], False),
}


@pytest.mark.row("F53")
@pytest.mark.parametrize("story", STORIES)
def test_a_replica_is_gone_only_if_its_connections_stay_closed_in_one_run_of_the_broker(story: str) -> None:
    looks, is_gone = STORIES[story]
    now = 1000.0
    absences = Absences(clock=lambda: now)
    found = False
    for after, run, count, said_of, ids, opened in looks:
        now += after
        said = {"a": Connections(count, said_of, frozenset(ids)), "silent": None}
        found = found or "a" in absences.update(said, run, opened)
    assert found is is_gone


def test_one_that_was_gone_is_lost_until_it_beats_again() -> None:
    observer = Observer(60.0)
    observer.note_loss("a", 7)
    assert observer.update({"a": 7, "b": 7}) == {"a"}
    assert observer.update({"a": 8, "b": 7}) == set()


@pytest.fixture
def heart(settings: Settings) -> Iterator[Heartbeat]:
    """One whose next beat is due in half an hour."""
    own = connect(settings.named_broker)
    slow = replace(settings, lease_s=7200.0)
    yield Heartbeat(own, slow, "beating", may_beat=lambda: True, report=lambda send: None, others=lambda: [0, OTHER])
    own.close()


def words_of(client: redis.Redis, heart: Heartbeat, name: str) -> Connections | None:
    data = client.get(Keys(heart.settings.namespace).connections(heart.replica))
    return Connections.read(Seal(heart.settings.keyring), name, data)


def test_a_heartbeat_names_its_connections_for_its_own_replica_only(
    heart: Heartbeat, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    heart.beat()

    words = words_of(client, heart, heart.replica)
    assert words is not None
    assert words.ids == {heart._own, OTHER}
    assert words.run == client.info("server")["run_id"]
    assert words_of(client, heart, "another") is None
    assert "what replica another says of its connections is ignored" in caplog.text


def test_a_heartbeat_whose_connection_is_lost_comes_at_once_over_another(heart: Heartbeat, client: redis.Redis) -> None:
    is_over = threading.Event()

    def may_beat() -> bool:
        if is_over.is_set():
            raise SystemExit
        return True

    def next_words(known: Connections | None) -> Connections:
        return wait_until(
            lambda: (now := words_of(client, heart, heart.replica)) != known and now,
            description="a beat, half an hour early",
        )

    def run() -> None:
        with contextlib.suppress(SystemExit):
            heart._run()

    heart.may_beat = may_beat
    beating = threading.Thread(target=run)
    beating.start()
    words = next_words(None)
    for _ in range(3):
        client.client_kill_filter(_id=str(min(words.ids - {OTHER})))
        before, words = words, next_words(words)
        assert words.count == before.count + 1 and words.ids != before.ids
    is_over.set()
    client.client_kill_filter(_id=str(min(words.ids - {OTHER})))
    beating.join(PATIENCE_S)
    assert not beating.is_alive()


def test_words_that_nobody_of_us_wrote_are_no_words(settings: Settings) -> None:
    seal = Seal(settings.keyring)
    for body in (b"", b"1", b"1 run 0", b"1 run -3", b"1 run x", b"x run 3", b"1 \xff 3", b"1 run" + b" 4" * 9):
        assert Connections.read(seal, "a", seal.seal(b"connections|a", body)) is None
    words = Connections(3, "run", frozenset((4, 5)))
    assert Connections.read(seal, "a", words.sealed(seal, "a")) == words


def test_a_broker_that_lets_nobody_ask_for_connections_is_asked_once_and_named_once(
    heart: Heartbeat, client: redis.Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    heart.beat()
    client.execute_command("ACL", "SETUSER", "old", "on", ">secret", "~*", "&*", "+@all", "-client|list")
    with contextlib.closing(connect(settings.named_broker.replace("unix://", "unix://old:secret@"))) as denied:
        takeover = Takeover(Installation(settings, denied))
        takeover._consumers = {heart.replica: ["a queue"]}
        for _ in range(3):
            takeover._looked_at = 0.0
            takeover.look([], lambda *_: pytest.fail("nobody is lost"))
    client.execute_command("ACL", "DELUSER", "old")

    (record,) = caplog.records
    assert record.message.startswith(
        "killed workers are noticed by their lease of 15 s only: the broker refused a command"
    )
