"""Which state of the broker this process works with: a broker that lost its data has another epoch, or none."""

from __future__ import annotations

from typing import Any

from qserve.base.keys import Keys
from qserve.wire.moves import Epoch

_OTHER = b"EPOCH "


class KnownEpoch:
    """The epoch that a process has last seen; "" before the first answer that tells it.

    Commands carry it, and the functions refuse those that were meant for data that is no more.
    """

    def __init__(self, keys: Keys) -> None:
        self.key = keys.epoch
        self.value = ""

    def current(self) -> Epoch:
        """What commands carry."""
        return Epoch(self.key, self.value)

    def adopt(self, value: str) -> bool:
        """Go on with the broker's epoch; whether data was lost since the one that was known before."""
        is_lost = bool(self.value) and value != self.value
        self.value = value
        return is_lost


def other_epoch(reply: Any) -> str | None:
    """The broker's epoch when a function refused a command because of it ("" for none); else None."""
    return reply[len(_OTHER) :].decode() if isinstance(reply, bytes) and reply.startswith(_OTHER) else None
