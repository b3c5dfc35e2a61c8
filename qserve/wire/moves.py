"""What a call starts when it ends: the values that the functions in the broker are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Epoch(NamedTuple):
    """Which state of the broker a command is meant for: every broker that has lost its data gets another value."""

    key: str
    value: str


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
