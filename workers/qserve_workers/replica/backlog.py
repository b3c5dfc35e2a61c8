"""What a replica has fetched and not begun, and how it goes back when it cannot begin in time.

The loop takes from one end. When the loop, or the thread of sync code, is held, the watchdog's thread takes
from the other end, and other replicas get what it took: taking from either end is one step of the
interpreter, so a call has one taker.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from qserve.base.keys import Keys
from qserve.broker import functions
from qserve.broker.connection import Client, broker_errors
from qserve_workers.celery.transport import Tag

if TYPE_CHECKING:
    from qserve_workers.replica.work import Work

UNSTARTED_S = 1.0
"""How long a call may be held here before it begins."""


class Fetched(NamedTuple):
    """An entry of a queue that was read and not looked at."""

    tag: Tag
    fields: dict[bytes, bytes]


class Queued(NamedTuple):
    """A call that waits for the thread of sync code.

    Parameters:
      run: Begins it; on the loop's thread only.
    """

    work: Work
    run: Callable[[], None]


class Backlog:
    """The calls that one replica holds and has not begun."""

    def __init__(self) -> None:
        self._fetched: deque[Fetched] = deque()
        self._fetched_at = 0.0
        self._queued: deque[Queued] = deque()
        self._leaving: set[Tag] = set()

    def __contains__(self, tag: object) -> bool:
        return tag in self._leaving

    # -- on the loop -------------------------------------------------------------------------------

    def drain(self, entries: Iterable[Fetched]) -> Iterator[Fetched]:
        """Take up a batch and give its entries one by one, except those that go back meanwhile."""
        self._fetched_at = time.monotonic()
        self._fetched.extend(entries)
        while self._fetched:
            try:
                entry = self._fetched.popleft()
            except IndexError:  # the other thread was quicker
                return
            yield entry

    def queue(self, work: Work, run: Callable[[], None]) -> None:
        """Keep a call until the thread of sync code is free."""
        self._queued.append(Queued(work, run))

    def run_next(self) -> None:
        """Begin the call that has waited longest."""
        try:
            _, run = self._queued.popleft()
        except IndexError:
            return
        run()

    # -- in the watchdog's thread ------------------------------------------------------------------

    def give_back(self, client: Client, keys: Keys, queue: str) -> tuple[int, list[Work]]:
        """Put what has waited too long back on ``queue``; other replicas, or this one later, run it.

        Crash before the command: the calls are pending here, and are handed over with all that this replica
        held. Crash after: they are on the queue.

        Returns:
          How many calls left, and those of them that had been opened.

        Raises:
          BrokerError: They are in the backlog as before.
        """
        fetched, queued = self._late()
        tags = [entry.tag for entry in fetched] + [one.work.delivery.delivery_tag for one in queued]
        try:
            for stream in {tag.stream for tag in tags}:
                ids = [tag.entry_id for tag in tags if tag.stream == stream]
                with broker_errors():
                    client.execute_command(*functions.give_back(stream, queue, ids, keys.request("")))
        except BaseException:
            self._fetched.extend(reversed(fetched))
            self._queued.extend(reversed(queued))
            raise
        finally:
            self._leaving.difference_update(tags)
        return len(tags), [one.work for one in queued]

    def _late(self) -> tuple[list[Fetched], list[Queued]]:
        now = time.monotonic()
        is_late = now - self._fetched_at > UNSTARTED_S
        fetched = list(self._pop_while(self._fetched, lambda entry: is_late, lambda entry: entry.tag))
        queued = self._pop_while(
            self._queued,
            lambda one: now - one.work.began > UNSTARTED_S,
            lambda one: one.work.delivery.delivery_tag,
        )
        return fetched, list(queued)

    def _pop_while(
        self, end: deque[Any], is_late: Callable[[Any], bool], tag_of: Callable[[Any], Tag]
    ) -> Iterator[Any]:
        # looked at before it is taken: putting one back could come after the loop has looked and gone
        with contextlib.suppress(IndexError):
            while is_late(end[-1]):
                one = end.pop()
                self._leaving.add(tag_of(one))
                yield one
