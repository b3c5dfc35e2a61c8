"""Read the deployment's queue for one replica: never more than it has room for, and nothing twice.

``StreamReader`` reads, ``Backlog`` holds what was read and has not begun. The loop takes calls from the front of the
backlog. When user code holds the loop, or the thread of sync code, the watchdog's thread takes them from the back and
gives them to other replicas. Taking from either end is one step of the interpreter, so no call is taken twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qserve.base import failpoints
from qserve.base.keys import GROUP, Keys
from qserve.base.log import get_logger
from qserve.broker import functions
from qserve.broker.connection import (
    BLOCK_S,
    LONGEST_PAUSE_S,
    READ_TIMEOUT_S,
    Client,
    broker_errors,
    group_command,
    group_exists,
)
from qserve.broker.library import Command
from qserve.broker.link import Link, OnReply, ReplyError
from qserve.calls.mailbox import ignore
from qserve.engine.invoke import Waiting
from qserve.exceptions import BrokerUnavailable
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.work import Delivery, Tag, Work

log = get_logger(__name__)
UNSTARTED_S = 1.0
"""How long a replica may hold a call before it begins."""
POLL_INTERVAL_S = 1.0
"""How often the connection is checked for silence."""
SHORTEST_PAUSE_S = 0.05
REFUSALS_BEFORE_WARNING = 2
"""A replica of a version that was just retired is refused once or twice before it is told to end."""
_HISTORY_PAGE = 256


class Backlog:
    """The deliveries that one replica holds.

    ``waiting`` has the calls that wait for the thread of sync code.

    Parameters:
      queue: Where calls go back to.
    """

    def __init__(self, keys: Keys, queue: str) -> None:
        self._requests = keys.request("")
        self._queue = queue
        self.waiting: deque[Waiting[Work]] = deque()
        self._fetched: deque[Delivery] = deque()
        self._fetched_at = 0.0
        self._leaving: set[Tag] = set()
        self._begun: set[Tag] = set()

    def __contains__(self, tag: Tag) -> bool:
        return tag in self._begun or tag in self._leaving

    # -- on the loop -------------------------------------------------------------------------------

    def begin_each(self, entries: Iterable[Delivery]) -> Iterator[Delivery]:
        """Take in a batch and yield its deliveries one by one, except those that are given back meanwhile."""
        self._fetched_at = time.monotonic()
        self._fetched.extend(entries)
        while self._fetched:
            try:
                delivery = self._fetched.popleft()
            except IndexError:  # the other thread was quicker
                return
            self._begun.add(delivery.tag)
            yield delivery

    def settle(self, tag: Tag) -> None:
        """Forget a delivery that the broker has acknowledged, or put back on the queue."""
        self._begun.discard(tag)

    def begun(self) -> set[Tag]:
        """Return the tags of the deliveries that have begun and are not settled."""
        return self._begun.copy()

    # -- in the watchdog's thread ------------------------------------------------------------------

    def give_back(self, client: Client) -> tuple[int, list[Work]]:
        """Put what has waited too long back on the queue; other replicas, or this one later, run it.

        Crash before the command: the calls are pending here, and are handed over with all that this replica
        held. Crash after: they are on the queue.

        Returns:
          How many calls left, and those of them that had begun and waited for the thread.

        Raises:
          BrokerError: They are in the backlog as before.
        """
        fetched, waiting = self._late()
        tags = [delivery.tag for delivery in fetched] + [one.invocation.delivery.tag for one in waiting]
        try:
            for stream in {tag.stream for tag in tags}:
                ids = [tag.entry_id for tag in tags if tag.stream == stream]
                with broker_errors():
                    client.execute_command(*functions.give_back(stream, self._queue, ids, self._requests))
        except BaseException:
            self._fetched.extend(reversed(fetched))
            self.waiting.extend(reversed(waiting))
            raise
        finally:
            self._leaving.difference_update(tags)
        return len(tags), [one.invocation for one in waiting]

    def _late(self) -> tuple[list[Delivery], list[Waiting[Work]]]:
        now = time.monotonic()
        is_late = now - self._fetched_at > UNSTARTED_S
        fetched = list(self._pop_while(self._fetched, lambda entry: is_late, lambda entry: entry.tag))
        waiting = self._pop_while(
            self.waiting,
            lambda one: now - one.invocation.began > UNSTARTED_S,
            lambda one: one.invocation.delivery.tag,
        )
        return fetched, list(waiting)

    def _pop_while(
        self, end: deque[Any], is_late: Callable[[Any], bool], tag_of: Callable[[Any], Tag]
    ) -> Iterator[Any]:
        # checked before it is taken: the loop might pass between taking one and putting it back
        with contextlib.suppress(IndexError):
            while is_late(end[-1]):
                one = end.pop()
                self._leaving.add(tag_of(one))
                yield one


class StreamReader:
    """Reads a deployment's queue over a connection of its own.

    Parameters:
      name: The replica's name, which is the consumer's in the group.
      stream: The deployment's queue.
      plane: Sends the commands that must not wait behind a blocking read.
      backlog: Holds what was read.
      room: Returns how many calls may be read now.
      accept: Takes a delivery.
      refuse: Takes a delivery that ``accept`` could not take, with the error.
      on_refused: Called when the queue cannot be read, before the first retry.
      on_out_of_files: Called when this process may open no more connections.
    """

    def __init__(
        self,
        name: str,
        stream: str,
        url: str,
        plane: LoopPlane,
        backlog: Backlog,
        *,
        room: Callable[[], int],
        accept: Callable[[Delivery], None],
        refuse: Callable[[Delivery, Exception], None],
        on_refused: Callable[[], None],
        on_out_of_files: Callable[[], None],
    ) -> None:
        self.streams = [stream]
        self._name = name
        self._url = url
        self._plane = plane
        self._loop = plane.loop
        self._backlog = backlog
        self._room = room
        self._accept = accept
        self._refuse = refuse
        self._on_refused = on_refused
        self._on_out_of_files = on_out_of_files
        self._link: Link | None = None
        self._connection_id = 0
        self._has_group = self._is_reading = self._is_closed = False
        self._refusals = 0
        self._connecting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and begin to read; tries until it succeeds or the reader is closed."""
        pause_s = SHORTEST_PAUSE_S
        while not self._is_closed:
            link = None
            try:
                link = await Link.open(self._url)
                await asyncio.wait_for(self._prepare(link), READ_TIMEOUT_S)
                link.when_lost(self._on_lost)
            except (BrokerUnavailable, ReplyError, OSError) as error:
                log.warning("the queue cannot be read: %s", error)
                if link is not None:
                    link.close()
                if _is_out_of_files(error):
                    # user code has opened all the files that this process may open: only another process has any
                    self._on_out_of_files()
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            else:
                self._link, self._is_reading = link, False
                self._check_silence(link)
                self._read_history(list(self.streams), b"0")
                return

    async def _prepare(self, link: Link) -> None:
        if not self._has_group:  # later on only the supervisor creates it: a retired version must stay retired
            try:
                await link.call(group_command(self.streams[0]))
            except ReplyError as error:
                if not group_exists(error):
                    raise
            self._has_group = True
        self._connection_id = await link.call(("CLIENT", "ID"))

    def _check_silence(self, link: Link) -> None:
        if link is self._link:
            link.abandon_if_silent(BLOCK_S + READ_TIMEOUT_S)
            self._loop.call_later(POLL_INTERVAL_S, self._check_silence, link)

    def _on_lost(self, waiting: list[OnReply]) -> None:
        self._link, self._is_reading = None, False
        if not self._is_closed:
            # not at once: a connection that is lost as soon as it is made would be made again and again
            self._loop.call_later(SHORTEST_PAUSE_S, self._reopen)

    def _reopen(self) -> None:
        self._connecting = self._loop.create_task(self.open())

    async def close(self) -> None:
        """Read no more; what the broker has delivered meanwhile still begins."""
        self._is_closed = True
        if self._link is not None and self._is_reading:
            self._end_blocking_read()
            give_up = self._loop.time() + 1.0
            while self._is_reading and self._loop.time() < give_up:
                await asyncio.sleep(0.005)

    def disconnect(self) -> None:
        """Close the connection."""
        if self._link is not None:
            self._link.close()

    def read_also(self, stream: str) -> None:
        """Read one more stream, beginning with the next read."""
        if stream not in self.streams:
            self.streams.append(stream)
            if self._is_reading:
                self._end_blocking_read()

    def _end_blocking_read(self) -> None:
        self._plane.post(("CLIENT", "UNBLOCK", self._connection_id), ignore)

    # -- what was delivered before -----------------------------------------------------------------

    def _read_history(self, streams: list[str], after: bytes) -> None:
        """Read what was delivered to this replica by a read whose reply was lost with its connection.

        The broker has put such entries into this replica's pending list, and delivers them to nobody else while it
        lives. They are read first on each new connection, so there are never more of them than one read can bring.

        Parameters:
          streams: The streams that are still to be read.
          after: The last entry of the first stream that has been read.
        """
        if not streams or self._link is None:
            self.ask()
            return
        read: Command = (
            "XREADGROUP", "GROUP", GROUP, self._name, "COUNT", _HISTORY_PAGE, "STREAMS", streams[0], after,
        )  # fmt: skip
        # as of now: a call that ends while the reply is on its way must not look like a new one
        known = self._backlog.begun()
        self._is_reading = True
        self._link.post([(read, lambda reply: self._on_history(streams, known, reply))])

    def _on_history(self, streams: list[str], known: set[Tag], reply: Any) -> None:
        self._is_reading = False
        if isinstance(reply, Exception):
            # no group: the queue is gone, and what was pending with it
            self._read_history(streams[1:], b"0")
            return
        entries = reply[0][1] if reply else []
        lost = []
        for entry_id, fields in entries:
            tag = Tag(streams[0], entry_id)
            if tag in known or tag in self._backlog:
                continue
            if fields:
                lost.append(_delivery(tag, fields))
            else:
                # the entry was deleted when its request ended
                log.info("call %s of queue %s was ended before it started", entry_id.decode(), streams[0])
                self._plane.post(("XACK", streams[0], GROUP, entry_id), ignore)
        if lost:
            log.info("%d calls were delivered over the connection that was lost; they start now", len(lost))
            self._begin(lost)
        if len(entries) < _HISTORY_PAGE:
            self._read_history(streams[1:], b"0")
        else:
            self._read_history(streams, entries[-1][0])

    # -- what is new -------------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask for as many new calls as there is room for, unless a read is under way."""
        if self._is_reading or self._is_closed or self._link is None:
            return
        room = self._room()
        if room <= 0:
            return
        self._is_reading = True
        read: Command = (
            "XREADGROUP", "GROUP", GROUP, self._name, "COUNT", room, "BLOCK", int(BLOCK_S * 1000),
            "STREAMS", *self.streams, *(">" for _ in self.streams),
        )  # fmt: skip
        self._link.post([(read, self._on_entries)])

    def _on_entries(self, reply: Any) -> None:
        self._is_reading = False
        if isinstance(reply, Exception):
            if not self._is_closed:
                self._retry(reply)
            return
        self._refusals = 0
        if reply:
            if failpoints.ARMED:
                failpoints.hit("fetch.after_read")
            for name, entries in reply:
                stream = name.decode()
                self._begin([_delivery(Tag(stream, entry_id), fields) for entry_id, fields in entries])
            # what the calls caused leaves before the next read: other replicas wait for it
            self._plane.flush()
        self.ask()

    def _begin(self, entries: list[Delivery]) -> None:
        for delivery in self._backlog.begin_each(entries):
            try:
                self._accept(delivery)
            except Exception as error:
                # one bad entry must not take those behind it along
                self._refuse(delivery, error)

    def _retry(self, error: Exception) -> None:
        """Read again, waiting longer each time.

        A queue that is gone was retired, or its supervisor creates it again. Replicas do not create it: a retired
        version would come back to life.
        """
        if not self._refusals:
            self._on_refused()
        if self._refusals == REFUSALS_BEFORE_WARNING:
            log.warning("the queue cannot be read: %s", error)
        self._refusals += 1
        self._loop.call_later(min(0.1 * 2**self._refusals, 2.0), self.ask)


def _delivery(tag: Tag, fields: list[bytes]) -> Delivery:
    return Delivery(tag, dict(zip(fields[::2], fields[1::2], strict=True)))


def _is_out_of_files(error: BaseException) -> bool:
    cause = error.__cause__ or error
    return isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE)
