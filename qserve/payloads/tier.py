"""What every tier of the payload store can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from qserve.wire.claim import Claim, Part

PIECE_BYTES = 256 * 1024
"""In how many bytes at a time a value is read that is sent on."""
IsKnown = Callable[[list[str]], list[bool]]
"""Returns of each value by its name whether the broker knows it: a request, a dead letter or a kept result holds it."""


class TierFull(Exception):
    """Raised when a tier has no room for a value, or cannot be reached: the next tier takes it."""


class TierStats(NamedTuple):
    """What one tier holds: its values, their bytes, and the seconds since the oldest was stored."""

    tier: str
    values: int
    bytes: int
    oldest_s: float


class Filler(Protocol):
    """Stores a value that comes in pieces, none of which it keeps. One thread uses it."""

    size: int

    def write(self, piece: memoryview) -> None:
        """Store the next piece; TierFull if there is no room for it, or the tier cannot be reached."""

    def written(self) -> Iterator[memoryview | bytes]:
        """Return again what was stored."""

    def finish(self) -> Claim:
        """Return the claim of all of it, which is at least one byte."""

    def abort(self) -> None:
        """Remove it all."""


class Tier(Protocol):
    """One place for values. All of it may be called by any thread."""

    name: str
    heavy_from: int
    """How many bytes take so long to store or to read that an event loop should leave that to a thread."""

    def put(self, parts: Sequence[Part], size: int) -> Claim:
        """Store a value and return its claim; TierFull if it has no room or cannot be reached.

        Parameters:
          parts: What it consists of, by their offsets; between them it may hold anything.
          size: Its bytes.
        """

    def filler(self, size: int | None) -> Filler:
        """Return what stores a value piece by piece; TierFull if the tier has no room for it, or cannot be reached.

        Parameters:
          size: Its bytes, if they are known.
        """

    def pieces(self, claim: Claim) -> Iterator[bytes]:
        """Return the bytes of a value piece by piece; raises as ``get`` does, maybe after the last one."""

    def get(self, claim: Claim) -> memoryview:
        """Return the bytes of a value; see ``ValueStore.get``."""

    def settled(self, names: Iterable[str]) -> None:
        """Note that the broker knows these values of this process, or never will; unknown names are ignored."""

    def forget(self, claims: Iterable[Claim]) -> None:
        """Remove values; those that are gone already are ignored."""

    def sweep(self, is_known: IsKnown) -> None:
        """Remove the values of this installation that nobody wants."""

    def trim(self) -> None:
        """Give back what this process keeps for its next values, and has not needed for a while."""

    def stats(self) -> TierStats | None:
        """Return what the tier holds; None if that cannot be told without looking at everything."""

    def close(self) -> None:
        """Give back all that this process keeps; its values stay."""


def pieces(parts: Sequence[Part], size: int, length: int) -> Iterator[bytes | memoryview]:
    """Yield a value in pieces of one length, the last of which may be shorter; gaps between its parts are zeros.

    A piece that lies within one part is not copied.
    """
    for begin in range(0, size, length):
        end = min(begin + length, size)
        within = [(offset, data) for offset, data in parts if offset < end and offset + len(data) > begin]
        if len(within) == 1 and within[0][0] <= begin and within[0][0] + len(within[0][1]) >= end:
            offset, data = within[0]
            yield data[begin - offset : end - offset]
            continue
        piece = bytearray(end - begin)
        for offset, data in within:
            first, last = max(offset, begin), min(offset + len(data), end)
            piece[first - begin : last - begin] = data[first - offset : last - offset]
        yield memoryview(piece)
