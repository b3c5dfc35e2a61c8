"""A copy of an entry, added by somebody who may write to the broker and has no key, starts and ends nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from desk import A, B, Desk, header_of

from qserve.base.keys import GROUP
from qserve.broker import functions
from qserve.wire.moves import Join, Start
from qserve.wire.sealing import LOST


def call(desk: Desk, command: Any) -> Any:
    return desk.client.execute_command(*command)


def copied(desk: Desk, stream: str = "") -> tuple[bytes, bytes]:
    """A call that runs, and a copy of it that another replica has read."""
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Join(desk.two, "1", 2, [(1, b"right")])])
    ((entry, fields),) = desk.fetch(desk.one)
    return entry, copy_of(desk, fields, stream or desk.one)


def copy_of(desk: Desk, fields: dict[bytes, bytes], stream: str) -> bytes:
    desk.client.xadd(stream, fields)  # type: ignore[arg-type]
    ((entry, _),) = desk.fetch(stream, "other")
    return entry


def postpone(desk: Desk, entry: bytes) -> bytes:
    delayed = desk.keys.delayed_of(desk.one)
    return call(
        desk, functions.postpone(desk.one, desk.keys.request(A), delayed, entry, 0, 1, 60_000, "other", "it failed")
    )


def reclaim(desk: Desk, entry: bytes, limit: int) -> Any:
    return call(desk, functions.reclaim(desk.one, desk.one, "other", limit, LOST, desk.keys.request("")))


ENDS: dict[str, Callable[[Desk, bytes], Any]] = {
    "it goes on": lambda desk, copy: desk.commit(desk.one, copy, A, moves=[Start(desk.two, "2", [b"z"])]),
    "it ends its request": lambda desk, copy: desk.commit(desk.one, copy, A, state="d", payload=b"result"),
    "it fails": lambda desk, copy: desk.commit(desk.one, copy, A, state="f", payload=b"why"),
    "it is tried again": postpone,
    "it is a dead letter": lambda desk, copy: desk.dead_letter(desk.one, copy, A, "retries", b"why"),
    "it is given back": lambda desk, copy: desk.give_back(desk.one, copy),
    "its replica died": lambda desk, copy: reclaim(desk, copy, 3),
    "its replica died again and again": lambda desk, copy: reclaim(desk, copy, 1),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_however_a_copy_ends_its_request_goes_on_as_if_there_were_none(
    desk: Desk, end: Callable[[Desk, bytes], Any]
) -> None:
    entry, copy = copied(desk)

    assert end(desk, copy) in (b"STALE", 1)

    assert [one for one, _ in desk.client.xrange(desk.one)] == [entry]
    assert desk.client.xpending(desk.one, GROUP)["pending"] == 1
    assert desk.client.xlen(desk.two) == desk.client.zcard(desk.keys.delayed_of(desk.one)) == 0
    assert desk.commit(desk.one, entry, A, moves=[Join(desk.two, "1", 2, [(0, b"left")])]) == b"OK"
    assert [fields[b"0"] for _, fields in desk.fetch(desk.two)] == [b"left"]
    assert desk.watch(A) == (b"o", b"")


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_copy_of_a_step_that_has_ended_starts_nothing_a_second_time(
    desk: Desk, end: Callable[[Desk, bytes], Any]
) -> None:
    entry, copy = copied(desk)
    desk.commit(desk.one, entry, A, moves=[Join(desk.two, "1", 2, [(0, b"left")])])

    end(desk, copy)

    assert desk.is_idle(desk.one)
    assert desk.client.xlen(desk.two) == 1
    assert desk.watch(A) == (b"o", b"")


def test_an_entry_that_is_made_again_under_its_own_id_ends_no_second_time(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, fields),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, moves=[Start(desk.two, "1", [b"y"])])
    desk.client.delete(desk.one)
    desk.client.xadd(desk.one, fields, id=entry)  # type: ignore[arg-type]
    desk.client.xgroup_create(desk.one, GROUP, "0")
    desk.fetch(desk.one)

    assert desk.commit(desk.one, entry, A, attempt="another", moves=[Start(desk.two, "1", [b"y"])]) == b"STALE"

    assert desk.client.xlen(desk.two) == 1


def test_a_copy_of_a_branch_adds_nothing_to_a_dead_letter(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"x"])])
    ((entry, fields),), ((failed, _),) = desk.fetch(desk.one), desk.fetch(desk.two)
    first, second = copy_of(desk, fields, desk.one), copy_of(desk, fields, desk.one)
    desk.dead_letter(desk.two, failed, A, "retries", b"why")
    moves = [Start(desk.two, "2", [b"y"])]

    assert desk.commit(desk.one, first, A, moves=moves) == b"STALE"
    assert desk.commit(desk.one, entry, A, moves=moves) == b"HELD"
    assert desk.commit(desk.one, second, A, moves=moves) == b"STALE"

    assert desk.client.hget(desk.keys.dead_letter(A), "!n") == b"2"


def test_an_entry_of_a_dead_letters_branch_that_is_made_again_adds_nothing_to_it(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"x"])])
    ((entry, fields),), ((failed, _),) = desk.fetch(desk.one), desk.fetch(desk.two)
    desk.dead_letter(desk.two, failed, A, "retries", b"why")
    moves = [Start(desk.two, "2", [b"y"])]
    assert desk.commit(desk.one, entry, A, moves=moves) == b"HELD"
    desk.client.delete(desk.one)
    desk.client.xadd(desk.one, fields, id=entry)  # type: ignore[arg-type]

    assert desk.commit(desk.one, entry, A, attempt="another", moves=moves) == b"STALE"

    assert desk.client.hget(desk.keys.dead_letter(A), "!n") == b"2"


def test_a_postponed_call_that_is_put_back_comes_back_once(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    postpone(desk, entry)
    delayed = desk.keys.delayed_of(desk.one)
    (member,) = desk.client.zrange(delayed, 0, -1)

    for _ in range(3):
        desk.client.zadd(delayed, {member: 1})
        desk.client.pexpire(delayed, 60_000)
        call(desk, functions.wake(delayed, desk.one))
    ((again, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, again, A, moves=[Start(desk.two, "1", [b"y"])])
    desk.client.zadd(delayed, {member: 1})
    call(desk, functions.wake(delayed, desk.one))

    assert desk.is_idle(desk.one)


def test_a_call_that_an_older_version_has_postponed_comes_back(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    postpone(desk, entry)
    desk.client.hset(desk.keys.request(A), "e:0", f"{desk.one} {entry.decode()}")  # it left that as it was

    call(desk, functions.wake(desk.keys.delayed_of(desk.one), desk.one))

    assert len(desk.fetch(desk.one)) == 1


def test_a_copy_on_a_queue_that_is_deleted_does_not_fail_its_request(desk: Desk) -> None:
    old = desk.keys.stream("app", "older", "one")
    desk.client.xgroup_create(old, GROUP, mkstream=True)
    copied(desk, old)

    assert call(desk, functions.retire([old], True, b"deleted", desk.keys.request(""))) == 1

    assert desk.watch(A) == (b"o", b"")


def strays(desk: Desk, consumer: str, after: bytes = b"0-0") -> list[bytes]:
    found = call(desk, functions.strays([desk.one], consumer, desk.keys.request(""), [after]))
    assert {stream.decode() for stream, _ in found} <= {desk.one}
    return [entry for _, entry in found]


def test_a_replica_learns_which_of_the_entries_that_it_has_read_are_copies(desk: Desk) -> None:
    entry, copy = copied(desk)
    unreadable = copy_of(desk, {b"h": b"\xc1"}, desk.one)

    assert strays(desk, "replica") == []
    assert strays(desk, "other") == [copy]
    assert strays(desk, "other", after=copy) == []
    desk.commit(desk.one, entry, A, state="d", payload=b"result")
    assert strays(desk, "other") == [copy]
    assert unreadable not in strays(desk, "other")


def test_what_is_handed_over_given_back_or_woken_is_no_copy(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    desk.fetch(desk.one, "dead")
    desk.reclaim("dead")
    assert strays(desk, "dead") == []
    for move in (lambda entry: desk.give_back(desk.one, entry), lambda entry: postpone(desk, entry)):
        ((entry, _),) = desk.fetch(desk.one)
        assert strays(desk, "replica") == []
        move(entry)
    call(desk, functions.wake(desk.keys.delayed_of(desk.one), desk.one))
    ((entry, _),) = desk.fetch(desk.one)
    assert strays(desk, "replica") == []
    desk.dead_letter(desk.one, entry, A, "retries", b"why")
    letter, request = desk.keys.dead_letter(A), desk.keys.request(A)
    call(desk, functions.replay(letter, request, A, header_of(A), 60_000, 60_000, {}))
    ((entry, _),) = desk.fetch(desk.one)
    assert strays(desk, "replica") == []


def test_a_branch_of_a_dead_letter_is_no_copy(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"x"])])
    ((_, fields),), ((failed, _),) = desk.fetch(desk.one), desk.fetch(desk.two)
    desk.dead_letter(desk.two, failed, A, "retries", b"why")

    assert strays(desk, "replica") == []
    assert strays(desk, "other") == []
    copy = copy_of(desk, fields, desk.one)
    assert strays(desk, "other") == [copy]


def test_calls_that_run_are_wanted_until_their_request_ends_or_another_entry_stands_for_their_step(desk: Desk) -> None:
    def unwanted(*entries: bytes) -> list[bytes]:
        requests, steps = [desk.keys.request(A)] * len(entries), ["0"] * len(entries)
        return call(desk, functions.unwanted(requests, steps, [f"{desk.one} {entry.decode()}" for entry in entries]))

    entry, copy = copied(desk)
    assert unwanted(entry, copy) == [b"", b"o"]
    desk.reclaim("replica")
    ((again, _),) = desk.fetch(desk.one)
    assert unwanted(entry, again) == [b"o", b""]
    call(desk, functions.close(desk.keys.request(A), A, "c", b"end"))
    requests = [desk.keys.request(name) for name in (A, "0" * 32)]
    assert call(desk, functions.unwanted(requests, ["0", "0"], ["?", "?"])) == [b"c", b"?"]

    desk.submit(B, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"x"])])
    ((entry, _),), ((failed, _),) = desk.fetch(desk.one), desk.fetch(desk.two)
    desk.dead_letter(desk.two, failed, B, "retries", b"why")
    place = [f"{desk.one} {entry.decode()}"]  # what it causes is kept for the replay
    assert call(desk, functions.unwanted([desk.keys.request(B)], ["0"], place)) == [b""]
    desk.client.set(desk.keys.request(A), "something else", px=1000)
    assert unwanted(again) == [b"?"]
