"""The mailbox: what comes in for the refs of one process."""

from __future__ import annotations

import logging

import pytest

from qserve.plane.pending import Pending
from qserve.plane.sealing import seal_end
from qserve.ref import Ref
from qserve.wire.signing import Keyring, Seal

SEAL = Seal(Keyring(b"test-key"))
REQUEST_ID = "a" * 32


@pytest.mark.parametrize("message", [b"", b"short", b"\xff" * 40, REQUEST_ID.encode(), REQUEST_ID.encode() + b"?"])
def test_a_message_that_is_none_is_dropped_and_the_next_one_is_taken(
    message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    pending, ref = Pending(SEAL), Ref(REQUEST_ID, None)
    pending.add(ref)

    with caplog.at_level(logging.WARNING):
        pending.arrive(message)
    pending.arrive(REQUEST_ID.encode() + b"d" + seal_end(SEAL, REQUEST_ID, "d", b"result"))

    assert ref.outcome().payload == b"result"
    assert "no message for a mailbox" in caplog.text
