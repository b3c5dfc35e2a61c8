"""The moves of a call that has ended: the calls that it starts, and the slots that it fills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

INPUTS_LIMIT = 3000
"""The most inputs of one step, which are the fields of one entry: Lua can pass 7,999 values to a command."""
STEPS_LIMIT = 10_000
"""The most steps of one graph, and so the most that one result goes to: a commit starts all of them in one act."""
BYTES_LIMIT = 256 * 1024 * 1024
"""The most bytes of values that one command carries: the broker closes connections that send it more than 1 GiB."""


@dataclass
class Epoch:
    """The state of the broker that commands are meant for: every broker that has lost its data gets another value.

    Commands carry the one that their process has last seen ("": none yet), and the functions refuse those that were
    meant for data that is lost.
    """

    key: str
    value: str | bytes = ""

    def adopt(self, value: str | bytes) -> bool:
        """Continue with the broker's epoch; return whether data was lost since the one that was known before."""
        is_lost = bool(self.value) and value != self.value
        self.value = value
        return is_lost


class Start(NamedTuple):
    """A move: put the call ``step`` on ``stream`` with all its values."""

    stream: str
    step: str
    values: Sequence[bytes]


class Join(NamedTuple):
    """A move: fill slots of the call ``step``; it goes on ``stream`` when ``needs`` of them are there."""

    stream: str
    step: str
    needs: int
    slots: Sequence[tuple[int, bytes]]


Move = Start | Join


class Awaited(NamedTuple):
    """An argument that is another request's result: it fills ``slot`` of ``step`` when that request is done."""

    request: str
    stream: str
    step: str
    needs: int
    slot: int


class Model(NamedTuple):
    """The model that a call is for ("": none): a replica that holds it gets the call, when one is free.

    Parameters:
      max_ongoing: Calls that a replica takes at once.
    """

    model_id: str = ""
    max_ongoing: int = 0
