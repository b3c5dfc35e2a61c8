"""The states of a request, and how one ended."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """The state of a request; the values are what the broker stores, and what its functions know."""

    OPEN = "o"
    DONE = "d"
    FAILED = "f"
    CANCELLED = "c"
    EXPIRED = "x"


ENDS = frozenset(State) - {State.OPEN}
_FOLLOWING: Mapping[str, frozenset[State]] = {
    State.OPEN: ENDS,
    # its dead letter is replayed
    State.FAILED: frozenset((State.OPEN,)),
}


def may_become(state: str, following: str) -> bool:
    """Return whether a request may go from one state to another: one that has ended stays as it is.

    A failed request is opened again only when its dead letter is replayed.
    """
    return following in _FOLLOWING.get(state, ())


def ends_waiters(end: str) -> bool:
    """Return whether a request ends in the same way when a request whose result it waits for has ended so."""
    return end != State.DONE


ITEM = "i"
"""Stands in the place of a state in a mailbox's message that holds one item of a streamed result."""


class Outcome(NamedTuple):
    """How a request ended: any state but open, with the bytes of its result or failure."""

    state: str
    payload: bytes
