"""The claim in front of an encoded value."""

from __future__ import annotations

from typing import Any

import pytest

from qserve.exceptions import PayloadError
from qserve.wire.claim import BROKER, FOLDER, MEMORY, Claim, apart, claim_in, wrap
from qserve.wire.codec import Codec

NAME = "0123456789abcdef" * 2
IN_MEMORY = Claim(MEMORY, f"a-host.example/{NAME}/qserve-1000-0123456789abcdef", NAME, 8 << 20, b"n" * 16)
IN_BROKER = Claim(BROKER, "", NAME, 1, b"d" * 32)
IN_FOLDER = Claim(FOLDER, "0123456789abcdef", NAME, 1 << 31, b"d" * 32)


@pytest.mark.parametrize("claim", [IN_MEMORY, IN_BROKER, IN_FOLDER], ids=lambda claim: claim.store)
def test_a_claim_is_read_back_and_the_rest_is_left_as_it_was(claim: Claim) -> None:
    data = wrap(claim, b"inline")

    assert claim_in(data) == claim
    assert apart(data) == (claim, b"inline")


@pytest.mark.parametrize("value", [None, 5, b"\xc1V", "text", [1, 2], b""])
def test_a_value_that_travels_whole_has_no_claim(value: Any) -> None:
    data = Codec().encode(value)

    assert claim_in(data) is None
    assert apart(data) == (None, data)


@pytest.mark.parametrize(
    "change",
    [
        {"store": "disk"},
        {"place": "../../etc"},
        {"place": IN_MEMORY.place + "\n"},
        {"place": IN_MEMORY.place + "/.."},
        {"place": ""},
        {"name": "../" + NAME},
        {"name": NAME.upper()},
        {"name": NAME[1:]},
        {"size": 0},
        {"size": -1},
        {"size": 1 << 60},
        {"size": "1_0"},
        {"digest": b"short"},
    ],
    ids=str,
)
def test_a_claim_with_anything_else_in_it_is_refused(change: dict[str, Any]) -> None:
    data = wrap(IN_MEMORY._replace(**change), b"")

    with pytest.raises(PayloadError, match="the claim of a value is malformed"):
        apart(data)


def test_a_claim_that_is_cut_off_is_refused() -> None:
    data = wrap(IN_FOLDER, b"")

    for length in range(2, len(data)):
        with pytest.raises(PayloadError):
            claim_in(data[:length])
