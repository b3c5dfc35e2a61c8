"""A delivery on its way through a replica."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import NamedTuple

from qserve.base.clock import clock
from qserve.base.context import RequestContext
from qserve.base.keys import CLOCK_MARGIN_MS, Keys
from qserve.broker import functions
from qserve.broker.library import Command
from qserve.engine.step import Call, Conclusion
from qserve.wire.envelope import REQUEST_ID_CHARS, Header
from qserve.wire.failure import Failure
from qserve.wire.moves import Epoch
from qserve.wire.outcome import State
from qserve.wire.sealing import Seal, open_header, open_values, seal_end, seal_moves

HISTORY_CHARS = 200
"""How much of an error's text goes into the history of its call."""
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
    def of(cls, delivery: Delivery, seal: Seal) -> Work:
        """Read a delivery.

        Raises:
          Exception: Fields are missing, cannot be read, or were not sealed by one of us.
        """
        fields = delivery.fields
        return cls(delivery, open_header(seal, fields[b"h"]), fields[b"s"].decode(), began=time.monotonic())

    def values(self, seal: Seal) -> list[bytes]:
        """The values of its slots, encoded; PayloadError when one was not sealed for this call."""
        fields = self.delivery.fields
        values = []
        for slot in _SLOTS:
            if slot not in fields:
                break
            values.append(fields[slot])
        return open_values(seal, self.delivery.tag.stream, self.header, self.step, values)

    def context(self) -> RequestContext:
        """What user code may know of the request."""
        header = self.header
        return RequestContext(header.trace_id, header.route, header.app, header.model_id, header.deadline_ms)

    def commit_command(self, keys: Keys, conclusion: Conclusion, epoch: Epoch, seal: Seal) -> Command:
        """What ends this call at the broker."""
        tag, request_id = self.delivery.tag, self.header.request_id
        return functions.commit(
            tag.stream,
            keys.request(request_id),
            tag.entry_id,
            request_id,
            epoch,
            tag.entry_id.decode(),
            self.step,
            seal_moves(seal, request_id, conclusion.moves),
            conclusion.state,
            seal_end(seal, request_id, conclusion.state, conclusion.payload),
        )

    def tries(self) -> int:
        """How often the call was tried again before."""
        return int(self.delivery.fields.get(b"t", 0))

    def postpone_command(
        self, keys: Keys, stream: str, wait_s: float, tries: int, replica: str, error: BaseException
    ) -> Command:
        """What ends this try, and brings the call back to its deployment's ``stream`` after a wait."""
        tag, request = self.delivery.tag, keys.request(self.header.request_id)
        delayed = keys.delayed_of(stream)
        wait_ms = int(wait_s * 1000)
        life_ms = wait_ms + max(0, self.header.deadline_ms - int(clock.judge_ms())) + CLOCK_MARGIN_MS
        return functions.postpone(
            tag.stream, request, delayed, tag.entry_id, wait_ms, tries, life_ms, replica, _said(error)
        )

    def bury_command(self, keys: Keys, why: str, failure: Failure, replica: str, seal: Seal) -> Command:
        """What ends this call as a dead letter."""
        tag, request_id = self.delivery.tag, self.header.request_id
        request, said = keys.request(request_id), f"{failure.type}: {failure.message}"[:HISTORY_CHARS]
        told = seal_end(seal, request_id, State.FAILED, failure.encode())
        return functions.bury(tag.stream, request, tag.entry_id, request_id, why, told, replica, said)


def bury_unread(keys: Keys, delivery: Delivery, failure: Failure, replica: str, seal: Seal) -> Command:
    """What ends a delivery that cannot be read.

    Whose it is, only its first bytes say; where they name no open request, it gets an id of its own among the dead
    letters.
    """
    tag = delivery.tag
    claimed = delivery.fields.get(b"h", b"")[:REQUEST_ID_CHARS].decode("latin-1")
    told = seal_end(seal, claimed, State.FAILED, failure.encode())
    return functions.bury(
        tag.stream, keys.request(claimed), tag.entry_id, claimed, "unreadable", told, replica,
        failure.message[:HISTORY_CHARS], known=False,
    )  # fmt: skip


def _said(error: BaseException) -> str:
    failure = Failure.of(error)
    return f"{failure.type}: {failure.message}"[:HISTORY_CHARS]
