"""The header of a request: what it carries beside its values takes no bytes where there is nothing."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from qserve.base.carried import Carried
from qserve.exceptions import PayloadError
from qserve.wire.envelope import Header

A = "a" * 32
WITHOUT = Header(A, "app", None, 1_700_000_000_000)
CARRIED = Carried("00-" + "1" * 32 + "-" + "2" * 16 + "-01", "a=1", "acme", {"accept-language": "de"})


def test_a_header_that_carries_nothing_is_what_it_was_before_there_was_anything_to_carry() -> None:
    before = A.encode() + msgpack.packb(["app", None, 1_700_000_000_000, 0, "", "", "", False, {}])
    assert WITHOUT.encode() == before
    assert Header.decode(before) == WITHOUT


def test_a_header_brings_what_it_carries() -> None:
    header = WITHOUT._replace(carried=CARRIED)
    assert Header.decode(header.encode()) == header


def test_a_later_release_may_carry_more() -> None:
    carried = CARRIED._replace(origin=CARRIED.traceparent, is_timed=True)
    parts = [*WITHOUT[1:-1], [*carried.encode(), "what comes later"]]
    assert Header.decode(A.encode() + msgpack.packb(parts, default=dict)).carried == carried


@pytest.mark.parametrize("more", [{}, {"origin": CARRIED.traceparent}, {"is_timed": True}])
def test_each_part_of_what_is_carried_arrives(more: dict[str, Any]) -> None:
    header = WITHOUT._replace(carried=CARRIED._replace(**more))
    assert Header.decode(header.encode()) == header


@pytest.mark.parametrize(
    "carried",
    [
        "text",
        [],
        ["", "", ""],
        ["", "", 1, {}],
        ["", "", "", []],
        ["", "", "", {"a": 1}],
        ["", "", "", {1: "a"}],
        ["", "", "", {}, 1],
        ["00-0-0-0", "", "", {}],
    ],
)
def test_what_is_malformed_is_refused(carried: Any) -> None:
    with pytest.raises(PayloadError):
        Header.decode(A.encode() + msgpack.packb([*WITHOUT[1:-1], carried], default=dict))
