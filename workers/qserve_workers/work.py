"""A delivery on its way through a replica."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from qserve.context import RequestContext
from qserve.engine.step import Call, Conclusion
from qserve.keys import DELAYED_TTL_MS, Keys
from qserve.plane import functions
from qserve.plane.functions import Command
from qserve.plane.transport import Delivery
from qserve.wire.envelope import Header

_SLOTS = [str(number).encode() for number in range(256)]


@dataclass(slots=True, eq=False)
class Work:
    """A delivery that runs.

    Parameters:
      call: What it stands for, once it was opened.
      began: When, by the monotonic clock.
      task: What runs it, for coroutines.
    """

    delivery: Delivery
    header: Header
    step: str
    call: Call | None = None
    began: float = 0.0
    task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, delivery: Delivery) -> Work:
        """Read a delivery.

        Raises:
          Exception: Fields are missing or cannot be read.
        """
        fields = delivery.fields
        return cls(delivery, Header.decode(fields[b"h"]), fields[b"s"].decode(), began=time.monotonic())

    def values(self) -> list[bytes]:
        """The values of its slots, encoded."""
        fields = self.delivery.fields
        values = []
        for slot in _SLOTS:
            if slot not in fields:
                break
            values.append(fields[slot])
        return values

    def context(self) -> RequestContext:
        """What user code may know of the request."""
        header = self.header
        return RequestContext(header.trace_id, header.route, header.app, header.model_id, header.deadline_ms)

    def commit_command(self, keys: Keys, conclusion: Conclusion) -> Command:
        """What ends this call at the broker."""
        tag, request_id = self.delivery.delivery_tag, self.header.request_id
        return functions.commit(
            tag.stream,
            keys.request(request_id),
            tag.entry_id,
            request_id,
            tag.entry_id.decode(),
            self.step,
            conclusion.moves,
            conclusion.state,
            conclusion.payload,
        )

    def tries(self) -> int:
        """How often the call was tried again before."""
        return int(self.delivery.fields.get(b"t", 0))

    def postpone_command(self, keys: Keys, stream: str, wait_s: float, tries: int) -> Command:
        """What ends this try, and brings the call back to its deployment's ``stream`` after a wait."""
        tag, request = self.delivery.delivery_tag, keys.request(self.header.request_id)
        delayed = keys.delayed_of(stream)
        wait_ms = int(wait_s * 1000)
        return functions.postpone(tag.stream, request, delayed, tag.entry_id, wait_ms, tries, DELAYED_TTL_MS)
