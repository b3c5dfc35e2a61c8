"""How far a request is, as its code reports it."""

from __future__ import annotations

from typing import NamedTuple

import msgpack

from qserve.exceptions import PayloadError
from qserve.wire.codec import unpack

MESSAGE_LIMIT = 500


class Progress(NamedTuple):
    """How far a request is.

    Parameters:
      fraction: The part that is done, from 0 to 1.
      message: What is being done, for people.
    """

    fraction: float
    message: str = ""

    def encode(self) -> bytes:
        """Return it as msgpack."""
        return msgpack.packb([self.fraction, self.message], unicode_errors="replace")  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> Progress:
        """Read what ``encode`` wrote; raise PayloadError for anything else."""
        found = unpack(data, "a progress")
        parts = found[: len(cls._fields)] if type(found) is list else []
        if list(map(type, parts)) != [float, str] or not 0 <= parts[0] <= 1:
            raise PayloadError(f"{len(data)} bytes are not a progress")
        return cls(*parts)
