"""The events of a request: what its replicas say that happens to it, and what those who follow it read."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

import msgpack

from qserve.exceptions import PayloadError
from qserve.wire.codec import unpack


class Happening(StrEnum):
    """What an event tells."""

    ACCEPTED = "accepted"
    STARTED = "started"
    PROGRESS = "progress"
    RETRIED = "retried"
    TAKEN_OVER = "taken_over"
    DONE = "done"
    END = "end"


_SAID = frozenset(Happening) - {Happening.ACCEPTED, Happening.END}
"""What replicas write down; the others follow from the state of the request."""
_MOST = 1e12
"""Later times, and longer ones, are not of this world."""
_PLACE = ("deployment", "step", "attempt")
_SHOWN: dict[str, tuple[str, ...]] = {
    Happening.ACCEPTED: (),
    Happening.PROGRESS: ("fraction", "message", "deployment"),
    Happening.END: ("status",),
}
_TYPES = [str, float, str, str, int, float, str, float, str]
_LEAST = 7
"""How much the first version said of an event."""


END_ID = "end"
"""The id of the last event."""


def number_of(event_id: str) -> int:
    """Return the number of an event that was written down, by its id; 0 for "accepted", and -1 for no such id."""
    return int(event_id) if event_id.isascii() and event_id.isdigit() and len(event_id) < 16 else -1


class Event(NamedTuple):
    """One event of a request.

    Parameters:
      name: "accepted", "started", "progress", "retried" (a try failed, and there will be another), "taken_over" (the
        replica that ran it is lost, and another one begins), "done" (one step) or "end" (the request).
      at: When, in Unix seconds by the broker's clock; 0 for "accepted" and "end".
      deployment, step: Which step; the method's name for a call that is not part of a graph.
      attempt: Which try of the step, from 1.
      fraction, message: For "progress", see ``Progress``.
      queued_ms: For "started", how long the call has waited, for a replica and for its turn there.
      replica: Which replica says it.
      status: For "end": "done", "failed", "cancelled" or "expired".
      id: Its place in the order; ``Ref.events`` goes on behind it.

    Example:
      for event in handle.remote("Dora").events():
          if event.name == "end":
              print(event.status, event.data())  # done {'status': 'done'}
    """

    name: str
    at: float = 0.0
    deployment: str = ""
    step: str = ""
    attempt: int = 0
    fraction: float | None = None
    message: str = ""
    queued_ms: float = 0.0
    replica: str = ""
    status: str = ""
    id: str = ""

    def encode(self) -> bytes:
        """Return what a replica says as msgpack."""
        return msgpack.packb(self[: len(_TYPES)], unicode_errors="replace")  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> Event:
        """Read what ``encode`` wrote; raise PayloadError for anything else."""
        found = unpack(data, "an event")
        if type(found) is list and len(found) >= _LEAST:
            event = cls(*found[: len(_TYPES)])  # a newer version may say more
            found = event[: len(_TYPES)]
            kinds = [float if part is None else type(part) for part in found]
            is_typed = None not in (event.at, event.queued_ms) and kinds == _TYPES
            if (
                is_typed
                and abs(event.at) < _MOST
                and 0 <= event.queued_ms < _MOST
                and event.name in _SAID
                and 0 <= (event.fraction or 0) <= 1
            ):
                return event
        raise PayloadError(f"{len(data)} bytes are not an event")

    def data(self) -> dict[str, Any]:
        """Return what it tells beside its name and ID, for JSON.

        Returns:
          The fields that this event has, by name.
        """
        return {name: getattr(self, name) for name in _SHOWN.get(self.name, _PLACE)}
