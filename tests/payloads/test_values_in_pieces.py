"""Values that are stored and read piece by piece."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qserve.exceptions import PayloadError, ValueLost
from qserve.payloads.segments import Segments
from qserve.payloads.shm_folder import SHM
from qserve.payloads.tier import PIECE_BYTES, TierFull

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
MB = 1 << 20


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder in memory of this test's own."""
    path = SHM / f"test-{os.urandom(8).hex()}"
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


@pytest.fixture
def segments(root: Path) -> Segments:
    return Segments(lambda: "epoch", root=root)


def files(root: Path) -> list[Path]:
    return [path for path in root.glob("*/*/*") if path.is_file()] + [
        path for path in root.glob("*/p/*/*") if path.name != "lock"
    ]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [1, PIECE_BYTES - 1, PIECE_BYTES, 5 * MB + 3])
def test_a_value_is_stored_piece_by_piece_whether_its_length_is_known_or_not(
    segments: Segments, size: int, known: bool
) -> None:
    data = os.urandom(size)
    for _ in range(3):  # the second one finds a segment that was used before
        filler = segments.filler(size if known else None)
        for begin in range(0, size, 300_000):
            filler.write(memoryview(data)[begin : begin + 300_000])
        claim = filler.finish()
        assert claim.size == size
        assert segments.get(claim) == data
        pieces = list(segments.pieces(claim))
        assert b"".join(pieces) == data and max(map(len, pieces)) <= PIECE_BYTES
        segments.forget([claim])


def test_a_value_that_was_given_up_leaves_nothing(segments: Segments, root: Path) -> None:
    filler = segments.filler(None)
    filler.write(memoryview(b"x" * MB))
    filler.abort()
    assert files(root) == []


def test_two_values_that_come_at_the_same_time_do_not_share_a_segment(segments: Segments) -> None:
    first, second = segments.filler(MB), segments.filler(MB)
    third = segments.put([(0, memoryview(b"3" * MB))], MB)
    for number, filler in enumerate((first, second)):
        filler.write(memoryview(b"%d" % number * MB))
    claims = first.finish(), second.finish(), third
    assert [bytes(segments.get(claim)) for claim in claims] == [b"0" * MB, b"1" * MB, b"3" * MB]


def test_a_segment_that_has_grown_is_read_to_its_new_end(segments: Segments) -> None:
    small = segments.filler(None)
    small.write(memoryview(b"x"))
    claim = small.finish()
    assert segments.get(claim) == b"x"
    segments.forget([claim])
    large, data = segments.filler(None), os.urandom(3 * MB)
    large.write(memoryview(data))
    assert segments.get(large.finish()) == data


def test_a_value_takes_memory_only_as_its_pieces_come_and_stops_at_the_limit(root: Path) -> None:
    segments = Segments(lambda: "epoch", limit=4 * MB, root=root)
    filler = segments.filler(None)
    filler.write(memoryview(b"x"))
    assert segments.stats().bytes <= 2 * MB
    with pytest.raises(TierFull, match="QSERVE_SHM_LIMIT"):
        for _ in range(5):
            filler.write(memoryview(b"x" * MB))
    assert b"".join(filler.written()) == b"x" * filler.size and filler.size > 2 * MB
    filler.abort()
    with pytest.raises(TierFull, match="QSERVE_SHM_LIMIT"):
        segments.filler(5 * MB)


def test_a_value_that_is_forgotten_while_it_is_read_in_pieces_is_lost(segments: Segments) -> None:
    claim = segments.put([(0, memoryview(b"x" * MB))], MB)
    pieces = segments.pieces(claim)
    next(pieces)
    segments.forget([claim])
    with pytest.raises(ValueLost):
        next(pieces)


def test_another_value_in_its_place_is_not_taken_for_it(segments: Segments) -> None:
    claim = segments.put([(0, memoryview(b"x" * MB))], MB)
    with pytest.raises(PayloadError):
        next(segments.pieces(claim._replace(digest=bytes(16))))
