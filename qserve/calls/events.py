"""Follow a request: its events in their order, from its acceptance to its end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

from qserve.base.keys import EVENTS_KEPT
from qserve.base.loop_at_hand import loop_that_runs
from qserve.base.promise import Promise
from qserve.exceptions import BrokerUnavailable, QserveException
from qserve.wire.events import END_ID, Event, Happening, number_of
from qserve.wire.outcome import ANNOUNCED, State

SHORTEST_S, LONGEST_S = 0.1, 1.0
"""How often the broker is asked: less and less often as long as nothing happens."""
_ACCEPTED_ID = "0"


class Logged(NamedTuple):
    """Events that are written down, each with its number."""

    events: list[tuple[int, Event]]


class EventReader:
    """Puts together what the broker tells in several replies: nothing is left out, and nothing comes twice.

    Parameters:
      last_id: The id of the last event that its reader has; "" for none.
    """

    def __init__(self, last_id: str = "") -> None:
        self.read: int = 0
        self.pause_s: float = SHORTEST_S
        self._has_all = last_id == END_ID
        self._last = number_of(last_id)
        self._seen: deque[Event] = deque(maxlen=EVENTS_KEPT)

    def begin(self) -> list[Event]:
        """Return the event that a request was accepted, to a reader who has none; the request is known to exist."""
        return [Event(Happening.ACCEPTED, id=_ACCEPTED_ID)] if self._last < 0 and not self._has_all else []

    def take(self, logged: Logged) -> list[Event]:
        """Return what is new in a reply; a message that was sent twice is one event."""
        new = []
        for number, event in logged.events:
            self.read = max(self.read, number)
            if event not in self._seen:
                self._seen.append(event)
                if number > self._last and not self._has_all:
                    new.append(event._replace(id=str(number)))
        self.pause_s = SHORTEST_S if new else min(LONGEST_S, self.pause_s * 1.5)
        return new

    def end(self, state: str) -> list[Event]:
        """Return the last event; ``state`` may stand for a result that is only announced."""
        name = State.DONE.name if state == ANNOUNCED else State(state).name
        return [] if self._has_all else [Event(Happening.END, status=name.lower(), id=END_ID)]


class Events:
    """The events of a request, for ``for`` and ``async for``; each loop begins anew.

    Parameters:
      ref: The request.
      last_id: See ``EventReader``.
    """

    def __init__(self, ref: Any, last_id: str) -> None:
        self._ref = ref
        self._last_id = last_id

    def __iter__(self) -> Iterator[Event]:
        if loop_that_runs() is not None:
            raise RuntimeError("a loop over events would block the running event loop: write `async for`")
        return self._wait_for_each()

    def _wait_for_each(self) -> Iterator[Event]:
        ref, reader, has_begun = self._ref, EventReader(self._last_id), False
        while True:
            is_over = self._is_over()
            asked = ref.ask_for_events(reader.read)
            asked.wait()
            new = _new_in(asked, reader, is_over)
            if not has_begun and new is not None:
                has_begun = True
                yield from reader.begin()
            yield from new or ()
            if is_over:
                yield from reader.end(ref.outcome().state)
                return
            ref.done.wait(reader.pause_s)

    async def __aiter__(self) -> AsyncIterator[Event]:
        ref, reader, has_begun = self._ref, EventReader(self._last_id), False
        while True:
            is_over = self._is_over()
            asked = ref.ask_for_events(reader.read)
            await asked
            new = _new_in(asked, reader, is_over)
            if not has_begun and new is not None:
                has_begun = True
                for event in reader.begin():
                    yield event
            for event in new or ():
                yield event
            if is_over:
                for event in reader.end(ref.outcome().state):
                    yield event
                return
            try:
                async with asyncio.timeout(reader.pause_s):
                    await ref.done
            except TimeoutError:
                pass

    def _is_over(self) -> bool:
        """Whether the request has ended: what is read after this is all that there is."""
        self._ref.follow()
        if not self._ref.done.is_set():
            return False
        if not self._ref.acceptance.get_nowait():  # it was refused, or is not known
            self._ref.raise_for_end()
        return True


def _new_in(asked: Promise[Logged | Exception], reader: EventReader, is_over: bool) -> list[Event] | None:
    """Return what is new in a reply; None while the broker is away, which only the last reply may not be."""
    found = asked.get_nowait()
    if isinstance(found, Logged):
        return reader.take(found)
    if is_over or not isinstance(found, BrokerUnavailable):
        raise found if isinstance(found, QserveException) else BrokerUnavailable(str(found))
    return None
