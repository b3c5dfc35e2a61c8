"""Values that are stored beside the messages: each is there as long as something holds it, and no longer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import redis
from desk import A, B, Desk

from qserve.base.keys import DEAD_LETTER_TTL_MS, LETTER_BYTES, MAILBOX_TTL_MS, VALUE
from qserve.broker import functions
from qserve.wire.moves import Awaited, Join, Start
from qserve.wire.outcome import HOLDERS, State
from qserve.wire.sealing import NOT_KEPT

V, W = "1" * 32, "2" * 32
GIVEN, MADE = {V: 1}, {W: 1}
PIECE = b"p" * (1 << 20)


def held(desk: Desk) -> dict[str, int]:
    """The stored values, each with the number of those that hold it."""
    names = desk.client.scan_iter(desk.keys._name(VALUE, "*"), count=1000)
    found: dict[bytes, Any] = {name: desk.client.hget(name, HOLDERS) for name in names}
    return {name.decode().rpartition(":")[2]: int(count) for name, count in found.items()}


def life_ms(desk: Desk, name: str) -> int:
    return int(desk.client.pttl(desk.keys.value(name)))


def store(desk: Desk, name: str, pieces: int = 1) -> None:
    """Store a value in the broker, as who sends it does before that."""
    desk.client.hset(desk.keys.value(name), mapping={str(number): PIECE for number in range(pieces)})
    desk.client.pexpire(desk.keys.value(name), 60_000)


def begin(desk: Desk, request_id: str = A, values: Mapping[str, int] = GIVEN, **options: Any) -> bytes:
    """Submit a request with a stored value, and return its call's entry, which runs."""
    assert desk.submit(request_id, [Start(desk.one, "0", [b"claim"])], values=values, **options) == b"OK"
    ((entry, _),) = desk.fetch(desk.one)
    return entry


def end(desk: Desk, entry: bytes, request_id: str = A, values: Mapping[str, int] = MADE, **options: Any) -> Any:
    return desk.commit(desk.one, entry, request_id, state="d", payload=b"claim", values=values, **options)


def run(desk: Desk, command: Any) -> Any:
    return desk.client.execute_command(*command)


def forget(desk: Desk, *request_ids: str) -> Any:
    return run(desk, functions.forget([desk.keys.request(one) for one in request_ids]))


def test_a_value_is_there_until_the_last_step_that_takes_it_has_ended(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"claim"]), Start(desk.one, "1", [b"claim"])], values={V: 2})
    (first, _), (second, _) = desk.fetch(desk.one)

    assert held(desk) == {V: 1}
    assert desk.commit(desk.one, first, A, moves=[Join(desk.two, "2", 2, [(0, b"x")])], values={V: -1}) == b"OK"
    assert held(desk) == {V: 1}
    moves = [Join(desk.two, "2", 2, [(1, b"x")])]
    assert desk.commit(desk.one, second, A, moves=moves, values={W: 1, V: -1}) == [b"OK", V.encode()]
    assert held(desk) == {W: 1}


def test_its_parts_in_the_broker_go_with_the_last_holder(desk: Desk) -> None:
    store(desk, V)
    store(desk, W)
    entry = begin(desk)

    assert end(desk, entry) == [b"OK", V.encode()]
    assert held(desk) == {W: 1}
    assert desk.client.hget(desk.keys.value(W), "0") == PIECE
    assert forget(desk, A) == [b"OK", W.encode()]
    assert held(desk) == {}


def test_a_value_lives_as_long_as_the_longest_lived_of_its_holders(desk: Desk) -> None:
    store(desk, V)
    begin(desk, ttl_ms=120_000)
    assert life_ms(desk, V) > 100_000

    begin(desk, B, ttl_ms=90_000)
    assert life_ms(desk, V) > 100_000
    assert held(desk) == {V: 2}


def test_a_result_is_held_for_as_long_as_it_is_kept(desk: Desk) -> None:
    store(desk, W)
    end(desk, begin(desk, keep_ms=10_000))

    assert 0 < life_ms(desk, W) <= 10_000
    assert held(desk) == {W: 1}


def test_a_result_that_is_only_sent_is_held_until_its_reader_has_read_it(desk: Desk) -> None:
    end(desk, begin(desk, keep_ms=0))

    assert 60_000 < life_ms(desk, W) <= MAILBOX_TTL_MS
    assert 60_000 < desk.client.pttl(desk.keys.request(A)) <= MAILBOX_TTL_MS
    assert forget(desk, A) == [b"OK", W.encode()]
    assert held(desk) == {}


def test_a_result_that_nobody_wants_is_gone_at_once(desk: Desk) -> None:
    entry = begin(desk)
    forget(desk, A)

    assert sorted(end(desk, entry)) == [V.encode(), W.encode(), b"OK"]
    assert held(desk) == {}
    assert desk.watch(A) == (b"", b"")


def test_a_result_that_its_caller_has_dropped_is_kept_for_others_that_wait(desk: Desk) -> None:
    entry = begin(desk)
    desk.watch(A, desk.keys.mailbox("you"))
    forget(desk, A)

    end(desk, entry)

    assert held(desk) == {W: 1}


@pytest.mark.parametrize("is_done", [True, False])
def test_a_request_that_takes_a_result_holds_its_value(desk: Desk, is_done: bool) -> None:
    entry = begin(desk)
    if is_done:
        end(desk, entry)
    waits = [Awaited(desk.keys.request(A), desk.two, "m", 2, 1)]
    desk.submit(B, [Join(desk.two, "m", 2, [(0, b"template")])], awaited=waits)
    if not is_done:
        end(desk, entry)

    assert held(desk) == {W: 2}
    forget(desk, A)
    assert held(desk) == {W: 1}
    ((entry, _),) = desk.fetch(desk.two)
    assert desk.commit(desk.two, entry, B, state="d", payload=b"small") == [b"OK", W.encode()]


def test_a_value_that_goes_to_two_slots_is_held_until_both_are_used(desk: Desk) -> None:
    end(desk, begin(desk))
    waits = [Awaited(desk.keys.request(A), desk.two, step, 2, 1) for step in ("m", "n")]
    desk.submit(B, [Join(desk.two, step, 2, [(0, b"x")]) for step in ("m", "n")], awaited=waits)
    forget(desk, A)
    (first, _), (second, _) = desk.fetch(desk.two)

    assert desk.commit(desk.two, first, B, moves=[], values={W: -1}) == b"OK"
    assert held(desk) == {W: 1}
    assert desk.commit(desk.two, second, B, moves=[], values={W: -1}) == [b"OK", W.encode()]


@pytest.mark.parametrize("state", ["c", "x"])
def test_the_end_of_a_request_takes_what_it_held(desk: Desk, state: str) -> None:
    begin(desk)
    run(desk, functions.close(desk.keys.request(A), A, state, b""))

    assert held(desk) == {}


def test_a_commit_without_effects_holds_nothing(desk: Desk) -> None:
    entry = begin(desk)
    run(desk, functions.close(desk.keys.request(A), A, "c", b""))

    assert end(desk, entry) == b"CLOSED"
    assert held(desk) == {}


def test_a_commit_that_comes_twice_counts_once(desk: Desk) -> None:
    entry = begin(desk)
    moves = [Start(desk.two, "1", [b"claim"])]

    assert desk.commit(desk.one, entry, A, moves=moves, values={W: 1}, step="0") == b"OK"
    assert desk.commit(desk.one, entry, A, moves=moves, values={W: 1}, step="0") == b"DUP"
    assert held(desk) == {V: 1, W: 1}
    run(desk, functions.close(desk.keys.request(A), A, "c", b""))
    assert held(desk) == {}


def test_what_is_refused_holds_nothing_and_leaves_nothing(desk: Desk) -> None:
    store(desk, V)
    begin(desk)
    lost = [Awaited(desk.keys.request("9" * 32), desk.two, "2", 2, 0)]

    assert desk.submit(A, [Start(desk.one, "0", [b"x"])], values={V: 1}) == b"DUP"  # sent again
    for options, reply in (
        ({"limits": {desk.one: 0}}, [b"FULL", 1]),
        ({"awaited": lost}, b"LOST"),
        ({"request_id": A, "fingerprint": "other"}, b"MISMATCH"),
    ):
        store(desk, W)
        found = desk.submit(**{"request_id": B, "moves": [Start(desk.one, "0", [b"x"])], "values": {W: 1}, **options})
        assert found[:1] == reply[:1]
        assert held(desk) == {V: 1}


def fail(desk: Desk, entry: bytes, request_id: str = A) -> None:
    assert desk.dead_letter(desk.one, entry, request_id, "retries", b"why") == b"OK"


def test_a_dead_letter_holds_the_values_that_a_replay_takes(desk: Desk) -> None:
    fail(desk, begin(desk))

    assert held(desk) == {V: 1}
    assert life_ms(desk, V) > DEAD_LETTER_TTL_MS - 60_000
    request, letter = desk.keys.request(A), desk.keys.dead_letter(A)
    assert run(desk, functions.replay(letter, request, A, b"h" * 32, 2 * DEAD_LETTER_TTL_MS, 60_000, {})) == b"OK"
    assert held(desk) == {V: 1}
    assert life_ms(desk, V) > DEAD_LETTER_TTL_MS
    ((entry, _),) = desk.fetch(desk.one)
    assert end(desk, entry) == [b"OK", V.encode()]


def test_a_branch_that_ends_for_a_dead_letter_leaves_its_values_there(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"claim"]), Start(desk.two, "5", [b"x"])], values={V: 1})
    ((entry, _),), ((other, _),) = desk.fetch(desk.one), desk.fetch(desk.two)
    assert desk.dead_letter(desk.two, other, A, "retries", b"why") == b"OK"

    assert desk.commit(desk.one, entry, A, moves=[Start(desk.two, "1", [b"claim"])], values={W: 1, V: -1})[0] == b"HELD"

    assert held(desk) == {W: 1}


def test_a_result_that_a_dead_letter_waits_for_is_held_by_it(desk: Desk) -> None:
    entry = begin(desk)
    waits = [Awaited(desk.keys.request(A), desk.two, "m", 2, 1)]
    desk.submit(B, [Start(desk.one, "0", [b"x"]), Join(desk.two, "m", 2, [(0, b"x")])], awaited=waits)
    ((other, _),) = desk.fetch(desk.one)
    fail(desk, other, B)

    end(desk, entry)

    assert held(desk) == {W: 2}


def test_a_dead_letter_that_is_thrown_away_takes_its_values_along(desk: Desk) -> None:
    fail(desk, begin(desk))

    run(desk, functions.purge(desk.keys.dead_letters, [desk.keys.dead_letter(A)], [A]))

    assert held(desk) == {}


def test_a_dead_letter_that_is_too_old_takes_its_values_along(desk: Desk) -> None:
    fail(desk, begin(desk))
    desk.client.zadd(desk.keys.dead_letters, {A: 1})

    fail(desk, begin(desk, B, {W: 1}), B)

    assert held(desk) == {W: 1}


def test_the_values_of_a_dead_letter_count_as_its_bytes(desk: Desk) -> None:
    store(desk, V, 3)
    fail(desk, begin(desk))

    bytes_of: Any = desk.client.hget(f"{desk.keys.dead_letters}:{LETTER_BYTES}", A)
    assert int(bytes_of) > 3 * len(PIECE)


@pytest.fixture
def room(desk: Desk) -> Iterator[None]:
    """Results that are left may take 48 MiB of the broker, beside what other tests have left there."""
    desk.client.config_set("maxmemory", 96 * len(PIECE))
    yield
    desk.client.config_set("maxmemory", 0)


def test_a_result_that_finds_no_room_is_held_for_its_caller_only(desk: Desk, room: None) -> None:
    store(desk, W, 21)
    end(desk, begin(desk, is_left=True, keep_ms=300_000))
    assert desk.watch(A)[0] == b"d"
    forget(desk, A)
    store(desk, W, 30)

    end(desk, begin(desk, B, is_left=True, keep_ms=300_000), B)

    assert desk.watch(B) == (b"f", NOT_KEPT)
    assert desk.mail()[-1] == f"{B}dclaim".encode()
    assert 0 < life_ms(desk, W) <= MAILBOX_TTL_MS
    forget(desk, B)
    assert held(desk) == {}


def emit(desk: Desk, number: int, value: str = V) -> Any:
    return run(desk, functions.emit(desk.keys.request(A), A, number, [b"claim"], value))


def test_the_value_of_an_item_is_held_until_its_reader_has_read_it(desk: Desk) -> None:
    entry = begin(desk, values={})
    store(desk, W)
    assert emit(desk, 0) == emit(desk, 0, W) == 1  # the second comes again, from another try

    assert held(desk) == {V: 1}
    assert life_ms(desk, V) > 100_000
    end(desk, entry, values={})
    assert held(desk) == {V: 1}
    assert run(desk, functions.release([desk.keys.value(V)])) == [b"OK", V.encode()]
    assert held(desk) == {}


@pytest.mark.parametrize(("state", "left"), [(State.CANCELLED, {}), (State.EXPIRED, {}), (State.DONE, {W: 1})])
def test_the_values_of_items_that_are_not_read_yet_go_with_a_stream_that_is_stopped(
    desk: Desk, state: State, left: dict[str, int]
) -> None:
    entry = begin(desk, values={})
    emit(desk, 0)
    emit(desk, 1, W)
    run(desk, functions.release([desk.keys.value(V)]))

    if state is State.DONE:
        end(desk, entry, values={})
    else:
        run(desk, functions.close(desk.keys.request(A), A, state.value, b""))

    assert held(desk) == left


def test_only_the_last_items_of_a_long_stream_are_noted(desk: Desk) -> None:
    begin(desk, values={})
    for number in range(70):
        emit(desk, number, f"{number:032}")

    run(desk, functions.close(desk.keys.request(A), A, "c", b""))

    assert held(desk) == {f"{number:032}": 1 for number in range(6)}


def test_an_item_that_nobody_reads_holds_nothing(desk: Desk) -> None:
    store(desk, V)
    entry = begin(desk, values={}, mailbox="")
    emit(desk, 0)
    assert held(desk) == {}

    store(desk, V)
    end(desk, entry, values={})
    assert emit(desk, 1) == -1
    assert held(desk) == {}


def test_a_value_whose_record_was_overwritten_does_not_keep_a_request_from_its_end(
    desk: Desk, client: redis.Redis
) -> None:
    entry = begin(desk)
    client.set(desk.keys.value(V), "something else", ex=60)

    assert end(desk, entry) == b"OK"
    assert desk.watch(A)[0] == b"d"
    client.hset(desk.keys.request(A), b"y", b"\xc1 is not msgpack")
    assert forget(desk, A) == b"OK"
