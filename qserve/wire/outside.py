"""What leaves an encoded value: which of its parts are large, where each is among those that are stored, and the store.

Nothing here encodes or decodes; the codec asks while it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import msgpack

from qserve.exceptions import PayloadError
from qserve.wire.claim import Claim, Kind, Part
from qserve.wire.codes import Code

WALKED = frozenset((list, dict, tuple, set, frozenset))
"""The containers that the codec goes through."""
_ALIGNED = 64


class Stored(NamedTuple):
    """Bytes that are in the store already, all that their claim says; nothing else of their value is stored."""

    claim: Claim


class Values(Protocol):
    """Where the large parts of values go, see ``qserve.payloads``."""

    threshold: int
    """From how many bytes on a part is large."""
    max_bytes: int

    def put(self, parts: Sequence[Part], size: int, kind: Kind) -> Claim: ...
    def get(self, claim: Claim) -> memoryview: ...
    def is_heavy(self, size: int, kind: Kind) -> bool: ...
    def is_heavy_to_get(self, claim: Claim) -> bool: ...
    def forget(self, claims: Iterable[Claim]) -> None: ...


class Outside:
    """The parts of one value that are to be stored, and their offsets."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.size: int = 0
        self.stored: Claim | None = None

    def add(self, data: memoryview) -> msgpack.ExtType:
        """Add a part, and return what stands for it in the value."""
        offset = -(-self.size // _ALIGNED) * _ALIGNED
        self.parts.append((offset, data.cast("B")))
        self.size = offset + data.nbytes
        return msgpack.ExtType(Code.BUFFER, msgpack.packb([offset, data.nbytes]))

    def take(self, claim: Claim) -> msgpack.ExtType:
        """Return what stands for all of a segment that is stored already.

        Raises:
          PayloadError: There is another one.
        """
        if self.stored not in (None, claim):
            raise PayloadError("a value has two bodies that are stored already")
        self.stored = claim
        return msgpack.ExtType(Code.BUFFER, msgpack.packb([0, claim.size]))


def part_of(segment: memoryview | None, place: Any) -> memoryview:
    """Return a part of a stored value, given what stands for it."""
    if segment is None or type(place) is not list or [*map(type, place)] != [int, int]:
        raise PayloadError("a part of a stored value is malformed")
    offset, length = place
    if not 0 <= offset <= offset + length <= len(segment):
        raise PayloadError("a part of a stored value is outside of it")
    return segment[offset : offset + length]


def has_large(value: Any, limit: int, depth: int) -> bool:
    """Return whether there are so many bytes in one piece somewhere in lists, dicts, tuples and sets.

    Parameters:
      limit: How many.
      depth: How many levels are looked at.
    """
    if type(value) is bytes:
        return len(value) >= limit
    level = [value] if type(value) in WALKED else []
    for _ in range(depth):
        below = []
        for container in level:
            items = container.values() if type(container) is dict else container
            kinds = {*map(type, items)}  # at C's pace: most long lists hold numbers only
            if bytes in kinds and any(type(item) is bytes and len(item) >= limit for item in items):
                return True
            if not WALKED.isdisjoint(kinds):
                below += [item for item in items if type(item) in WALKED]
        level = below
    return False
