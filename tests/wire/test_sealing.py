"""Sealed messages: each opens for its own request, step, slot and queue, whatever the version."""

from __future__ import annotations

import pytest
from desk import SEAL, A, B

from qserve.base.keys import Keys
from qserve.exceptions import AppNotFound, PayloadError, ReplicaLost
from qserve.wire.envelope import Header
from qserve.wire.failure import Failure
from qserve.wire.moves import Join, Start
from qserve.wire.outcome import Outcome
from qserve.wire.sealing import (
    DELETED,
    INHERITED,
    LOST,
    item_context,
    open_end,
    open_header,
    open_values,
    place_of,
    seal_end,
    seal_header,
    seal_moves,
)

KEYS = Keys()
ONE, TWO = KEYS.stream("app", "v1", "one"), KEYS.stream("app", "v1", "two")


def header(request_id: str = A, **parts: object) -> Header:
    return Header(request_id, "app", "", 0, **parts)  # type: ignore[arg-type]


def start(stream: str = ONE, request_id: str = A, step: str = "0") -> list[bytes]:
    (move,) = seal_moves(SEAL, request_id, [Start(stream, step, [b"x", b"y"])])
    assert isinstance(move, Start)
    return list(move.values)


def test_the_values_of_a_call_open_in_its_place() -> None:
    assert open_values(SEAL, ONE, header(), "0", start()) == [b"x", b"y"]


@pytest.mark.parametrize(
    ("stream", "request_id", "step", "values"),
    [
        (TWO, A, "0", start()),
        (KEYS.stream("other", "v1", "one"), A, "0", start()),
        (Keys("elsewhere").stream("app", "v1", "one"), A, "0", start()),
        (ONE, B, "0", start()),
        (ONE, A, "1", start()),
        (ONE, A, "0", start()[::-1]),
    ],
    ids=["another queue", "another application", "another installation", "another request", "another step", "slots"],
)
def test_they_open_in_no_other(stream: str, request_id: str, step: str, values: list[bytes]) -> None:
    with pytest.raises(PayloadError):
        open_values(SEAL, stream, header(request_id), step, values)


def test_a_queue_is_the_same_place_in_every_version_and_for_every_replica() -> None:
    assert place_of(ONE) == place_of(KEYS.stream("app", "v2", "one"))
    assert place_of(ONE) == place_of(KEYS.personal(ONE, "one-host-1f"))
    assert place_of(ONE) != place_of(TWO)


def test_a_result_that_another_call_takes_opens_where_its_submitter_said() -> None:
    result = seal_end(SEAL, B, "d", b"result")
    (join,) = seal_moves(SEAL, A, [Join(ONE, "m", 2, [(0, b"template")])])
    assert isinstance(join, Join)
    values = [join.slots[0][1], result]

    assert open_values(SEAL, ONE, header(awaits={"m.1": B}), "m", values) == [b"template", b"result"]
    with pytest.raises(PayloadError):
        open_values(SEAL, ONE, header(awaits={"m.1": "c" * 32}), "m", values)
    with pytest.raises(PayloadError):
        open_values(SEAL, ONE, header(), "m", values)


def test_a_header_belongs_to_its_request() -> None:
    sealed = seal_header(SEAL, header().encode())

    assert open_header(SEAL, sealed) == header()
    with pytest.raises(PayloadError):
        open_header(SEAL, B.encode() + sealed[32:])


def test_a_result_is_no_result_of_another_request() -> None:
    sealed = seal_end(SEAL, A, "d", b"result")

    assert open_end(SEAL, A, Outcome("d", sealed)) == ("d", b"result")
    assert open_end(SEAL, B, Outcome("d", sealed)).state == "f"


@pytest.mark.parametrize("state", ["f", "c", "x"])
def test_an_end_that_was_not_sealed_for_this_request_and_this_state_is_told_as_such(state: str) -> None:
    told = Failure("builtins", "ValueError", "no").encode()
    other_state = next(one for one in "fcx" if one != state)

    assert open_end(SEAL, A, Outcome(state, seal_end(SEAL, A, state, told))) == (state, told)
    for forged in (told, b"", seal_end(SEAL, B, state, told), seal_end(SEAL, A, other_state, told)):
        outcome = open_end(SEAL, A, Outcome(state, forged))
        assert Failure.decode(outcome.payload).type == "PayloadError"


def test_an_end_of_another_request_is_believed_of_one_that_waited_for_it() -> None:
    head = seal_header(SEAL, header(awaits={"m.1": B}).encode())
    end = seal_end(SEAL, B, "c", b"")
    whole = b"%b\1%08d%b%b%b" % (INHERITED, len(head), head, B.encode(), end)

    assert open_end(SEAL, A, Outcome("c", whole)) == ("c", b"")
    stranger = seal_header(SEAL, header(awaits={"m.1": "c" * 32}).encode())
    for forged in (whole.replace(head, stranger), whole[:-1], whole[:30], whole.replace(B.encode(), A.encode())):
        assert open_end(SEAL, A, Outcome("c", forged)).state == "f"
    assert open_end(SEAL, B, Outcome("c", whole)).state == "f"
    assert open_end(SEAL, A, Outcome("d", whole)).state == "f"


@pytest.mark.parametrize(("word", "kind"), [(LOST, ReplicaLost), (DELETED, AppNotFound)])
def test_what_the_functions_say_of_themselves_is_a_word(word: bytes, kind: type[Exception]) -> None:
    outcome = open_end(SEAL, A, Outcome("f", word))
    assert isinstance(Failure.decode(outcome.payload).to_exception(), kind)


def test_an_item_has_its_place_in_the_stream() -> None:
    sealed = SEAL.seal(item_context(A, 0), b"item")

    assert SEAL.open(item_context(A, 0), sealed) == b"item"
    with pytest.raises(PayloadError):
        SEAL.open(item_context(A, 1), sealed)
