"""What supervisors have the functions do: wake, reclaim, retire, and calls for a model."""

from __future__ import annotations

from typing import Any

import pytest
from desk import SEAL, A, B, Desk

from qserve.base.keys import GROUP
from qserve.broker import functions
from qserve.broker.connection import create_group, if_there
from qserve.wire.envelope import Header
from qserve.wire.moves import Awaited, Join, Model, Start
from qserve.wire.outcome import SESSION
from qserve.wire.sealing import DELETED, REPLACED, seal_header

REPLICA = "replica"


def run(desk: Desk, command: Any) -> Any:
    return desk.client.execute_command(*command)


def postpone(desk: Desk, entry: bytes, request_id: str, wait_ms: int = 0) -> bytes:
    request, delayed = desk.keys.request(request_id), desk.keys.delayed_of(desk.one)
    command = functions.postpone(desk.one, request, delayed, entry, wait_ms, 1, 60_000, REPLICA, "it failed")
    answer: bytes = run(desk, command)
    return answer


def wake(desk: Desk) -> int:
    return int(run(desk, functions.wake(desk.keys.delayed_of(desk.one), desk.one)))


def retire(desk: Desk, *streams: str, force: bool = False) -> bool:
    keys = [*streams, *(desk.keys.delayed_of(stream) for stream in streams)]
    return bool(run(desk, functions.retire(keys, force, b"deleted", desk.keys.request(""))))


def begin(desk: Desk, request_id: str = A) -> bytes:
    desk.submit(request_id, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    return entry


def test_a_postponed_call_comes_back_once_with_its_values_and_its_tries(desk: Desk) -> None:
    entry = begin(desk)

    assert postpone(desk, entry, A) == b"OK"
    assert desk.is_idle(desk.one)
    assert (wake(desk), wake(desk)) == (1, 0)

    ((_, fields),) = desk.fetch(desk.one)
    assert (fields[b"s"], fields[b"0"], fields[b"t"]) == (b"0", b"x", b"1")


def test_a_call_is_not_woken_before_its_time(desk: Desk) -> None:
    postpone(desk, begin(desk), A, wait_ms=100_000)

    assert wake(desk) == 0
    assert desk.fetch(desk.one) == []


def test_a_try_that_was_handed_over_cannot_be_postponed(desk: Desk) -> None:
    entry = begin(desk)
    desk.reclaim(REPLICA)

    assert postpone(desk, entry, A) == b"STALE"
    assert desk.client.zcard(desk.keys.delayed_of(desk.one)) == 0


def test_calls_of_a_request_that_was_cancelled_meanwhile_are_not_woken(desk: Desk) -> None:
    postpone(desk, begin(desk), A)
    run(desk, functions.close(desk.keys.request(A), A, "c", b""))

    wake(desk)

    assert desk.fetch(desk.one) == []


@pytest.mark.slow
def test_a_replica_that_held_more_than_one_look_takes_loses_nothing(desk: Desk) -> None:
    requests = [f"{number:032x}" for number in range(1001)]
    for request_id in requests:
        desk.submit(request_id, [Start(desk.one, "0", [b"x"])])
    desk.client.xreadgroup(GROUP, "dead", {desk.one: ">"}, count=2000)

    assert [desk.reclaim("dead") for _ in range(3)] == [1000, 1, 0]

    found: Any = desk.client.xreadgroup(GROUP, "living", {desk.one: ">"}, count=2000)
    assert sorted(fields[b"h"][:32].decode() for _, fields in found[0][1]) == requests


def test_queues_with_anything_in_them_are_not_retired(desk: Desk) -> None:
    entry = begin(desk)
    assert not retire(desk, desk.one, desk.two)

    postpone(desk, entry, A, wait_ms=100_000)
    assert not retire(desk, desk.one, desk.two)

    run(desk, functions.close(desk.keys.request(A), A, "c", b""))
    assert retire(desk, desk.one, desk.two)
    assert not desk.client.exists(desk.one, desk.two, desk.keys.delayed_of(desk.one))


def test_what_is_left_at_a_deletion_fails_wherever_it_waits(desk: Desk) -> None:
    postpone(desk, begin(desk), A, wait_ms=100_000)
    desk.submit(B, [Start(desk.two, "0", [b"x"])])

    assert retire(desk, desk.one, desk.two, force=True)

    assert desk.watch(A) == desk.watch(B) == (b"f", b"deleted")


def test_a_branch_that_waits_for_its_next_try_stays_with_a_dead_letter_when_its_queue_goes(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"y"])])
    ((waits, _),), ((failed, _),) = desk.fetch(desk.one), desk.fetch(desk.two)
    postpone(desk, waits, A, wait_ms=100_000)
    desk.dead_letter(desk.two, failed, A, "retries", b"why")

    assert retire(desk, desk.one, desk.two, force=True)

    assert desk.client.hget(desk.keys.dead_letter(A), "!n") == b"2"


@pytest.mark.parametrize("force", [False, True])
def test_a_queue_is_needed_while_a_request_waits_for_the_result_of_another(desk: Desk, force: bool) -> None:
    entry = begin(desk)
    waits = [Awaited(desk.keys.request(A), desk.two, "m", 2, 1)]
    desk.submit(B, [Join(desk.two, "m", 2, [(0, b"template")])], awaited=waits)

    assert retire(desk, desk.two, force=force) == force

    desk.commit(desk.one, entry, A, state="d", payload=b"result")
    if force:
        assert desk.watch(B) == (b"f", b"deleted")
        assert not desk.client.exists(desk.two)
    else:
        assert len(desk.fetch(desk.two)) == 1
        assert not desk.client.exists(desk.keys.delayed_of(desk.two))


NEXT = "next"


def move_on(desk: Desk, *other_graphs: str, is_same_code: bool = False) -> None:
    """Retire the version by force when another one takes its place, which has a queue for both deployments."""
    following = {stream: stream.replace(":v:", f":{NEXT}:") for stream in (desk.one, desk.two)}
    for stream in following.values():
        create_group(desk.client, stream)
    keys = [*following, *(desk.keys.delayed_of(stream) for stream in following)]
    prefix = desk.keys.request("")
    command = functions.retire(keys, True, REPLACED, prefix, is_same_code, following, other_graphs)
    while not run(desk, command):
        assert desk.client.exists(desk.one)
    assert not desk.client.exists(*keys)
    desk.one, desk.two = following.values()


def header(request_id: str, graph: str | None = "", **more: Any) -> bytes:
    return seal_header(SEAL, Header(request_id, "app", graph, 0, **more).encode())


@pytest.mark.parametrize("is_same_code", [False, True])
def test_a_request_of_which_no_step_has_ended_goes_on_whole_in_the_next_version(desk: Desk, is_same_code: bool) -> None:
    moves = [Start(desk.one, "0", [b"x"]), Start(desk.one, "1", [b"y"]), Join(desk.two, "2", 3, [(2, b"input")])]
    desk.submit(A, moves, header=header(A))
    postpone(desk, desk.fetch(desk.one)[1][0], A, wait_ms=100_000)
    old = desk.one

    move_on(desk, is_same_code=is_same_code)

    (first, fields), (second, _) = sorted(desk.fetch(desk.one), key=lambda entry: entry[1][b"s"])
    assert (fields[b"s"], fields[b"0"]) == (b"0", b"x")
    assert desk.commit(old, first, A, step="0") == b"STALE"
    assert desk.commit(desk.one, first, A, moves=[Join(desk.two, "2", 3, [(0, b"left")])]) == b"OK"
    assert desk.commit(desk.one, second, A, moves=[Join(desk.two, "2", 3, [(1, b"right")])]) == b"OK"
    ((_, fields),) = desk.fetch(desk.two)
    assert [fields[slot] for slot in (b"0", b"1", b"2")] == [b"left", b"right", b"input"]


@pytest.mark.parametrize("has_begun", [False, True])
@pytest.mark.parametrize("is_same_code", [False, True])
@pytest.mark.parametrize("other_graphs", [(), ("",), ("another",)])
def test_a_request_goes_on_if_it_has_not_begun_or_the_code_is_the_same_and_its_graph_is(
    desk: Desk, has_begun: bool, is_same_code: bool, other_graphs: tuple[str, ...]
) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "1", [b"y"])], header=header(A))
    if has_begun:
        ((entry, _),) = desk.fetch(desk.one)
        desk.commit(desk.one, entry, A, moves=[Join(desk.two, "2", 2, [(0, b"left")])])

    move_on(desk, *other_graphs, is_same_code=is_same_code)

    if "" not in other_graphs and (is_same_code or not has_begun):
        assert desk.watch(A)[0] == b"o"
        assert [len(desk.fetch(stream)) for stream in (desk.one, desk.two)] == [int(not has_begun), 1]
    else:
        assert desk.watch(A) == (b"f", REPLACED)
        assert desk.is_idle(desk.one) and desk.is_idle(desk.two)


def test_a_stream_that_a_replica_may_still_send_does_not_go_on_with_other_code(desk: Desk) -> None:
    for request_id in (A, B):
        desk.submit(request_id, [Start(desk.one, "m", [b"x"])], header=header(request_id, None, stream=True))
    desk.client.xreadgroup(GROUP, REPLICA, {desk.one: ">"}, count=1)

    move_on(desk)

    assert desk.watch(A) == (b"f", REPLACED)
    assert len(desk.fetch(desk.one)) == 1


@pytest.mark.parametrize("is_same_code", [False, True])
def test_a_session_that_runs_never_goes_on_in_the_next_version_and_one_that_waits_does(
    desk: Desk, is_same_code: bool
) -> None:
    for request_id in (A, B):
        desk.submit(request_id, [Start(desk.one, SESSION, [b"x"])], header=header(request_id, None, stream=True))
    desk.client.xreadgroup(GROUP, REPLICA, {desk.one: ">"}, count=1)

    move_on(desk, is_same_code=is_same_code)

    assert desk.watch(A) == (b"f", REPLACED)
    assert len(desk.fetch(desk.one)) == 1


def test_a_step_that_waits_for_the_result_of_another_request_gets_it_in_the_next_version(desk: Desk) -> None:
    desk.submit(A, [Start(desk.one, "m", [b"x"])], header=header(A, None))
    waits = [Awaited(desk.keys.request(A), desk.two, "m", 2, 1)]
    given = [Join(desk.two, "m", 2, [(0, b"template")])]
    desk.submit(B, given, awaited=waits, header=header(B, None, awaits={"m.1": A}))

    move_on(desk)

    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, A, step="m", state="d", payload=b"result")
    ((_, fields),) = desk.fetch(desk.two)
    assert (fields[b"0"], fields[b"1"]) == (b"template", b"result")
    assert not desk.client.exists(desk.keys.delayed_of(desk.two))


def test_more_calls_than_one_look_takes_go_on_once_each(desk: Desk) -> None:
    requests = [f"{number:032x}" for number in range(functions.RETIRE_COUNT + 1)]
    for request_id in requests:
        desk.submit(request_id, [Start(desk.one, "0", [b"x"])], header=header(request_id))

    move_on(desk)

    found: Any = desk.client.xreadgroup(GROUP, "living", {desk.one: ">"}, count=2000)
    assert sorted(fields[b"h"][:32].decode() for _, fields in found[0][1]) == requests


def test_a_request_whose_queue_is_gone_when_its_argument_comes_fails_and_makes_no_new_queue(desk: Desk) -> None:
    entry = begin(desk)
    waits = [Awaited(desk.keys.request(A), desk.two, "m", 2, 1)]
    desk.submit(B, [Join(desk.two, "m", 2, [(0, b"template")])], awaited=waits)
    desk.client.delete(desk.two)

    desk.commit(desk.one, entry, A, state="d", payload=b"result")

    assert desk.watch(B) == (b"f", DELETED)
    assert not desk.client.exists(desk.two)


def test_a_step_that_waits_for_a_result_is_not_woken_without_it_and_the_queue_is_needed_on(desk: Desk) -> None:
    begin(desk)
    waits = [Awaited(desk.keys.request(A), desk.one, "m", 2, 1)]
    desk.submit(B, [Join(desk.one, "m", 2, [(0, b"template")])], awaited=waits)
    delayed = desk.keys.delayed_of(desk.one)
    for member in desk.client.zrange(delayed, 0, -1):
        desk.client.zadd(delayed, {member: 1})  # it is time to look

    wake(desk)

    assert desk.fetch(desk.one) == []
    assert desk.client.zcount(delayed, 2, "+inf") == 1
    run(desk, functions.close(desk.keys.request(B), B, "c", b""))
    desk.client.zadd(delayed, {desk.client.zrange(delayed, 0, 0)[0]: 1})
    wake(desk)
    assert not desk.client.exists(delayed)


def wish(max_ongoing: int = 2) -> Model:
    return Model("model", max_ongoing)


def advertise(desk: Desk, *held: str) -> str:
    personal = desk.keys.personal(desk.one, REPLICA)
    run(desk, functions.advertise(desk.keys.models_of(desk.one), personal, REPLICA, 60_000, held))
    return personal


def test_a_call_for_a_model_goes_to_the_replica_that_holds_it_while_that_is_free(desk: Desk) -> None:
    personal = advertise(desk, "model")
    for request_id in (A, B):
        desk.submit(request_id, [Start(desk.one, "0", [b"x"])], model=wish(max_ongoing=1))

    assert (desk.client.xlen(personal), desk.client.xlen(desk.one)) == (1, 1)
    desk.client.delete(personal)


def test_a_call_for_a_model_that_waits_for_a_result_is_seen_by_whoever_retires_its_queue(desk: Desk) -> None:
    entry = begin(desk)
    personal = advertise(desk, "model")
    waits = [Awaited(desk.keys.request(A), desk.one, "m", 2, 1)]
    desk.submit(B, [Join(desk.one, "m", 2, [(0, b"template")])], awaited=waits, model=wish())

    assert desk.client.zcard(desk.keys.delayed_of(desk.one)) == 1
    desk.commit(desk.one, entry, A, state="d", payload=b"result")
    assert desk.client.zcard(desk.keys.delayed_of(desk.one)) == 0
    assert len(desk.fetch(desk.one)) == 1
    desk.client.delete(personal)


def test_a_replica_that_holds_the_model_no_more_is_not_asked(desk: Desk) -> None:
    personal = advertise(desk, "model")
    advertise(desk, "another")

    desk.submit(A, [Start(desk.one, "0", [b"x"])], model=wish())

    assert (desk.client.xlen(personal), desk.client.xlen(desk.one)) == (0, 1)


def test_what_waits_for_a_replica_that_is_gone_goes_to_the_others(desk: Desk) -> None:
    personal = advertise(desk, "model")
    desk.submit(A, [Start(desk.one, "0", [b"x"])], model=wish())

    models = desk.keys.models_of(desk.one)
    assert run(desk, functions.disband(personal, desk.one, models, REPLICA, desk.keys.request(""))) == 1

    assert not desk.client.exists(personal, models)
    ((entry, fields),) = desk.fetch(desk.one)
    assert fields[b"0"] == b"x"
    assert desk.commit(desk.one, entry, A, state="d", payload=b"result") == b"OK"


def test_a_queue_that_is_gone_has_no_readers(desk: Desk) -> None:
    gone = desk.keys.stream("app", "gone", "one")
    assert if_there(lambda: desk.client.xinfo_groups(gone)) == []
    assert if_there(lambda: desk.client.xinfo_consumers(gone, GROUP)) == []
    desk.client.xadd(gone, {"a": "b"})
    assert if_there(lambda: desk.client.xinfo_consumers(gone, GROUP)) == []
