"""A delivery on its way through a replica."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from qserve.engine.invoke import Invocation
from qserve.wire.outcome import CallField
from qserve.wire.sealing import Seal, open_header, open_values

_SLOTS = [str(number).encode() for number in range(256)]


class Tag(NamedTuple):
    """Which entry of which stream a delivery is."""

    stream: str
    entry_id: bytes


class Delivery(NamedTuple):
    """A call as it was read from a stream: an entry with its raw fields."""

    tag: Tag
    fields: dict[bytes, bytes]


@dataclass(slots=True, eq=False)
class Work(Invocation):
    """A delivery that runs.

    Parameters:
      overdue_at: When the watchdog ends it, by the monotonic clock; None as long as it has not seen it.
    """

    delivery: Delivery
    overdue_at: float | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, delivery: Delivery, seal: Seal) -> Work:
        """Read a delivery.

        Raises:
          Exception: Fields are missing, cannot be read, or were not sealed with one of our keys.
        """
        fields = delivery.fields
        return cls(open_header(seal, fields[CallField.HEADER]), fields[CallField.STEP].decode(), delivery)

    @property
    def tag(self) -> Tag:
        return self.delivery.tag

    @property
    def tries(self) -> int:
        """How often the call was tried again before."""
        return int(self.delivery.fields.get(CallField.TRIES, 0))

    def values(self, seal: Seal) -> list[bytes]:
        """Return its arguments, encoded.

        Raises:
          PayloadError: One of them was not sealed for this call.
        """
        fields = self.delivery.fields
        values = [fields[slot] for slot in takewhile(fields.__contains__, _SLOTS)]
        return open_values(seal, self.tag.stream, self.header, self.step, values)
