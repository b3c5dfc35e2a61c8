"""Read the deployment's queue for one replica: never more than it has room for, and nothing twice.

``StreamReader`` reads, ``Backlog`` holds what was read and has not begun, and ``Work`` is a delivery that runs. The
loop takes calls from the front of the backlog. When user code holds the loop, or the thread of sync code, the
watchdog's thread takes them from the back and gives them to other replicas. Taking from either end is one step of the
interpreter, so no call is taken twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from qserve.base import failpoints
from qserve.base.clock import clock
from qserve.base.context import Run
from qserve.base.keys import GROUP, Keys
from qserve.base.log import get_logger, of_request
from qserve.base.turns import Turns
from qserve.broker import functions
from qserve.broker.connection import (
    IDLE_BLOCK_S,
    LONGEST_PAUSE_S,
    READ_TIMEOUT_S,
    Client,
    broker_errors,
    group_command,
    group_exists,
    is_gone,
    is_transient,
    refusal,
)
from qserve.broker.library import Command
from qserve.broker.link import Link, ReplyError
from qserve.calls.mailbox import ignore
from qserve.engine.invoke import Invocation
from qserve.exceptions import WrongType
from qserve.wire.moves import INPUTS_LIMIT
from qserve.wire.outcome import CallField
from qserve.wire.replies import attempts, deliveries, number, observed, places, shown, step_name
from qserve.wire.sealing import Seal, open_header, open_values
from qserve_workers.replica.lasting_link import SHORTEST_PAUSE_S, LastingLink
from qserve_workers.replica.models import ModelAdvertiser
from qserve_workers.replica.plane import UNBLOCK_AGAIN_S, LoopPlane
from qserve_workers.replica.spec import ReplicaSpec

log = get_logger(__name__)
UNSTARTED_S = 1.0
"""How long a replica may hold a call before it begins."""
REFUSED_FOR_S = 0.5
"""How long the queue may be gone before that is logged: a replica of a version that was just retired is refused once or
twice before it is stopped."""
_HISTORY_PAGE = 256
_SLOTS = [str(number).encode() for number in range(INPUTS_LIMIT)]


_NONE: Set[tuple[str, bytes]] = frozenset()


class Tag(NamedTuple):
    """The stream and the entry of a delivery."""

    stream: str
    entry_id: bytes


class Delivery(NamedTuple):
    """A call as it was read from a stream: an entry with its raw fields."""

    tag: Tag
    fields: dict[bytes, bytes]


@dataclass(slots=True, eq=False)
class Work(Invocation):
    """A delivery that runs."""

    delivery: Delivery
    _deadline: float | None = field(default=None, init=False)

    @classmethod
    def of(cls, delivery: Delivery, seal: Seal) -> Work:
        """Read a delivery.

        Raises:
          PayloadError: Fields are missing, cannot be read, or were not sealed with one of our keys.
        """
        fields = delivery.fields
        if CallField.TRIES in fields:
            number(fields[CallField.TRIES], "a number of tries")
        header = open_header(seal, fields.get(CallField.HEADER, b""))
        return cls(header, step_name(fields.get(CallField.STEP, b"")), delivery)

    @property
    def tag(self) -> Tag:
        return self.delivery.tag

    @property
    def tries(self) -> int:
        """How often the call was tried again before."""
        return number(self.delivery.fields.get(CallField.TRIES, b"0"))

    def this_run(self) -> Run:
        fields, tag = self.delivery.fields, self.delivery.tag
        # only what has failed, or was handed over, has a history
        attempt = 1 if CallField.HISTORY not in fields else max(attempts(fields[CallField.HISTORY]), self.tries) + 1
        return Run(self.header.request_id, self.step, tag.stream, tag.entry_id, attempt, CallField.DEATHS in fields)

    @property
    def attempt(self) -> int:
        """Which try of its step this is: after those that raised, and those whose replica was lost."""
        return 1 + self.tries + number(self.delivery.fields.get(CallField.DEATHS, b"0"))

    def queued_ms(self) -> float | None:
        """Return how long it has waited on its queue, by the broker's clock."""
        return max(0.0, clock.now_ms() - number(self.tag.entry_id.partition(b"-")[0], "a time"))

    def deadline(self) -> float:
        """Return its deadline by the monotonic clock, from the first time on that this is asked.

        A clock that is set later does not move it, and so kills no call.
        """
        if self._deadline is None:
            self._deadline = time.monotonic() + (self.header.deadline_ms - clock.judge_ms()) / 1000
        return self._deadline

    def values(self, seal: Seal) -> list[bytes]:
        """Return its arguments, encoded.

        Raises:
          PayloadError: One of them was not sealed for this call.
        """
        fields, values = self.delivery.fields, []
        for slot in _SLOTS:
            value = fields.get(slot)
            if value is None:
                break
            values.append(value)
        return open_values(seal, self.tag.stream, self.header, self.step, values)


D = TypeVar("D", Delivery, Work)


class Backlog:
    """The deliveries that one replica holds.

    ``waiting`` has the calls that wait for the thread of sync code.

    Parameters:
      queue: Where calls go back to.
    """

    def __init__(self, keys: Keys, queue: str) -> None:
        self._requests = keys.request("")
        self._queue = queue
        self.waiting: deque[Work] = deque()
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
        now = time.monotonic()
        is_late = now - self._fetched_at > UNSTARTED_S
        fetched = list(self._pop_while(self._fetched, lambda delivery: is_late))
        waiting = list(self._pop_while(self.waiting, lambda work: now - work.began > UNSTARTED_S))
        # in the order in which they came
        tags = [work.tag for work in reversed(waiting)] + [delivery.tag for delivery in reversed(fetched)]
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
        return len(tags), waiting

    def _pop_while(self, held: deque[D], is_late: Callable[[D], bool]) -> Iterator[D]:
        # checked before it is taken: the loop might pass between taking one and putting it back
        with contextlib.suppress(IndexError):
            while is_late(held[-1]):
                one = held.pop()
                self._leaving.add(one.tag)
                yield one


class StreamReader:
    """Reads a deployment's queue over its own connection, and the stream of the models that its replica holds.

    Parameters:
      plane: Sends the commands that must not wait behind a blocking read.
      backlog: Holds what was read.
      room: Returns how many calls may be read now.
      accept: Takes a delivery, and whether somebody follows its request.
      on_out_of_files: Called when this process may open no more connections.

    Attributes:
      connection_id: The broker's id of its connection, or of the last one.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        plane: LoopPlane,
        backlog: Backlog,
        *,
        room: Callable[[], int],
        accept: Callable[[Delivery, bool], None],
        on_out_of_files: Callable[[], None],
    ) -> None:
        self.streams = [spec.stream]
        self._name = spec.name
        self._plane = plane
        self._backlog = backlog
        self._room = room
        self._accept = accept
        self._on_out_of_files = on_out_of_files
        self._advertiser = ModelAdvertiser(spec, plane, self._read_also)
        self._turns = Turns("reading the queue", log, longest_s=2.0, eager_for_s=REFUSED_FOR_S)
        self._link = LastingLink(
            spec.settings.named_broker,
            Turns("connecting to read the queue", log, first_s=SHORTEST_PAUSE_S, longest_s=LONGEST_PAUSE_S),
            IDLE_BLOCK_S + READ_TIMEOUT_S,
            prepare=self._prepare,
            on_open=self.ask,
            on_lost=self._on_lost,
            on_failure=self._on_failure,
        )
        self._requests = plane.keys.request("")
        self._last_read: dict[str, bytes] = {}
        self.connection_id = 0
        self._timer: asyncio.TimerHandle | None = None
        self._has_group = self._is_reading = self._is_closed = self._is_held = False

    async def open(self) -> None:
        """Connect, and begin to read; tries until it succeeds."""
        await self._link.keep_trying()

    async def _prepare(self, link: Link) -> None:
        if not self._has_group:  # later on only the supervisor creates it: a retired version must stay retired
            try:
                await link.call(group_command(self.streams[0]))
            except ReplyError as error:
                if not group_exists(error):
                    raise
            self._has_group = True
        self.connection_id = await link.call(("CLIENT", "ID"))
        self._last_read.clear()
        for stream in list(self.streams):
            await self._read_history(link, stream)

    def _on_lost(self) -> None:
        self._is_reading = False

    def _on_failure(self, error: Exception) -> None:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            # user code has opened all the files that this process may open: only another process has any
            self._on_out_of_files()

    async def close(self) -> None:
        """Read no more; what the broker has delivered meanwhile still begins."""
        self._advertiser.stop()
        self._is_closed = True
        self._link.let_end()
        if self._is_reading:
            self._end_blocking_read()
            give_up = self._plane.loop.time() + 1.0
            while self._is_reading and self._plane.loop.time() < give_up:
                await asyncio.sleep(0.005)

    def hold(self, is_held: bool) -> None:
        """Read nothing new as long as it is held; what the broker delivers at this moment still begins."""
        self._is_held = is_held
        if is_held:
            self._end_read_while_held()
        else:
            self.ask()

    def _end_read_while_held(self) -> None:
        if self._is_held and self._is_reading and not self._is_closed:
            self._end_blocking_read()
            self._plane.loop.call_later(UNBLOCK_AGAIN_S, self._end_read_while_held)

    def renew(self) -> None:
        """Read over another connection: the broker is silent, as another connection has noticed."""
        self._link.renew()

    def disconnect(self) -> None:
        self._link.close()

    def _read_also(self, stream: str) -> None:
        """Read one more stream, beginning with the next read."""
        if stream not in self.streams:
            self.streams.append(stream)
            if self._is_reading:
                self._end_blocking_read()

    def _end_blocking_read(self) -> None:
        self._plane.end_read(self.connection_id)

    # -- what was delivered before -----------------------------------------------------------------

    async def _read_history(self, link: Link, stream: str) -> None:
        """Read what was delivered to this replica by a read whose reply was lost with its connection.

        The broker has put such entries into this replica's pending list, and does not deliver them to others while it
        lives. They are read first on each new connection, so there are never more of them than one read can bring.

        Raises:
          ReplyError: The broker cannot read them now, because it still loads its data, for example. The connection must
            not be used then: nobody would read them later.
        """
        entries: Any = [(b"0", [])]
        # while the functions are being loaded again, copies are not found: their commits have no effects then either
        checked: Any = ()
        try:
            checked = await link.call(self._strays_command([stream]))
        except ReplyError as error:
            if is_transient(error):
                raise
        while entries:
            # as of now: a call that ends while the reply is on its way must not look like a new one
            known = self._backlog.begun()
            try:
                reply = await link.call((
                    "XREADGROUP", "GROUP", GROUP, self._name, "COUNT", _HISTORY_PAGE, "STREAMS", stream, entries[-1][0],
                ))  # fmt: skip
            except ReplyError as error:
                if is_gone(error) or isinstance(refusal(error), WrongType):
                    return  # what was pending is gone with the queue
                raise
            entries = reply[0][1] if reply else []
            lost = []
            for entry_id, fields in entries:
                tag = Tag(stream, entry_id)
                if tag in known or tag in self._backlog:
                    continue
                if fields:
                    lost.append(_delivery(tag, fields))
                else:
                    # the entry was deleted when its request ended
                    log.info("call %s of queue %s was ended before it started", shown(entry_id), stream)
                    self._plane.post(("XACK", stream, GROUP, entry_id), ignore)
            if lost:
                log.info("%d calls were delivered over the connection that was lost; they start now", len(lost))
                self._accept_each(lost, checked)

    # -- what is new -------------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask for as many new calls as there is room for, unless a read is under way."""
        try:
            self._ask()
        except Exception as error:  # this is also called by the ends of calls, which must not fail with it
            self._turns.note(error)
            self._pause()

    def _ask(self) -> None:
        link = self._link.current
        if self._is_reading or self._is_closed or self._is_held or link is None:
            return
        room = self._room()
        if room <= 0:
            return
        read: Command = (
            "XREADGROUP", "GROUP", GROUP, self._name, "COUNT", room, "BLOCK", int(IDLE_BLOCK_S * 1000),
            "STREAMS", *self.streams, *(">" for _ in self.streams),
        )  # fmt: skip
        # the broker runs the second right behind the first, and sends both replies together
        found: list[Any] = []
        check = self._strays_command(self.streams)
        link.post([(read, found.append), (check, lambda strays: self._on_entries(found[0], strays))])
        self._is_reading = True

    def _strays_command(self, streams: Sequence[str]) -> Command:
        last = [self._last_read.get(stream, b"0-0") for stream in streams]
        return functions.strays(streams, self._name, self._requests, last)

    def _on_entries(self, reply: Any, strays: Any) -> None:
        self._is_reading = False
        try:  # not by ``with``: this is on the way of every request
            if isinstance(reply, Exception):
                raise refusal(reply)
            if reply:
                try:
                    if failpoints.ARMED:
                        failpoints.hit("fetch.after_read")
                    for stream, entries in deliveries(reply):
                        self._last_read[stream] = entries[-1][0]
                        read = [_delivery(Tag(stream, entry_id), flat) for entry_id, flat in entries]
                        self._accept_each(read, strays)
                except Exception:
                    self._link.renew()  # what was delivered and not accepted is read again over a new connection
                    raise
                # what the calls caused leaves before the next read: other replicas wait for it
                self._plane.flush()
        except Exception as error:
            self._turns.note(error)
        else:
            if self._turns.failures:
                self._turns.recover()
        if self._turns.failures:
            self._pause()
        else:
            self.ask()

    def _accept_each(self, entries: list[Delivery], checked: Any) -> None:
        strays, followed = (places(checked), observed(checked)) if checked else (_NONE, _NONE)
        for delivery in self._backlog.begin_each(entries):
            tag = delivery.tag
            if tag in strays:
                self._drop(delivery)
            else:
                self._accept(delivery, tag in followed)

    def _drop(self, delivery: Delivery) -> None:
        """Remove an entry that no open request names, unless it cannot be read and so becomes a dead letter.

        Crash before the commands: it is pending, and is dropped when it is handed over. Crash after: it is gone.
        """
        tag = delivery.tag
        try:
            work = Work.of(delivery, self._plane.seal)
        except Exception:
            self._accept(delivery, False)
            return
        log.warning(
            "entry %s of queue %s is dropped: it is a copy, or request %s has ended",
            shown(tag.entry_id), tag.stream, work.header.request_id, extra=of_request(work.header.trace_id),
        )  # fmt: skip
        self._plane.post(("XACK", tag.stream, GROUP, tag.entry_id), ignore)
        self._plane.post(("XDEL", tag.stream, tag.entry_id), lambda reply: self._backlog.settle(tag))

    def _pause(self) -> None:
        """Read again, waiting longer each time.

        A queue that is gone was retired, or its supervisor creates it again. Replicas do not create it: a retired
        version would come back to life.
        """
        self._last_read.clear()
        if self._timer is None:
            self._timer = self._plane.loop.call_later(self._turns.pause_s, self._on_timer)
        if self._turns.failures == 1:
            self._advertiser.renew()  # its stream may be gone as well

    def _on_timer(self) -> None:
        self._timer = None
        self.ask()


def _delivery(tag: Tag, fields: list[bytes]) -> Delivery:
    each = iter(fields)  # the broker's entries have a value for each field
    return Delivery(tag, dict(zip(each, each)))  # noqa: B905
