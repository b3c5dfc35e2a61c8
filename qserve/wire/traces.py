"""The trace of a request that has ended, as the broker keeps it, and the events of one that is open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from qserve.base.keys import deployment_in, version_in
from qserve.exceptions import PayloadError
from qserve.wire import replies
from qserve.wire.codec import unpack
from qserve.wire.envelope import Header
from qserve.wire.events import Event
from qserve.wire.failure import Failure
from qserve.wire.outcome import ENDED, Field, Outcome, State
from qserve.wire.sealing import Seal, event_context, open_end, open_header

_ENDS = frozenset(state.encode() for state in ENDED)


class Written(NamedTuple):
    """An event, and when the broker wrote it down, in Unix ms; 0 if that is not known."""

    event: Event
    at_ms: int


class TraceRecord(NamedTuple):
    """What is kept of a traced request that has ended.

    Parameters:
      failure: The error of one that failed; None if it was too long to be kept.
      began_ms, ended_ms: When it was accepted and ended, in Unix ms by the broker's clock.
      events: In their order.
      version, deployment: What was called first; "" if that is not known.
    """

    header: Header
    state: State
    failure: Failure | None
    began_ms: int
    ended_ms: int
    events: list[Written]
    version: str = ""
    deployment: str = ""

    @classmethod
    def read(cls, entry: tuple[bytes, Mapping[bytes, bytes]], seal: Seal) -> TraceRecord:
        """Return the trace in an entry of the stream of traces.

        Raises:
          PayloadError: It cannot be read, or was not sealed with one of our keys.
        """
        entry_id, parts = entry
        header = open_header(seal, parts.get(Field.HEADER, b""))
        stored = parts.get(Field.STATE, b"")
        if stored not in _ENDS:
            raise PayloadError(f"the trace of request {header.request_id} has no state")
        state, failure, payload = State(stored.decode()), None, parts.get(Field.RESULT, b"")
        if state == State.FAILED and payload:
            failure = Failure.decode(open_end(seal, header.request_id, Outcome(state, payload)).payload)
        found: Any = unpack(parts.get(Field.EVENTS, b"\x90"), "the events of a trace", depth=2, raw=True)
        pairs = found if type(found) is list else []
        flat = [(pair[0], pair[1]) for pair in pairs if type(pair) is list and len(pair) > 1]
        began_ms = replies.number(parts.get(Field.TRACED, b""), "a time")
        events = sorted(_read(seal, header.request_id, flat), key=lambda written: written.event.at)
        queue = replies.shown(parts.get(Field.QUEUE, b""))
        called = version_in(queue), deployment_in(queue)
        return cls(header, state, failure, began_ms, replies.entered_ms(entry_id), events, *called)


def read_log(seal: Seal, request_id: str, entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Written]:
    """Return the events in the log of a request; those that cannot be read are left out, and named once in the log."""
    return _read(seal, request_id, [(parts.get(b"e"), parts.get(b"ms", b"")) for _, parts in entries])


def _read(seal: Seal, request_id: str, found: Iterable[tuple[Any, Any]]) -> list[Written]:
    def read(one: tuple[Any, Any]) -> Written:
        sealed, at_ms = one
        if type(sealed) is not bytes:
            raise PayloadError(f"an event of request {request_id} is malformed")
        event = Event.decode(seal.open(event_context(request_id), sealed))
        return Written(event, replies.number(at_ms or 0, "a time"))

    return list(replies.each(found, read))
