"""The parts of a WebSocket's messages: cut, numbered, and put together again."""

from __future__ import annotations

import pytest

from qserve.exceptions import PayloadError
from qserve.wire.websocket import PART_BYTES, Farewell, Kind, Part, farewell, part_in, parts_of, text_of


@pytest.mark.parametrize("text", ["", "a" * PART_BYTES, "a" + "\U0001f600" * PART_BYTES, "\u20ac" * PART_BYTES])
def test_text_is_cut_between_two_characters_and_only_its_last_part_says_that_it_is_the_last(text: str) -> None:
    parts = list(parts_of(Kind.TEXT, text.encode()))

    assert "".join(text_of(part.data) for part in parts) == text
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(len(part.encode(0)) <= 16 * 1024 for part in parts)


def test_a_part_in_the_place_of_a_lost_one_is_refused_also_where_nothing_is_signed() -> None:
    part = Part(Kind.BINARY, b"data", False)

    assert part_in(part.encode(3), 3) == part
    with pytest.raises(PayloadError, match="part 3 .* in the place of part 2"):
        part_in(part.encode(3), 2)


def test_an_end_has_its_code_and_reason() -> None:
    how = Farewell(4321, "enough \u20ac")

    assert farewell(how.part().data) == how
    with pytest.raises(PayloadError):
        farewell(b"\x03\xe8\xff")
