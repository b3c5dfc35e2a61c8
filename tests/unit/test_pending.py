"""What the refs of one process learn from looks at the broker."""

from __future__ import annotations

import redis

from qserve.plane.pending import Pending
from qserve.plane.replies import UNKNOWN
from qserve.ref import Ref
from qserve.wire.signing import Keyring, Seal

SOON_MS = 10**15


def pending_ref() -> tuple[Pending, Ref]:
    pending, ref = Pending(Seal(Keyring())), Ref("0" * 32, None)
    pending.add(ref, SOON_MS)
    return pending, ref


def test_a_request_that_is_unknown_before_it_was_accepted_is_still_on_its_way() -> None:
    pending, ref = pending_ref()

    pending.on_watched(ref)(UNKNOWN)

    assert not ref.done.is_set()
    assert ref in pending


def test_a_request_that_is_unknown_after_it_was_accepted_is_lost() -> None:
    pending, ref = pending_ref()
    ref.accepted.set(None)

    pending.on_watched(ref)(UNKNOWN)

    assert b"BrokerStateLost" in ref.outcome().payload


def test_a_look_that_the_broker_cannot_answer_now_ends_nothing() -> None:
    pending, ref = pending_ref()
    ref.accepted.set(None)

    pending.on_watched(ref)(redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"))

    assert not ref.done.is_set()
