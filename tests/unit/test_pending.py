"""The open refs of one process: each gets its own end, and nobody else's."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
import redis

from qserve.base.keyring import Keyring
from qserve.calls.pending import LATE_MS, Pending
from qserve.calls.ref import Ref
from qserve.calls.replies import UNKNOWN
from qserve.exceptions import BrokerStateLost, ResultUnavailable
from qserve.wire.outcome import Outcome
from qserve.wire.sealing import Seal, seal_end

ID = "a" * 32
SEAL = Seal(Keyring())
DONE, REFUSED = Outcome("d", b"result"), Outcome("f", b"no")


def two_refs(pending: Pending) -> tuple[Ref, Ref]:
    first, second = Ref(ID, None), Ref(ID, None)
    pending.add(first, 1)
    pending.add(second, 2)
    return first, second


@pytest.mark.row("F46")
def test_a_second_end_of_a_request_that_was_answered_is_ignored() -> None:
    # a failover to an older state runs again what had been answered before
    pending = Pending(SEAL)
    first, _ = two_refs(pending)
    pending.arrive(ID.encode() + b"d" + seal_end(SEAL, ID, "d", b"result"))

    pending.arrive(ID.encode() + b"d" + seal_end(SEAL, ID, "d", b"another"))
    pending.arrive(ID.encode() + b"c")

    assert first.outcome() == DONE


def test_all_refs_to_a_request_are_told_its_end() -> None:
    pending = Pending(SEAL)
    first, second = two_refs(pending)

    pending.arrive(ID.encode() + b"d" + seal_end(SEAL, ID, "d", b"result"))

    assert first.outcome() == second.outcome() == DONE
    assert first not in pending
    assert pending.refs() == []


def test_a_ref_that_is_refused_leaves_the_others_open() -> None:
    for refused_first in (True, False):
        pending = Pending(SEAL)
        first, second = two_refs(pending)
        refused, other = (first, second) if refused_first else (second, first)

        pending.refuse(refused, REFUSED)

        assert refused.outcome() == REFUSED
        assert (refused in pending, other in pending) == (False, True)
        pending.settle(ID, DONE)
        assert (refused.outcome(), other.outcome()) == (REFUSED, DONE)


def test_a_ref_that_is_dropped_is_told_nothing() -> None:
    pending = Pending(SEAL)
    first, second = two_refs(pending)
    pending.drop(first)
    pending.drop(first)
    pending.settle(ID, DONE)
    assert (first.done.is_set(), second.done.is_set()) == (False, True)


def test_who_follows_anothers_request_does_not_decide_when_it_is_late() -> None:
    pending = Pending(SEAL)
    late_ms = int(time.time() * 1000) - 2 * LATE_MS
    own, follower = Ref("b" * 32, None), Ref(ID, None)
    pending.add(own, late_ms)
    pending.add(follower, late_ms)

    pending.follow(follower)

    assert pending.due() == ([own], [follower])


@pytest.mark.parametrize("message", [b"", b"short", b"\xff" * 40, ID.encode(), ID.encode() + b"?"])
def test_a_message_that_is_none_is_dropped_and_the_next_one_is_taken(
    message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    pending, ref = Pending(SEAL), Ref(ID, None)
    pending.add(ref)

    with caplog.at_level(logging.WARNING):
        pending.arrive(message)
    pending.arrive(ID.encode() + b"d" + seal_end(SEAL, ID, "d", b"result"))

    assert ref.outcome().payload == b"result"
    assert "no message for a mailbox" in caplog.text


class Deaf:
    """A plane for refs that are never waited for."""

    def release(self, request_id: str) -> None:
        pass


def watched(deadline_ms: int, reply: Any) -> Ref:
    """A ref that was accepted and is awaited, after the broker was asked for it."""
    pending, ref = Pending(SEAL), Ref(ID, Deaf())  # type: ignore[arg-type]
    pending.add(ref, deadline_ms)
    ref.accepted.set(None)
    pending.on_watched(ref)(reply)
    return ref


def test_a_request_of_ours_that_the_broker_does_not_know_was_lost_with_the_server_that_accepted_it() -> None:
    with pytest.raises(BrokerStateLost, match="send it again"):
        watched(1, [b"", b""]).result(timeout_s=1)


def test_a_request_from_elsewhere_that_the_broker_does_not_know_may_never_have_existed() -> None:
    with pytest.raises(ResultUnavailable):
        watched(0, [b"", b""]).result(timeout_s=1)


@pytest.mark.parametrize("deadline_ms", [0, 1])
def test_a_request_that_is_open_stays_so(deadline_ms: int) -> None:
    assert not watched(deadline_ms, [b"o", b""]).done.is_set()


def test_an_own_request_that_is_unknown_before_it_was_accepted_is_still_on_its_way() -> None:
    # another thread may look at a ref between its making and its submission
    pending, ref = Pending(SEAL), Ref(ID, None)
    pending.add(ref, 10**15)

    pending.on_watched(ref)(UNKNOWN)

    assert not ref.done.is_set()


def test_a_look_that_the_broker_cannot_answer_now_ends_nothing() -> None:
    pending, ref = Pending(SEAL), Ref(ID, None)
    pending.add(ref, 10**15)
    ref.accepted.set(None)

    pending.on_watched(ref)(redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"))

    assert not ref.done.is_set()
