"""The functions in the broker: each is one act, and happens once."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import hypothesis
import pytest
from desk import SEAL, A, B, Desk, header_of
from hypothesis import given
from hypothesis import strategies as st
from processes import wait_until

from qserve.base.keys import CLOCK_MARGIN_MS, EVENTS_KEPT, GROUP, LEFT, TRACE_BYTES, TRACES_KEPT, TRACES_TTL_MS
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.connection import connect, create_group
from qserve.broker.functions import HELD_BACK, LEFT_PARTS
from qserve.broker.load import QueueLoad, loads_of
from qserve.exceptions import ResultUnavailable
from qserve.wire.envelope import Header
from qserve.wire.failure import Failure
from qserve.wire.moves import Awaited, Epoch, Join, Start
from qserve.wire.outcome import ANNOUNCED, ANNOUNCED_FROM, SESSION, Field, Outcome
from qserve.wire.replies import backlogs, ends, observed, peeked, places
from qserve.wire.sealing import INHERITED_LIMIT, NOT_KEPT, open_end, seal_end, seal_header


def test_a_submitted_request_is_on_its_queue_with_header_step_and_values(desk: Desk) -> None:
    assert desk.submit(A, [Start(desk.one, "0", [b"x", b"y"])]) == b"OK"

    ((_, fields),) = desk.fetch(desk.one)

    assert fields[b"s"] == b"0"
    assert (fields[b"0"], fields[b"1"]) == (b"x", b"y")
    assert fields[b"h"].startswith(A.encode())


PIECE = 1 << 20


@pytest.fixture
def pieces(desk: Desk) -> Iterator[int]:
    """How many results of a mebibyte are a quarter of the memory that the broker may use, which is not full."""
    desk.client.config_set("maxmemory", 64 * PIECE)
    yield 16
    desk.client.config_set("maxmemory", 0)
    for key in desk.client.scan_iter(desk.keys.request("*"), count=1000):
        desk.client.delete(key)


def ids(count: int = 1000) -> Iterator[str]:
    return (os.urandom(16).hex() for _ in range(count))


def submit_all(desk: Desk, request_ids: Iterable[str], **options: Any) -> list[bytes]:
    return [desk.submit(one, [Start(desk.one, "0", [b"x"])], **{"is_left": True, **options}) for one in request_ids]


def end_all(desk: Desk, request_ids: Iterable[str], size: int = PIECE) -> list[bytes]:
    """End requests with results of this size, and return what is kept of each."""
    kept = []
    for one in request_ids:
        (((entry, _),),) = [desk.client.xreadgroup(GROUP, "replica", {desk.one: ">"}, count=1)[0][1]]
        assert desk.commit(desk.one, entry, one, state="d", payload=b"r" * size) == b"OK"
        assert desk.mail() == [f"{one}d".encode() + b"r" * size]  # a caller that waits gets it in any case
        desk.client.delete(desk.mailbox)
        kept.append(b"".join(desk.watch(one)))
    return kept


def test_results_that_are_left_take_a_quarter_of_the_memory_before_no_more_are_begun(desk: Desk, pieces: int) -> None:
    begun = list(ids(pieces + 1))
    submit_all(desk, begun)
    end_all(desk, begun)

    after = list(ids(5))
    assert submit_all(desk, after) == [b"CROWDED"] * 5
    assert [desk.watch(one) for one in after] == [(b"", b"")] * 5
    assert submit_all(desk, ids(1), is_left=False) == [b"OK"]  # somebody waits for this one
    assert submit_all(desk, begun[:1]) == [b"DUP"]
    desk.client.config_set("maxmemory", 0)
    assert submit_all(desk, after) == [b"OK"] * 5


@pytest.mark.slow
def test_a_result_that_finds_no_room_is_delivered_and_not_left(desk: Desk, pieces: int) -> None:
    begun, small, waited_for = list(ids(2 * pieces + 1)), list(ids(1)), list(ids(1))
    submit_all(desk, begun + small)
    submit_all(desk, waited_for, is_left=False)

    *kept, last = end_all(desk, begun)

    assert [one[:1] for one in kept] == [b"d"] * 2 * pieces
    assert last == b"f" + NOT_KEPT
    assert end_all(desk, small, 4000)[0][:1] == b"d"
    assert end_all(desk, waited_for)[0][:1] == b"d"
    failure = Failure.decode(open_end(SEAL, begun[-1], Outcome("f", NOT_KEPT)).payload)
    assert isinstance(failure.to_exception(), ResultUnavailable)


def test_what_has_expired_makes_room_again(desk: Desk, pieces: int) -> None:
    begun = list(ids(pieces + 1))
    submit_all(desk, begun)
    end_all(desk, begun)
    assert submit_all(desk, ids(1)) == [b"CROWDED"]

    for part in list(desk.client.scan_iter(desk.keys._name(LEFT, "*"), count=1000)):
        assert 0 < desk.client.pttl(part) <= 60_000 + 60_000 / LEFT_PARTS
        desk.client.pexpire(part, 1)
    wait_until(lambda: submit_all(desk, ids(1)) == [b"OK"], description="room")


def test_submitting_again_after_a_lost_reply_adds_nothing(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])

    assert desk.submit(A, [Start(desk.one, "0", [b"x"])]) == b"DUP"
    assert desk.client.xlen(desk.one) == 1


def test_a_full_queue_refuses_and_keeps_nothing(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])

    assert desk.submit(B, [Start(desk.one, "0", [b"x"])], limits={desk.one: 1}) == [b"FULL", 1]
    assert desk.watch(B) == (b"", b"")
    assert desk.client.xlen(desk.one) == 1


def test_what_runs_does_not_count_as_waiting(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    desk.fetch(desk.one)

    assert desk.submit(B, [Start(desk.one, "0", [b"x"])], limits={desk.one: 1}) == b"OK"


def test_what_runs_for_a_request_that_was_cancelled_makes_room_for_no_other(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.client.execute_command(*functions.close(desk.keys.request(A), A, "c", b""))
    desk.submit(B, [Start(desk.one, "0", [b"x"])])

    assert desk.submit("c" * 32, [Start(desk.one, "0", [b"x"])], limits={desk.one: 1}) == [b"FULL", 1]
    assert desk.commit(desk.one, entry, A, state="d", payload=b"late") == b"CLOSED"


def test_a_commit_with_moves_starts_the_next_step(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)

    assert desk.commit(desk.one, entry, A, moves=[Start(desk.two, "1", [b"z"])]) == b"OK"

    assert desk.is_idle(desk.one)
    ((_, fields),) = desk.fetch(desk.two)
    assert (fields[b"s"], fields[b"0"]) == (b"1", b"z")


def test_a_submission_to_queues_that_are_gone_keeps_nothing(desk: Desk) -> None:
    desk.client.delete(desk.two)

    assert desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"x"])]) == b"MOVED"
    assert desk.watch(A) == (b"", b"")
    assert desk.client.xlen(desk.one) == 0


def test_what_was_meant_for_lost_data_is_refused_and_changes_nothing(desk: Desk) -> None:
    earlier = Epoch(desk.keys.epoch, "0")
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)

    assert desk.submit(B, [Start(desk.one, "0", [b"x"])], epoch=earlier) == b"EPOCH 1"
    assert desk.commit(desk.one, entry, A, state="d", payload=b"result", epoch=earlier) == b"EPOCH 1"

    assert (desk.watch(A), desk.watch(B)) == ((b"o", b""), (b"", b""))
    assert desk.commit(desk.one, entry, A, state="d", payload=b"result") == b"OK"


def test_a_commit_to_a_key_that_is_no_queue_changes_nothing(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.client.delete(desk.two)
    desk.client.set(desk.two, "something else")

    assert desk.commit(desk.one, entry, A, moves=[Start(desk.two, "1", [b"z"])]) == b"BADKEY"

    assert desk.client.xpending(desk.one, GROUP)["pending"] == 1
    desk.client.delete(desk.two)


def test_a_final_commit_stores_the_result_and_tells_the_mailbox(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)

    desk.commit(desk.one, entry, A, state="d", payload=b"result")

    assert desk.watch(A) == (b"d", b"result")
    assert desk.mail() == [A.encode() + b"dresult"]


def test_a_long_result_is_only_announced_to_a_mailbox_that_counts(desk: Desk) -> None:
    for result, told in ((b"x" * ANNOUNCED_FROM, b""), (b"x" * (ANNOUNCED_FROM + 1), b"%d" % (ANNOUNCED_FROM + 1))):
        desk.client.delete(desk.mailbox, counting := desk.keys.mailbox("me", counts=True), desk.keys.request(A))
        desk.submit(A, [Start(desk.one, "0", [b"x"])], mailbox=counting, fingerprint="what")
        desk.watch(A, desk.mailbox)
        desk.client.execute_command(*functions.emit(desk.keys.request(A), A, 0, [result]))
        assert desk.client.lpop(counting) == A.encode() + b"i" + result
        ((entry, _),) = desk.fetch(desk.one)
        desk.commit(desk.one, entry, A, state="d", payload=result)

        announced, whole = (ANNOUNCED.encode(), told) if told else (b"d", result), (b"d", result)
        assert desk.client.lrange(counting, 0, -1) == [A.encode() + b"".join(announced)]
        assert desk.mail() == [A.encode() + b"".join(whole)]
        assert desk.submit(A, [], mailbox=counting, fingerprint="what") == list(announced)
        for mailbox, found in ((counting, announced), (desk.mailbox, whole)):
            assert desk.client.execute_command(*functions.look(desk.keys.request(A), mailbox)) == list(found)
            assert desk.watch(A, mailbox) == found


def test_a_second_commit_of_the_same_attempt_is_a_duplicate_without_effects(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, moves=[Start(desk.two, "1", [b"z"])])

    assert desk.commit(desk.one, entry, A, moves=[Start(desk.two, "1", [b"z"])]) == b"DUP"
    assert desk.client.xlen(desk.two) == 1


def test_a_final_commit_whose_reply_was_lost_is_a_duplicate(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, state="d", payload=b"result")

    assert desk.commit(desk.one, entry, A, state="d", payload=b"result") == b"DUP"
    assert desk.mail() == [A.encode() + b"dresult"]


def test_a_commit_after_another_attempt_committed_is_stale_without_effects(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, moves=[Start(desk.two, "1", [b"z"])])

    assert desk.commit(desk.one, entry, A, attempt="other", moves=[Start(desk.two, "1", [b"z"])]) == b"STALE"
    assert desk.client.xlen(desk.two) == 1


def test_a_commit_after_cancellation_has_no_effects(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    assert desk.client.execute_command(*functions.close(desk.keys.request(A), A, "c", b"")) == 1

    assert desk.commit(desk.one, entry, A, moves=[Start(desk.two, "1", [b"z"])]) == b"CLOSED"
    assert desk.client.xlen(desk.two) == 0
    assert desk.is_idle(desk.one)
    assert desk.mail() == [A.encode() + b"c"]


@pytest.mark.parametrize("state", ["c", "x"])
def test_replicas_are_told_when_a_request_of_which_they_run_a_call_is_cancelled_or_expires(
    desk: Desk, state: str
) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"x"]), Start(desk.two, "2", [b"x"])])
    desk.fetch(desk.one, "first")
    ((entry, _),) = desk.client.xreadgroup("replicas", "second", {desk.two: ">"}, count=1)[0][1]
    desk.submit(B, [Start(desk.one, "0", [b"x"])])
    desk.fetch(desk.one, "third")

    desk.client.execute_command(*functions.close(desk.keys.request(A), A, state, b"why"))

    message = A.encode() + state.encode() + b"why"
    boxes = [desk.keys.mailbox(name) for name in ("first", "second", "third")]
    assert [desk.client.lrange(box, 0, -1) for box in boxes] == [[message], [message], []]
    assert 0 < desk.client.pttl(boxes[0]) <= 120_000
    assert desk.commit(desk.two, entry, A, step="1", moves=[]) == b"CLOSED"


def test_replicas_are_told_of_a_cancelled_argument_and_not_of_ends_that_are_their_own_or_failures(desk: Desk) -> None:
    waits = Awaited(desk.keys.request(A), desk.two, "1", 1, 0)
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    desk.submit(B, [Start(desk.one, "0", [b"x"]), Start(desk.one, "2", [b"x"])], awaited=[waits])
    (first, _), *_ = desk.fetch(desk.one)

    desk.commit(desk.one, first, A, state="x")
    fails = "c" * 32
    desk.submit(fails, [Start(desk.one, "0", [b"x"]), Start(desk.one, "1", [b"x"])])
    (second, _), *_ = desk.fetch(desk.one, "other")
    desk.commit(desk.one, second, fails, state="f", payload=b"why")

    told = desk.client.lrange(desk.keys.mailbox("replica"), 0, -1)
    assert [message[: len(B) + 1] for message in told] == [B.encode() + b"x"] * 2
    assert not desk.client.exists(desk.keys.mailbox("other"))


def test_a_cancelled_request_leaves_nothing_on_any_queue(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"x"])])

    desk.client.execute_command(*functions.close(desk.keys.request(A), A, "c", b""))

    assert desk.is_idle(desk.one) and desk.is_idle(desk.two)


def test_a_request_that_fails_leaves_nothing_on_any_queue(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)

    desk.commit(desk.one, entry, A, state="f", payload=b"why")

    assert desk.is_idle(desk.one) and desk.is_idle(desk.two)


def test_a_finished_request_cannot_be_cancelled(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, state="d", payload=b"result")

    assert desk.client.execute_command(*functions.close(desk.keys.request(A), A, "c", b"")) == 0
    assert desk.watch(A) == (b"d", b"result")


def test_a_commit_of_a_request_that_the_broker_lost_is_gone(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.client.delete(desk.keys.request(A))

    assert desk.commit(desk.one, entry, A, moves=[Start(desk.two, "1", [b"z"])]) == b"GONE"
    assert desk.is_idle(desk.one)


def test_a_join_starts_once_when_its_last_slot_is_filled(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Join(desk.two, "1", 2, [(1, b"right")])])
    assert desk.client.xlen(desk.two) == 0
    ((entry, _),) = desk.fetch(desk.one)

    desk.commit(desk.one, entry, A, moves=[Join(desk.two, "1", 2, [(0, b"left")])])

    ((_, fields),) = desk.fetch(desk.two)
    assert (fields[b"0"], fields[b"1"]) == (b"left", b"right")


def test_a_slot_keeps_the_value_that_came_first(desk: Desk) -> None:
    desk.submit(A, [Join(desk.two, "1", 2, [(1, b"first")]), Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)

    desk.commit(desk.one, entry, A, moves=[Join(desk.two, "1", 2, [(1, b"second"), (0, b"left")])])

    ((_, fields),) = desk.fetch(desk.two)
    assert (fields[b"0"], fields[b"1"]) == (b"left", b"first")


def test_the_values_of_a_join_that_has_started_are_kept_once(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Join(desk.two, "1", 2, [(1, b"right")])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, moves=[Join(desk.two, "1", 2, [(0, b"left")])])

    assert not {b"1.0", b"1.1"} & set(desk.client.hkeys(desk.keys.request(A)))


def test_a_call_that_takes_another_requests_result_starts_when_that_is_done(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    waits = [Awaited(desk.keys.request(A), desk.two, "m", 2, 1)]
    assert desk.submit(B, [Join(desk.two, "m", 2, [(0, b"template")])], awaited=waits) == b"OK"
    assert desk.client.xlen(desk.two) == 0
    ((entry, _),) = desk.fetch(desk.one)

    desk.commit(desk.one, entry, A, state="d", payload=b"result")

    ((_, fields),) = desk.fetch(desk.two)
    assert (fields[b"0"], fields[b"1"]) == (b"template", b"result")


def test_a_call_that_takes_a_finished_result_starts_at_once(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, state="d", payload=b"result")

    waits = [Awaited(desk.keys.request(A), desk.two, "m", 2, 1)]
    desk.submit(B, [Join(desk.two, "m", 2, [(0, b"template")])], awaited=waits)

    assert len(desk.fetch(desk.two)) == 1


def waits_for(awaited: str, request_id: str = B) -> bytes:
    return seal_header(SEAL, Header(request_id, "app", None, 0, awaits={"m.1": awaited}).encode())


def test_a_call_that_takes_a_failed_result_fails_with_that_failure(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    waits = [Awaited(desk.keys.request(A), desk.two, "m", 2, 1)]
    desk.submit(B, [Join(desk.two, "m", 2, [(0, b"template")])], awaited=waits, header=waits_for(A))
    ((entry, _),) = desk.fetch(desk.one)

    desk.commit(desk.one, entry, A, state="f", payload=seal_end(SEAL, A, "f", b"why"))

    assert own_end(desk, B) == ("f", b"why")
    assert desk.client.xlen(desk.two) == 0


@pytest.mark.parametrize("is_later", [False, True])
def test_a_request_that_fails_with_its_argument_leaves_nothing_on_any_queue(desk: Desk, is_later: bool) -> None:
    desk.submit(A, [Start(desk.two, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.two)
    fail = functools.partial(desk.commit, desk.two, entry, A, state="f", payload=seal_end(SEAL, A, "f", b"why"))
    if not is_later:
        fail()
    waits = [Awaited(desk.keys.request(A), desk.two, "m", 2, 1)]
    moves = [Start(desk.one, "0", [b"x"]), Join(desk.two, "m", 2, [(0, b"template")])]
    desk.submit(B, moves, awaited=waits, header=waits_for(A))
    if is_later:
        fail()

    assert own_end(desk, B) == ("f", b"why")
    assert desk.is_idle(desk.one) and desk.is_idle(desk.two)


def own_end(desk: Desk, request_id: str) -> Outcome:
    state, payload = desk.watch(request_id)
    return open_end(SEAL, request_id, Outcome(state.decode(), payload))


@pytest.mark.parametrize("state", ["c", "x", "f"])
def test_an_end_passes_through_every_request_that_waited_for_it_and_to_no_other(desk: Desk, state: str) -> None:
    names = [f"{number:032x}" for number in range(INHERITED_LIMIT + 2)]
    desk.submit(names[0], [Start(desk.one, "0", [b"x"])])
    for awaited, name in itertools.pairwise(names):
        waits = [Awaited(desk.keys.request(awaited), desk.two, "m", 2, 1)]
        desk.submit(name, [Join(desk.two, "m", 2, [(0, b"template")])], awaited=waits, header=waits_for(awaited, name))

    end = seal_end(SEAL, names[0], state, b"why")
    desk.client.execute_command(*functions.close(desk.keys.request(names[0]), names[0], state, end))

    assert {own_end(desk, name) for name in names[:-1]} == {(state, b"why")}
    assert own_end(desk, names[-1]).state == "f"
    for taken_from in names[:3]:  # by somebody who may write to the broker, and has no key
        desk.client.hset(desk.keys.request(names[5]), "res", desk.watch(taken_from)[1])
        failure = Failure.decode(own_end(desk, names[5]).payload)
        assert failure.type == "PayloadError"


def test_a_call_that_takes_an_unknown_result_is_refused(desk: Desk) -> None:
    waits = [Awaited(desk.keys.request(A), desk.two, "m", 2, 1)]

    assert desk.submit(B, [Join(desk.two, "m", 2, [(0, b"template")])], awaited=waits) == b"LOST"
    assert desk.watch(B) == (b"", b"")


def test_a_watcher_from_another_process_is_told_as_well(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])], mailbox="")
    assert desk.watch(A, desk.mailbox) == (b"o", b"")
    ((entry, _),) = desk.fetch(desk.one)

    desk.commit(desk.one, entry, A, state="d", payload=b"result")

    assert desk.mail() == [A.encode() + b"dresult"]


def emit(desk: Desk, number: int) -> int:
    return int(desk.client.execute_command(*functions.emit(desk.keys.request(A), A, number, [b"%d" % number])))


def test_an_item_is_sent_once_and_in_its_turn_however_often_its_call_is_run(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])

    assert [emit(desk, number) for number in (0, 0, 1, 0, 1, 2)] == [1, 1, 2, 2, 2, 3]

    assert desk.mail() == [A.encode() + b"i%d" % number for number in range(3)]


def test_of_items_that_are_sent_together_each_comes_once_in_its_turn(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])

    def emit(first: int, end: int) -> Any:
        items = [b"%d" % number for number in range(first, end)]
        return desk.client.execute_command(*functions.emit(desk.keys.request(A), A, first, items))

    assert [emit(0, 3), emit(1, 5), emit(2, 4), emit(6, 8), emit(0, 0), emit(5, 6)] == [3, 5, 5, 5, 5, 6]

    assert desk.mail() == [A.encode() + b"i%d" % number for number in range(6)]


def test_a_reader_that_counts_gets_few_items_before_it_takes_the_first(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])], mailbox=desk.keys.mailbox("me", counts=True))
    request = desk.keys.request(A)

    def emit(number: int) -> Any:
        return desk.client.execute_command(*functions.emit(request, A, number, [b"item"]))

    assert [emit(number) for number in range(3)] == [HELD_BACK + 1, HELD_BACK + 2, HELD_BACK + 3]
    desk.client.execute_command(*functions.take(request, 1))
    assert [emit(number) for number in range(2, 5)] == [2, 3, 4]


def test_the_reader_of_a_stream_tells_how_far_it_is(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    for number in (0, 1):
        emit(desk, number)

    assert desk.client.execute_command(*functions.take(desk.keys.request(A), 2)) == 2
    assert emit(desk, 2) == 1


def test_a_stream_that_nobody_reads_any_more_is_produced_to_its_end_and_delivered_to_nobody(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    emit(desk, 0)

    desk.client.execute_command(*functions.take(desk.keys.request(A), functions.UNREAD))

    assert [emit(desk, number) for number in range(1, 40)] == [0] * 39
    assert desk.commit(desk.one, entry, A, state="d", payload=b"39") == b"OK"
    assert desk.mail() == [A.encode() + b"i0"]


def test_no_item_of_a_request_that_has_ended_is_sent(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    desk.client.execute_command(*functions.close(desk.keys.request(A), A, "c", b""))

    assert emit(desk, 0) == -1
    assert desk.mail() == [A.encode() + b"c"]


def open_session(desk: Desk) -> bytes:
    """A WebSocket whose session runs."""
    desk.submit(A, [Start(desk.one, SESSION, [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    return entry


def tell(desk: Desk, number: int) -> Any:
    return desk.client.execute_command(*functions.tell(desk.keys.request(A), A, number, b"%d" % number))


def test_what_a_client_says_reaches_the_replica_of_its_session_once_and_in_its_turn(desk: Desk) -> None:
    open_session(desk)
    emit(desk, 0)

    assert [tell(desk, number) for number in (0, 0, 1, -1, 3, 2)] == [[n, 1] for n in (1, 1, 2, 2, 2, 3)]
    assert desk.client.execute_command(*functions.heard(desk.keys.request(A), 2)) == 1
    assert desk.client.execute_command(*functions.heard(desk.keys.request(A), 1)) == 1  # sent again, too late

    assert tell(desk, -1) == [1, 1]
    told = desk.client.lrange(desk.keys.mailbox("replica"), 0, -1)
    assert told == [A.encode() + b"t%d" % number for number in range(3)]


def test_nothing_is_told_to_a_session_that_does_not_run(desk: Desk) -> None:
    assert tell(desk, 0) == []
    desk.submit(A, [Start(desk.one, SESSION, [b"x"])])
    assert tell(desk, 0) == []
    desk.client.execute_command(*functions.close(desk.keys.request(A), A, "c", b""))

    assert tell(desk, -1) == []
    assert desk.client.execute_command(*functions.heard(desk.keys.request(A), 1)) == 0
    assert desk.client.exists(desk.keys.mailbox("replica")) == 0


def test_a_session_ends_with_its_replica(desk: Desk) -> None:
    open_session(desk)

    assert desk.reclaim("replica") == 1

    assert desk.mail() == [A.encode() + b"flost"]
    assert desk.is_idle(desk.one)
    assert desk.client.exists(desk.keys.dead_letters) == 0


def test_a_copy_of_a_session_ends_nothing(desk: Desk) -> None:
    entry = open_session(desk)
    desk.client.xadd(desk.one, dict(desk.client.xrange(desk.one, entry, entry)[0][1]))
    desk.fetch(desk.one, "other")

    assert desk.reclaim("other") == 1

    assert desk.mail() == []
    assert tell(desk, 0) == [1, 0]


def test_a_mailbox_that_nobody_reads_lives_on_while_more_comes_for_it(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    for number in range(128):
        emit(desk, number)
    desk.client.pexpire(desk.mailbox, 1000)

    emit(desk, 128)

    assert desk.client.pttl(desk.mailbox) > 1000


def test_a_forgotten_result_is_dropped_now_or_when_it_comes(desk: Desk) -> None:
    for request_id in (A, B):
        desk.submit(request_id, [Start(desk.one, "0", [b"x"])])
    (first, _), (second, _) = desk.fetch(desk.one)
    desk.commit(desk.one, first, A, state="d", payload=b"result")

    desk.client.execute_command(*functions.forget([desk.keys.request(A), desk.keys.request(B)]))
    desk.commit(desk.one, second, B, state="d", payload=b"result")

    assert desk.watch(A) == desk.watch(B) == (b"", b"")


def test_what_a_dead_replica_held_is_delivered_to_another_with_its_deaths(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    desk.fetch(desk.one, "dead")

    assert desk.reclaim("dead") == 1

    ((entry, fields),) = desk.fetch(desk.one, "living")
    assert fields[b"x"] == b"1"
    assert desk.commit(desk.one, entry, A, state="d", payload=b"result") == b"OK"
    assert desk.is_idle(desk.one)


def test_the_late_commit_of_a_replica_that_was_taken_for_dead_is_stale(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one, "frozen")
    desk.reclaim("frozen")

    assert desk.commit(desk.one, entry, A, state="d", payload=b"late") == b"STALE"
    assert desk.watch(A) == (b"o", b"")


def test_a_call_whose_replica_died_three_times_fails_its_request(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    for consumer in ("first", "second", "third"):
        desk.fetch(desk.one, consumer)
        desk.reclaim(consumer)

    assert desk.watch(A) == (b"f", b"lost")
    assert desk.is_idle(desk.one)


def test_a_dead_replicas_consumer_is_removed(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    desk.fetch(desk.one, "dead")
    desk.reclaim("dead")

    names = [one["name"] for one in desk.client.xinfo_consumers(desk.one, GROUP)]
    assert b"dead" not in names


# -- the same request again, by an idempotency key -------------------------------------------------


def test_who_repeats_a_request_follows_it_and_is_told_its_end(desk: Desk) -> None:
    other = desk.keys.mailbox("other")
    asked = {"fingerprint": "what"}
    assert desk.submit(A, [Start(desk.one, "0", [b"x"])], **asked) == b"OK"
    for mailbox in (desk.mailbox, other, other):
        assert desk.submit(A, [Start(desk.one, "0", [b"x"])], mailbox=mailbox, **asked) == [b"o", b""]
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, state="d", payload=b"result")

    told = A.encode() + b"d" + b"result"
    assert desk.mail() == [told]
    assert desk.client.lrange(other, 0, -1) == [told]
    assert desk.submit(A, [Start(desk.one, "0", [b"x"])], **asked) == [b"d", b"result"]
    assert desk.is_idle(desk.one)


def test_an_id_that_comes_with_another_request_is_refused_while_it_runs_and_after(desk: Desk) -> None:
    assert desk.submit(A, [Start(desk.one, "0", [b"x"])], fingerprint="what") == b"OK"
    assert desk.submit(A, [Start(desk.one, "0", [b"y"])], fingerprint="else") == b"MISMATCH"
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, state="f", payload=b"why")
    assert desk.submit(A, [Start(desk.one, "0", [b"y"])], fingerprint="else") == b"MISMATCH"
    assert desk.submit(A, [Start(desk.one, "0", [b"x"])], fingerprint="what") == [b"f", b"why"]
    assert desk.is_idle(desk.one)


def test_a_request_that_was_refused_takes_no_key(desk: Desk) -> None:
    desk.submit(B, [Start(desk.one, "0", [b"x"])])
    full = desk.submit(A, [Start(desk.one, "0", [b"x"])], fingerprint="what", limits={desk.one: 1})
    assert full == [b"FULL", 1]
    assert desk.submit(A, [Start(desk.one, "0", [b"y"])], fingerprint="else") == b"OK"


def test_a_watcher_that_asks_often_is_told_once(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])], mailbox="")
    for _ in range(5):
        assert desk.watch(A, desk.mailbox) == (b"o", b"")
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, state="d", payload=b"r")
    assert desk.mail() == [A.encode() + b"d" + b"r"]


# -- admission -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("waited_ms", "told_s"), [(0, 1), (900, 1), (4_200, 5), (500_000, 30)])
def test_a_refusal_says_how_long_the_oldest_has_waited(desk: Desk, waited_ms: int, told_s: int) -> None:
    seconds, micros = desk.client.time()
    then_ms = seconds * 1000 + micros // 1000 - waited_ms
    # one that is older runs already, and does not wait
    desk.client.xadd(desk.one, {"s": "0"}, id=f"{then_ms - 60_000}-0")
    desk.fetch(desk.one)
    desk.client.xadd(desk.one, {"s": "0"}, id=f"{then_ms}-0")
    desk.client.xadd(desk.one, {"s": "0"}, id=f"{then_ms}-1")

    assert desk.submit(A, [Start(desk.one, "0", [b"x"])], limits={desk.one: 2}) == [b"FULL", told_s]


def test_what_waits_is_counted_with_the_age_of_the_oldest_call(desk: Desk) -> None:
    before_ms = desk.client.time()[0] * 1000 - 5000
    for number, seq in ((1, 0), (2, 1), (3, 2)):
        desk.client.xadd(desk.one, {b"h": str(number)}, id=f"{before_ms}-{seq}")
    desk.client.xreadgroup(GROUP, "replica", {desk.one: ">"}, count=1)

    first, second, gone = loads_of(desk.client, [desk.one, desk.two, desk.one + "x"])

    assert (first.waiting, first.running) == (2, 1)
    assert first.oldest_s >= 5
    assert second == gone == QueueLoad(0, 0, 0.0)


def test_the_load_of_a_queue_has_what_waits_and_what_runs_also_for_single_replicas(desk: Desk) -> None:
    keys, other = desk.keys, desk.keys.personal(desk.two, "replica")
    own, models = keys.personal(desk.one, "replica"), keys.models_of(desk.one)
    desk.client.execute_command(*functions.advertise(models, own, "replica", 60_000, ["model"]))
    desk.client.hset(models, "s:another", other)  # not a stream of this queue
    create_group(desk.client, own)
    now_ms = desk.client.time()[0] * 1000
    for stream, age_ms, count in ((desk.one, 1000, 3), (own, 60_000, 2), (other, 90_000, 1)):
        for number in range(count):
            desk.client.xadd(stream, {b"h": "x"}, id=f"{now_ms - age_ms}-{number}")
            desk.client.pexpire(stream, 60_000)
    desk.client.xreadgroup(GROUP, "replica", {desk.one: ">", own: ">"}, count=1)

    reply = desk.client.execute_command(*functions.backlog([desk.one, desk.two]))

    (waiting, running, oldest_ms), nothing = backlogs(reply, 2)
    assert (waiting, running) == (3, 2)
    assert 60_000 <= oldest_ms < 90_000
    assert nothing == (0, 0, 0)


@pytest.mark.row("F58")
def test_only_the_call_that_runs_says_what_happens_and_its_request_keeps_the_last_of_it(desk: Desk) -> None:
    def note(request_id: str, entry: bytes, event: bytes) -> object:
        return desk.client.execute_command(
            *functions.note(desk.keys.request(request_id), desk.one, entry, "0", event, True)
        )

    def events(after: int = 0) -> list[bytes]:
        return desk.client.execute_command(*functions.observe(request, A, after))[1::2]

    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    request = desk.keys.request(A)
    log = request.replace(":r:", ":v:")
    ((entry, fields),) = desk.fetch(desk.one)
    copy = desk.client.xadd(desk.one, fields)

    assert [note(A, entry, b"some"), note(A, copy, b"other"), note(A, entry, b"more")] == [b"OK", b"STALE", b"OK"]
    assert desk.client.hget(request, Field.PROGRESS) == b"more"
    assert [events(), events(1)] == [[b"some", b"more"], [b"more"]]
    left_ms = desk.client.pttl(request)  # read first: both become less
    assert 0 < desk.client.pttl(log) <= left_ms + 1 <= 120_001

    many = [b"%d" % number for number in range(EVENTS_KEPT)]
    assert {note(A, entry, event) for event in many} == {b"OK"}
    assert events() == many
    desk.commit(desk.one, entry, A, state="d", payload=b"result", event=b"done")

    assert [note(A, entry, b"late"), note(B, entry, b"nothing")] == [b"CLOSED", b"CLOSED"]
    assert events() == [*many[1:], b"done"]
    assert 0 < desk.client.pttl(log) <= 60_000
    assert not desk.client.hexists(request, Field.PROGRESS)
    assert not desk.client.exists(desk.keys.request(B))


def test_replicas_learn_once_that_somebody_follows_a_request(desk: Desk) -> None:
    def observe() -> object:
        return desk.client.execute_command(*functions.observe(desk.keys.request(A), A, 0))

    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"x"])])
    desk.fetch(desk.one)
    assert [observe(), observe()] == [[], []]
    desk.fetch(desk.two)

    commands = [functions.strays([one], "replica", desk.keys.request(""), [b"0-0"]) for one in (desk.one, desk.two)]
    checked = [desk.client.execute_command(*command) for command in commands]

    assert desk.client.lrange(desk.keys.mailbox("replica"), 0, -1) == [A.encode() + b"w"]
    assert [len(places(found)) + 2 * len(observed(found)) for found in checked] == [2, 2]


def test_a_trace_keeps_what_fits_into_its_bytes_for_a_while_and_the_last_ones_are_kept(desk: Desk) -> None:
    pipe = desk.client.pipeline(transaction=False)
    for _ in range(TRACES_KEPT):
        pipe.xadd(desk.keys.traces, {"x": "y"})
    pipe.execute()
    for request_id, failure in ((A, b"short"), (B, b"x" * TRACE_BYTES)):
        desk.submit(request_id, [Start(desk.one, "0", [b"x"])], is_traced=True)
        ((entry, _),) = desk.fetch(desk.one)
        pipe = desk.client.pipeline(transaction=False)
        for _ in range(EVENTS_KEPT):
            pipe.execute_command(
                *functions.note(desk.keys.request(request_id), desk.one, entry, "0", b"x" * 500, False)
            )
        pipe.execute()
        desk.commit(desk.one, entry, request_id, state="f", payload=failure, event=b"last")

    ((_, long), (_, short)) = desk.client.xrevrange(desk.keys.traces, count=2)
    assert [short[Field.RESULT], long[Field.RESULT]] == [b"short", b""]
    assert [one[Field.HEADER] for one in (short, long)] == [header_of(A), header_of(B)]
    assert {one[Field.QUEUE] for one in (short, long)} == {desk.one.encode()}
    for trace in (short, long):
        assert b"last" in trace[Field.EVENTS]
        assert 0.9 * TRACE_BYTES < sum(map(len, trace.values())) <= TRACE_BYTES
    assert desk.client.xlen(desk.keys.traces) == TRACES_KEPT
    assert 0 < desk.client.pttl(desk.keys.traces) <= TRACES_TTL_MS


def test_only_what_was_traced_from_its_submission_on_leaves_a_trace_and_its_replay_does_not(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    desk.client.execute_command(*functions.observe(desk.keys.request(A), A, 0))
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, state="d", payload=b"result")
    assert not desk.client.exists(desk.keys.traces)

    desk.submit(B, [Start(desk.one, "0", [b"x"])], is_traced=True)
    ((entry, _),) = desk.fetch(desk.one)
    desk.dead_letter(desk.one, entry, B, "retries", b"failed")
    letter, request = desk.keys.dead_letter(B), desk.keys.request(B)
    assert not desk.client.hexists(letter, Field.QUEUE)
    assert desk.client.execute_command(*functions.replay(letter, request, B, header_of(B), 9000, 9000, {})) == b"OK"
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, B, state="d", payload=b"result")

    ((_, trace),) = desk.client.xrange(desk.keys.traces)
    assert trace[Field.STATE] == b"f"


def test_a_look_at_a_queue_of_long_values_reads_only_some_of_it_and_no_value(desk: Desk) -> None:
    long = b"x" * (functions.PEEK_BYTES // 2)
    for number in range(3):
        desk.submit(f"{number:032x}", [Start(desk.one, "0", [long])])

    found = desk.client.execute_command(*functions.peek(desk.one, 100))

    assert len(found) == 2
    assert sum(len(part) for call in found for part in call) < 1000


def test_a_look_at_a_queue_and_at_a_request_says_what_their_calls_do(desk: Desk) -> None:
    def peek() -> list[tuple[str, str, int, str]]:
        found = peeked(desk.client.execute_command(*functions.peek(desk.one, 10)))
        return sorted((one.header[:1].decode(), one.how, one.attempt, one.replica) for one in found)

    def inspect(request_id: str) -> list[tuple[str, str]]:
        found = peeked(desk.client.execute_command(*functions.inspect(desk.keys.request(request_id))))
        return [(one.step, one.how) for one in found]

    third = "c" * 32
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    waits = [Awaited(desk.keys.request(A), desk.one, "m", 2, 1)]
    desk.submit(B, [Join(desk.one, "m", 2, [(0, b"template")])], awaited=waits)
    desk.submit(third, [Start(desk.one, "1", [b"x"])])
    assert peek() == [("a", "running", 1, "replica"), ("b", "awaiting", 1, ""), ("c", "waiting", 1, "")]
    assert [inspect(A), inspect(B), inspect(third)] == [[("0", "running")], [], [("1", "waiting")]]

    delayed = desk.keys.delayed_of(desk.one)
    desk.client.execute_command(
        *functions.postpone(desk.one, desk.keys.request(A), delayed, entry, 9000, 1, 60_000, "replica", "no")
    )
    assert peek()[0] == ("a", "retrying", 2, "")
    assert inspect(A) == [("0", "retrying")]
    close(desk, A)
    assert [one[0] for one in peek()] == ["c"]  # whoever waited for its result has ended with it
    assert inspect(A) == []


# -- who leads, and what it says -------------------------------------------------------------------


def test_what_one_may_hold_is_taken_only_from_who_is_known_to_have_it(desk: Desk) -> None:
    key = desk.keys.lead

    def swap(was: bytes, now: bytes) -> object:
        return desk.client.execute_command(*functions.lead(key, was, now, 60_000))

    assert [swap(b"", b"one"), swap(b"", b"two"), swap(b"one", b"one again")] == [b"OK", b"STALE", b"OK"]
    assert 0 < desk.client.pttl(key) <= 60_000
    assert [swap(b"one", b""), desk.client.get(key)] == [b"STALE", b"one again"]
    assert [swap(b"one again", b""), desk.client.get(key)] == [b"OK", None]


def test_only_who_leads_says_what_workers_run(desk: Desk) -> None:
    keys = desk.keys

    def assign(mine: bytes, workers: list[str], assignments: list[bytes]) -> object:
        return desk.client.execute_command(*functions.assign(keys.lead, keys.plan, mine, workers, assignments))

    assert assign(b"", ["a"], [b"nothing"]) == b"STALE"
    desk.client.set(keys.lead, b"me", px=60_000)
    assert assign(b"me", ["a", "b"], [b"one", b"two"]) == b"OK"
    assert assign(b"other", ["a"], [b"forged"]) == b"STALE"
    assert desk.client.hgetall(keys.plan) == {b"a": b"one", b"b": b"two"}
    assert assign(b"me", ["b", "c"], [b"", b"three"]) == b"OK"
    assert desk.client.hgetall(keys.plan) == {b"a": b"one", b"c": b"three"}


def test_a_limit_of_zero_admits_nothing_and_says_so(desk: Desk) -> None:
    assert desk.submit(A, [Start(desk.one, "0", [b"x"])], limits={desk.one: 0}) == [b"FULL", 1]


def test_of_many_who_submit_at_once_exactly_as_many_as_allowed_are_admitted(desk: Desk, settings: Settings) -> None:
    def submit_ten(number: int) -> int:
        with closing(connect(settings.broker_url or "")) as client:
            own = Desk(client, desk.keys)
            ids = [f"{number:016x}{k:016x}" for k in range(10)]
            replies = [own.submit(one, [Start(own.one, "0", [b"x"])], limits={own.one: 37}) for one in ids]
            return replies.count(b"OK")

    with ThreadPoolExecutor(12) as pool:
        admitted = sum(pool.map(submit_ten, range(12)))

    assert admitted == desk.client.xlen(desk.one) == 37


@hypothesis.settings(max_examples=30, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(0, 4),
    acts=st.lists(st.sampled_from(["submit", "fetch", "commit", "cancel", "cancel what runs"]), max_size=30),
)
def test_a_call_is_refused_exactly_while_as_many_wait_as_may(desk: Desk, limit: int, acts: list[str]) -> None:
    desk.client.delete(desk.one)
    create_group(desk.client, desk.one)
    waiting: list[str] = []
    running: list[tuple[bytes, str]] = []
    for act in acts:
        if act == "submit":
            request_id = os.urandom(16).hex()
            reply = desk.submit(request_id, [Start(desk.one, "0", [b"x"])], limits={desk.one: limit})
            assert (reply == b"OK") is (len(waiting) < limit), (reply, waiting)
            waiting += [request_id] if reply == b"OK" else []
        elif act == "fetch" and waiting:
            found: Any = desk.client.xreadgroup(GROUP, "replica", {desk.one: ">"}, count=1)
            running.append((found[0][1][0][0], waiting.pop(0)))
        elif act == "commit" and running:
            entry, request_id = running.pop()
            assert desk.commit(desk.one, entry, request_id, state="d") == b"OK"
        elif waiting if act == "cancel" else act == "cancel what runs" and running:
            gone = waiting.pop() if act == "cancel" else running.pop()[1]
            assert desk.client.execute_command(*functions.close(desk.keys.request(gone), gone, "c", b"")) == 1


def test_what_was_given_back_is_on_the_queue_again_with_the_same_fields_and_no_death(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x", b"y"])])
    ((entry, fields),) = desk.fetch(desk.one, "slow")

    assert desk.give_back(desk.one, entry) == 1
    assert desk.give_back(desk.one, entry) == 0

    assert desk.commit(desk.one, entry, A, state="d") == b"STALE"
    ((again, same),) = desk.fetch(desk.one, "quick")
    assert again != entry
    assert same == fields
    assert desk.client.execute_command(*functions.close(desk.keys.request(A), A, "c", b"")) == 1
    assert desk.client.xlen(desk.one) == 0  # the act that ends the request finds its newest entry


def test_what_waited_in_a_replicas_own_stream_is_given_back_to_all(desk: Desk) -> None:
    desk.submit(A, [Start(desk.two, "0", [b"x"])])
    ((entry, fields),) = desk.fetch(desk.two)

    assert desk.give_back(desk.two, entry, to=desk.one) == 1

    assert [same for _, same in desk.fetch(desk.one)] == [fields]
    assert desk.is_idle(desk.two)


def test_a_call_that_nobody_fetched_cannot_be_given_back(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.client.xrange(desk.one)

    assert desk.give_back(desk.one, entry) == 0
    assert [still for still, _ in desk.fetch(desk.one)] == [entry]


def test_calls_of_requests_that_have_ended_are_not_given_back(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    desk.submit(B, [Start(desk.one, "0", [b"x"])])
    (first, _), (second, _) = desk.fetch(desk.one)
    desk.client.execute_command(*functions.close(desk.keys.request(A), A, "c", b""))  # deletes the entry
    desk.client.delete(desk.keys.request(B))

    desk.give_back(desk.one, first, second)

    assert desk.is_idle(desk.one)


@pytest.mark.parametrize("fields", [{"s": "0"}, {"h": b"\xc1", "s": "0"}, {"z": "no call at all"}])
def test_an_entry_that_cannot_be_read_is_given_back_for_its_next_reader(desk: Desk, fields: Any) -> None:
    desk.client.xadd(desk.one, fields)
    ((entry, same),) = desk.fetch(desk.one)

    assert desk.give_back(desk.one, entry) == 1

    assert [again for _, again in desk.fetch(desk.one)] == [same]


# -- webhooks ---------------------------------------------------------------------------------------

HOOKED: dict[str, Any] = {"webhook": b"to", "ttl_ms": CLOCK_MARGIN_MS + 30_000}


def due(desk: Desk) -> list[Any]:
    found: Any = desk.client.execute_command(*functions.due(desk.keys.webhooks, desk.keys.webhook(""), "9"))
    return list(found)


def settle(desk: Desk, request_id: str, tries: int, wait_ms: int) -> bytes:
    webhook = desk.keys.webhook(request_id)
    reply: bytes = desk.client.execute_command(
        *functions.settle(desk.keys.webhooks, webhook, request_id, tries, wait_ms)
    )
    return reply


def is_over(desk: Desk, request_id: str) -> bool:
    client = desk.client
    return not client.exists(desk.keys.webhook(request_id)) and client.zscore(desk.keys.webhooks, request_id) is None


def close(desk: Desk, request_id: str, state: str = "c") -> int:
    count: int = desk.client.execute_command(*functions.close(desk.keys.request(request_id), request_id, state, b""))
    return count


def test_the_end_of_a_request_is_due_at_its_webhook_in_the_same_act(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])], **HOOKED)
    assert due(desk) == []

    ((entry, _),) = desk.fetch(desk.one)
    assert desk.commit(desk.one, entry, A, state="d", payload=b"result") == b"OK"

    ((request_id, target, state, payload, at_ms, tries),) = due(desk)
    assert (request_id, target, state, payload, tries) == (A.encode(), b"to", b"d", b"result", 0)
    seconds, _ = desk.client.time()
    assert abs(int(at_ms) / 1000 - seconds) < 60


def test_a_webhook_that_was_taken_comes_again_when_who_took_it_is_gone(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])], **HOOKED)
    close(desk, A)
    assert [found[0] for found in due(desk)] == [A.encode()]
    assert due(desk) == []

    score = desk.client.zscore(desk.keys.webhooks, A)
    seconds, micros = desk.client.time()
    assert 0 < score - (seconds * 1000 + micros / 1000) <= functions.HOOK_LEASE_MS

    desk.client.zadd(desk.keys.webhooks, {A: 1})  # that time is over
    assert [found[0] for found in due(desk)] == [A.encode()]


def test_a_webhook_waits_for_its_next_try_and_is_removed_once_it_is_delivered(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])], **HOOKED)
    close(desk, A)
    due(desk)

    assert settle(desk, A, 1, 60_000) == b"OK"
    assert due(desk) == []
    assert settle(desk, A, 2, 0) == b"OK"
    assert due(desk)[0][5] == b"2"
    assert settle(desk, A, 3, -1) == b"OK"
    assert is_over(desk, A)
    # who was slower changes nothing
    assert settle(desk, A, 3, 1000) == b"STALE"
    assert is_over(desk, A)


def test_a_request_that_nobody_ends_is_due_after_its_deadline(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])], **HOOKED)
    score = desk.client.zscore(desk.keys.webhooks, A)
    seconds, _ = desk.client.time()
    assert score < (seconds + 60) * 1000  # its life of a margin longer is not what is waited for

    desk.client.zadd(desk.keys.webhooks, {A: 1})
    assert [(found[0], found[2]) for found in due(desk)] == [(A.encode(), b"")]
    close(desk, A, "x")
    assert [(found[0], found[2]) for found in due(desk)] == [(A.encode(), b"x")]


def test_the_webhook_of_a_dead_letter_tells_its_failure_and_that_of_a_long_result_only_its_state(desk: Desk) -> None:
    for request_id in (A, B):
        desk.submit(request_id, [Start(desk.one, "0", [b"x"])], **HOOKED)
    (first, _), (second, _) = desk.fetch(desk.one)
    request = desk.keys.request(A)
    failed = functions.dead_letter(desk.one, request, first, A, "retries", b"failure", "replica", "what")
    assert desk.client.execute_command(*failed) == b"OK"
    desk.commit(desk.one, second, B, state="d", payload=b"x" * (functions.HOOK_BYTES + 1))

    found = {request_id: (state, payload) for request_id, _, state, payload, _, _ in due(desk)}
    assert found == {A.encode(): (b"f", b"failure"), B.encode(): (b"d", b"")}


def test_a_request_that_fails_with_its_argument_has_its_end_sent_as_well(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    awaited = [Awaited(desk.keys.request(A), desk.two, "0", 2, 1)]
    desk.submit(B, [Join(desk.two, "0", 2, [(0, b"y")])], awaited=awaited, **HOOKED)
    close(desk, A)
    assert [(found[0], found[2]) for found in due(desk)] == [(B.encode(), b"c")]


def test_a_webhook_that_was_overwritten_keeps_no_request_from_ending(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])], **HOOKED)
    desk.client.set(desk.keys.webhook(A), "not a hash", px=60_000)
    assert close(desk, A) == 1
    desk.client.zadd(desk.keys.webhooks, {A: 1})
    assert due(desk) == []
    desk.client.delete(desk.keys.webhook(A))


def test_no_more_webhooks_are_accepted_than_there_may_be(desk: Desk) -> None:
    index = desk.keys.webhooks
    pipe = desk.client.pipeline(transaction=False)
    for first in range(0, functions.WEBHOOKS_LIMIT, 10_000):
        pipe.zadd(index, dict.fromkeys(map(str, range(first, first + 10_000)), 10**15))
    pipe.pexpire(index, 60_000)
    pipe.execute()
    assert desk.submit(A, [Start(desk.one, "0", [b"x"])], **HOOKED) == b"HOOKED"
    assert desk.submit(A, [Start(desk.one, "0", [b"x"])]) == b"OK"
    close(desk, A)
    desk.client.unlink(index)


# -- counts of ends -----------------------------------------------------------------------------------


def take_ends(desk: Desk) -> dict[tuple[str, str], int]:
    found = ends(desk.client.execute_command(*functions.take_ends(desk.keys.ends)))
    return {(app, state): count for app, state, count in found}


def test_each_end_that_is_not_a_commit_is_counted_once_whoever_brings_it(desk: Desk) -> None:
    requests = list(ids(6))
    for request_id in requests:
        desk.submit(request_id, [Start(desk.one, "0", [b"x"])])
    done, dead, lost, cancelled, late, replaced = requests
    (committed, _), (letter, _), *_ = desk.fetch(desk.one, "first")[:2]
    desk.commit(desk.one, committed, done, state="d", payload=b"result")
    assert take_ends(desk) == {}  # the replica that has committed counts it

    failed = functions.dead_letter(desk.one, desk.keys.request(dead), letter, dead, "retries", b"f", "replica", "what")
    assert [desk.client.execute_command(*failed) for _ in range(2)] == [b"OK", b"STALE"]
    assert close(desk, cancelled) == close(desk, late, "x") == 1
    assert close(desk, cancelled) == 0
    assert take_ends(desk) == {("app", "failed"): 1, ("app", "cancelled"): 1, ("app", "expired"): 1}
    assert take_ends(desk) == {}

    prefix = desk.keys.request("")
    desk.client.execute_command(*functions.reclaim(desk.one, desk.one, "first", 1, b"lost", prefix))
    assert take_ends(desk) == {("app", "failed"): len({lost, replaced})}


def test_a_request_that_fails_with_its_argument_or_its_version_is_counted_as_well(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    awaited = [Awaited(desk.keys.request(A), desk.two, "0", 2, 1)]
    desk.submit(B, [Join(desk.two, "0", 2, [(0, b"y")])], awaited=awaited)
    close(desk, A)
    assert take_ends(desk) == {("app", "cancelled"): 2}

    (third, *_) = ids(1)
    desk.submit(third, [Start(desk.one, "0", [b"x"])])
    desk.client.execute_command(*functions.retire([desk.one], True, b"gone", desk.keys.request("")))
    assert take_ends(desk) == {("app", "failed"): 1}
