"""The states of a request, and how one ended."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """The state of a request; the values are what the broker stores."""

    OPEN = "o"
    DONE = "d"
    FAILED = "f"
    CANCELLED = "c"
    EXPIRED = "x"


ITEM = "i"
"""Stands in the place of a state in a mailbox's message that holds one item of a streamed result."""


class Outcome(NamedTuple):
    """How a request ended: any state but open, with the bytes of its result or failure."""

    state: str
    payload: bytes
