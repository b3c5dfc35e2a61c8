"""Dead letters: what is kept, and what a replay goes on with."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from desk import SEAL, A, B, Desk, header_of

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.registry import Registry
from qserve.deploy.dead_letters import DeadLetters
from qserve.deploy.installation import Installation
from qserve.exceptions import DeadLetterError
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.failure import Failure
from qserve.wire.moves import Awaited, Join, Start
from qserve.wire.sealing import open_header, seal_end, seal_moves

FAILURE = seal_end(SEAL, A, "f", Failure("builtins", "ValueError", "no such model", "Traceback ...", "one").encode())


@pytest.fixture
def letters(client: redis.Redis, settings: Settings) -> DeadLetters:
    return DeadLetters(Installation(settings, client))


@pytest.fixture(autouse=True)
def deployed(client: redis.Redis, keys: Keys) -> ApplicationRecord:
    return deploy(client, keys, "v")


def deploy(client: redis.Redis, keys: Keys, version: str, names: tuple[str, ...] = ("one", "two")) -> ApplicationRecord:
    record = ApplicationRecord("app", version, "one", deployments={name: DeploymentRecord(name) for name in names})
    registry = Registry(client, keys, SEAL)
    registry.stage(record)
    registry.promote(record)
    return record


def end(desk: Desk, stream: str, entry: bytes, request_id: str) -> bytes:
    return desk.dead_letter(stream, entry, request_id, "retries", FAILURE, "ValueError: no such model")


def end_first(desk: Desk) -> None:
    """Submit request A, a call of one step, and end it as a dead letter."""
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    end(desk, desk.one, entry, A)


def test_a_dead_letter_fails_its_request_and_keeps_payload_reason_traceback_and_history(
    desk: Desk, letters: DeadLetters
) -> None:
    desk.submit(A, seal_moves(SEAL, A, [Start(desk.one, "0", [b"x", b"y"])]))
    ((entry, _),) = desk.fetch(desk.one)

    assert end(desk, desk.one, entry, A) == b"OK"

    assert desk.watch(A) == (b"f", FAILURE)
    assert desk.mail() == [A.encode() + b"f" + FAILURE]
    (letter,) = letters.list()
    assert (letter.request_id, letter.why, letter.call.values) == (A, "retries", (b"x", b"y"))
    assert letter.failure is not None and letter.failure.traceback == "Traceback ..."
    assert [(event.replica, event.what) for event in letter.history] == [("replica", "ValueError: no such model")]
    assert abs(letter.at - time.time()) < 60
    assert letters.show(A).header is not None
    assert desk.is_idle(desk.one)


def test_every_death_and_every_try_is_in_the_history(desk: Desk, letters: DeadLetters) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    delayed = desk.keys.delayed_of(desk.one)
    desk.client.execute_command(
        *functions.postpone(desk.one, desk.keys.request(A), delayed, entry, 0, 1, 60_000, "first", "OSError: away")
    )
    desk.client.execute_command(*functions.wake(delayed, desk.one))
    for consumer in ("second", "third", "fourth"):
        desk.fetch(desk.one, consumer)
        desk.reclaim(consumer)

    letter = letters.show(A)

    assert letter.why == "deaths"
    assert [event.replica for event in letter.history] == ["first", "second", "third", "fourth"]
    assert letter.history[-1].what == "its replica died (3)"


def test_a_replay_goes_on_from_the_step_that_failed_under_the_same_id(desk: Desk, letters: DeadLetters) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Join(desk.two, "1", 2, [(1, b"right")])])
    ((entry, _),) = desk.fetch(desk.one)
    end(desk, desk.one, entry, A)

    letters.replay(A)

    assert list(letters.list()) == []
    assert desk.watch(A)[0] == b"o"
    ((entry, fields),) = desk.fetch(desk.one)
    assert fields[b"0"] == b"x"
    desk.commit(desk.one, entry, A, moves=[Join(desk.two, "1", 2, [(0, b"left")])])
    ((entry, fields),) = desk.fetch(desk.two)
    assert (fields[b"0"], fields[b"1"]) == (b"left", b"right")
    desk.commit(desk.two, entry, A, state="d", payload=b"result")
    assert desk.watch(A) == (b"d", b"result")


def test_a_branch_that_ends_after_the_other_one_became_a_dead_letter_is_part_of_the_replay(
    desk: Desk, letters: DeadLetters
) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"y"])])
    ((dead, _),), ((alive, _),) = desk.fetch(desk.one), desk.fetch(desk.two)
    end(desk, desk.one, dead, A)

    assert desk.commit(desk.two, alive, A, moves=[Join(desk.two, "2", 2, [(1, b"right")])]) == b"HELD"

    assert desk.is_idle(desk.two)
    letters.replay(A)
    assert desk.fetch(desk.two) == []  # its effect is not lost, and it is not run again
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, moves=[Join(desk.two, "2", 2, [(0, b"left")])])
    ((_, fields),) = desk.fetch(desk.two)
    assert (fields[b"s"], fields[b"0"], fields[b"1"]) == (b"2", b"left", b"right")


def test_a_branch_that_fails_dies_or_waits_after_the_other_one_became_a_dead_letter_is_run_by_the_replay(
    desk: Desk, letters: DeadLetters
) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), *(Start(desk.two, step, [step.encode()]) for step in "1234")])
    ((dead, _),) = desk.fetch(desk.one)
    one, two, three = (entry for entry, _ in desk.fetch(desk.two)[:3])
    end(desk, desk.one, dead, A)

    assert desk.commit(desk.two, one, A, state="f", payload=b"why") == b"HELD"
    delayed = desk.keys.delayed_of(desk.two)
    request = desk.keys.request(A)
    desk.client.execute_command(*functions.postpone(desk.two, request, delayed, two, 0, 1, 60_000, "replica", "again"))
    assert end(desk, desk.two, three, A) == b"OK"
    desk.reclaim("replica", stream=desk.two)  # the fourth was fetched as well

    assert desk.is_idle(desk.two) and desk.client.zcard(delayed) == 0
    assert len(letters.show(A).others) == 4
    letters.replay(A)
    assert sorted(fields[b"s"] for _, fields in desk.fetch(desk.two)) == [b"1", b"2", b"3", b"4"]


def test_a_result_that_comes_for_a_dead_letter_is_part_of_the_replay(desk: Desk, letters: DeadLetters) -> None:
    desk.submit(B, [Start(desk.two, "0", [b"x"])])
    waits = [Awaited(desk.keys.request(B), desk.two, "1", 2, 1)]
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Join(desk.two, "1", 2, [(0, b"template")])], awaited=waits)
    ((dead, _),), ((entry, _),) = desk.fetch(desk.one), desk.fetch(desk.two)
    end(desk, desk.one, dead, A)

    desk.commit(desk.two, entry, B, state="d", payload=b"result")

    assert desk.is_idle(desk.two)
    letters.replay(A)
    ((_, fields),) = desk.fetch(desk.two)
    assert (fields[b"s"], fields[b"0"], fields[b"1"]) == (b"1", b"template", b"result")


def test_a_replay_runs_on_the_version_that_is_deployed_now(
    desk: Desk, client: redis.Redis, keys: Keys, letters: DeadLetters
) -> None:
    end_first(desk)
    newer = deploy(client, keys, "w").stream(keys, "one")
    client.delete(desk.one)

    letters.replay(A)

    assert len(desk.fetch(newer)) == 1


def test_a_replay_that_cannot_be_is_refused_and_leaves_the_letter(
    desk: Desk, client: redis.Redis, keys: Keys, letters: DeadLetters
) -> None:
    end_first(desk)

    with pytest.raises(DeadLetterError, match="no dead letter"):
        letters.replay(B)
    deploy(client, keys, "w", ("other", "two"))
    with pytest.raises(DeadLetterError, match="no deployment 'one' any more"):
        letters.replay(A)
    Registry(client, keys, SEAL).delete("app")
    with pytest.raises(DeadLetterError, match="deploy it first"):
        letters.replay(A)

    assert letters.ids() == [A]
    assert desk.watch(A) == (b"f", FAILURE)


def test_a_replayed_request_is_no_dead_letter_and_lives_as_long_as_others(desk: Desk, letters: DeadLetters) -> None:
    end_first(desk)

    letters.replay(A)

    assert not desk.client.exists(desk.keys.dead_letters, desk.keys.dead_letter(A))
    assert 0 < desk.client.pttl(desk.keys.request(A)) < 48 * 3_600_000


def test_a_letter_is_replayed_once(desk: Desk, letters: DeadLetters) -> None:
    end_first(desk)
    letters.replay(A)

    with pytest.raises(DeadLetterError, match="no dead letter"):
        letters.replay(A)

    assert len(desk.fetch(desk.one)) == 1


def test_becoming_a_dead_letter_twice_or_after_a_commit_changes_nothing(desk: Desk, letters: DeadLetters) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, state="d", payload=b"result")

    assert end(desk, desk.one, entry, A) == b"STALE"
    assert desk.watch(A) == (b"d", b"result")
    assert len(letters.ids()) == 0


def test_a_call_of_a_request_that_was_cancelled_is_no_dead_letter(desk: Desk, letters: DeadLetters) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.client.execute_command(*functions.close(desk.keys.request(A), A, "c", b""))

    end(desk, desk.one, entry, A)

    assert len(letters.ids()) == 0
    assert desk.watch(A) == (b"c", b"")


def test_a_message_that_cannot_be_read_is_kept_and_cannot_be_replayed(desk: Desk, letters: DeadLetters) -> None:
    desk.client.xadd(desk.one, {"junk": b"\xff"})
    ((entry, _),) = desk.fetch(desk.one)
    sealed = seal_end(SEAL, "", "f", Failure("", "PayloadError", "it cannot be read").encode())  # for nobody's request
    command = functions.dead_letter(
        desk.one, desk.keys.request("?"), entry, "?", "unreadable", sealed, "replica", "what", is_known=False
    )
    desk.client.execute_command(*command)

    (made_up,) = letters.ids()
    letter = letters.show(made_up)
    assert letter.header is None
    assert letter.failure is not None and letter.failure.message == "it cannot be read"
    with pytest.raises(DeadLetterError, match="cannot be read"):
        letters.replay(made_up)
    assert letters.purge([made_up]) == 1
    assert letters.ids() == []


def test_a_message_that_kills_its_readers_and_cannot_be_read_is_kept_as_well(desk: Desk, letters: DeadLetters) -> None:
    desk.client.xadd(desk.one, {"h": b"no header", "s": "0"})
    for consumer in ("first", "second", "third"):
        assert len(desk.fetch(desk.one, consumer)) == 1
        desk.reclaim(consumer)

    assert [letter.why for letter in letters.list()] == ["deaths"]
    assert desk.is_idle(desk.one)


def test_letters_live_for_seven_days_and_the_oldest_of_too_many_goes(
    desk: Desk, keys: Keys, letters: DeadLetters
) -> None:
    week_ms = 7 * 24 * 3600 * 1000
    old = {f"{number:032x}": number for number in range(10_000)}
    desk.client.zadd(keys.dead_letters, {name: time.time() * 1000 - 1000 - number for name, number in old.items()})
    desk.client.zadd(keys.dead_letters, {"f" * 32: time.time() * 1000 - week_ms - 1})
    desk.client.pexpire(keys.dead_letters, week_ms)
    desk.client.hset(keys.dead_letter(f"{9_999:032x}"), "!n", 1)
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)

    end(desk, desk.one, entry, A)

    assert len(letters.ids()) == 10_000
    assert letters.dropped() == 1
    assert not desk.client.exists(keys.dead_letter(f"{9_999:032x}"))
    assert week_ms - 60_000 < desk.client.pttl(keys.dead_letter(A)) <= week_ms


@pytest.fixture
def room(desk: Desk) -> Iterator[int]:
    """How many bytes dead letters may take."""
    desk.client.config_set("maxmemory", 64 << 20)
    yield 8 << 20
    desk.client.config_set("maxmemory", 0)
    for key in desk.client.scan_iter(desk.keys.dead_letter("*"), count=1000):
        desk.client.delete(key)


@pytest.mark.slow
def test_letters_take_an_eighth_of_the_brokers_memory_and_the_oldest_go(
    desk: Desk, letters: DeadLetters, room: int
) -> None:
    piece = b"x" * (1 << 20)
    made = [f"{number:032x}" for number in range(1, 31)]

    def make(request_id: str) -> None:
        # one more value is in a join, and one comes when the request is a dead letter
        branches = [Start(desk.one, "0", [piece]), Start(desk.one, "1", [b"x"]), Join(desk.two, "2", 4, [(0, piece)])]
        desk.submit(request_id, branches)
        (failing, _), (other, _) = desk.fetch(desk.one)
        end(desk, desk.one, failing, request_id)
        desk.commit(desk.one, other, request_id, moves=[Join(desk.two, "2", 4, [(1, piece)])])
        desk.client.delete(desk.keys.request(request_id))

    def kept() -> list[str]:
        found = letters.ids()
        assert sum(desk.client.memory_usage(desk.keys.dead_letter(one), 0) for one in found) < room + 2 * len(piece)
        return found

    for request_id in made[:20]:
        make(request_id)
        assert kept()[0] == request_id
    assert kept() == [made[19], made[18]]
    assert letters.dropped() == 18

    letters.replay(made[19])
    desk.fetch(desk.one)
    assert letters.purge(made[:19]) == 1
    for request_id in made[20:22]:
        make(request_id)
    assert kept() == [made[21], made[20]]
    assert letters.purge(made) == 2
    desk.client.config_set("maxmemory", 0)
    for request_id in made[22:]:
        make(request_id)
    assert len(letters.ids()) == 8


def test_any_number_of_letters_is_thrown_away_at_once(desk: Desk, letters: DeadLetters) -> None:
    end_first(desk)
    more = [f"{number:032x}" for number in range(9_000)]

    assert letters.purge([*more, A]) == 1

    assert letters.ids() == []


def test_the_header_of_a_replay_has_a_new_deadline(desk: Desk, letters: DeadLetters) -> None:
    end_first(desk)
    assert open_header(SEAL, header_of(A)).deadline_ms == 0

    letters.replay(A)

    ((_, fields),) = desk.fetch(desk.one)
    assert open_header(SEAL, fields[b"h"]).deadline_ms > time.time() * 1000
