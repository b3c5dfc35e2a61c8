"""Celery's consumer with asyncio's loop in the place of its own: one thread reads, runs and commits."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.worker import state
from celery.worker.consumer import Consumer

from qserve.base import failpoints
from qserve.base.keys import GROUP
from qserve.base.log import get_logger
from qserve.broker.connection import BLOCK_S, LONGEST_PAUSE_S, READ_TIMEOUT_S
from qserve.broker.library import Command
from qserve.broker.link import Link, OnReply, ReplyError
from qserve.exceptions import BrokerUnavailable
from qserve_workers.celery.transport import Delivery, Tag
from qserve_workers.process.life import OUT_OF_FILES_EXIT
from qserve_workers.replica.backlog import Fetched
from qserve_workers.replica.models import Advertiser
from qserve_workers.replica.replica import Replica

log = get_logger(__name__)
_TICK_S = 0.5
_HISTORY_PAGE = 256
REFUSALS_TO_TELL = 2
"""A replica of a version that was just retired is refused once or twice before it is told to end."""


class AsyncConsumer(Consumer):  # type: ignore[misc]
    """What ``worker_consumer`` names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop = _run_loop

    def create_task_handler(self, promise: Any = None) -> Callable[[Any], None]:
        """Look up the strategy and call it; Celery's own handler makes two promises a message on the way."""
        strategies = self.strategies

        def on_task_received(message: Any) -> None:
            strategies[message.headers["task"]](message, None, None, None, None)

        return on_task_received


def _fetched(tag: Tag, fields: list[bytes]) -> Fetched:
    return Fetched(tag, dict(zip(fields[::2], fields[1::2], strict=True)))


def _run_loop(consumer: Any, connection: Any, task_consumer: Any, blueprint: Any, *args: Any, **kwargs: Any) -> None:
    replica: Replica = consumer.controller.replica
    consumer.task_consumer.on_message = consumer.create_task_handler()
    fetcher = Fetcher(replica, task_consumer, lambda: blueprint.state == bootsteps.RUN)
    replica.loop.run_until_complete(fetcher.run(consumer.on_ready))
    state.should_stop = fetcher.exit_code
    state.maybe_shutdown()


def _is_out_of_files(error: BaseException) -> bool:
    cause = error.__cause__ or error
    return isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE)


class Fetcher:
    """Reads a deployment's queue for one replica: as much as it has room for, never more.

    Parameters:
      replica: Runs the calls, and says how many more it can take.
      task_consumer: Celery's consumer of the queue, through whose channel messages are delivered.
      running: Whether Celery wants the worker to go on.
    """

    def __init__(self, replica: Replica, task_consumer: Any, running: Callable[[], bool]) -> None:
        self.exit_code = 0
        self._replica = replica
        self._channel = task_consumer.channel
        self._advertiser = Advertiser(replica, replica.keys, self._channel)
        self._running = running
        self._link: Link | None = None
        self._reading = False
        self._refusals = 0
        self._connection_id = 0
        self._stop = asyncio.Event()
        task_consumer.consume()

    async def run(self, on_ready: Callable[[], Any]) -> None:
        """Fetch until the worker is told to stop, then finish what runs."""
        loop = self._replica.loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._replica.on_room = self._ask
        self._replica.on_new_stream = self._ask_anew
        await self._connect()
        on_ready()
        while self._running() and not self._stop.is_set() and state.should_stop is None:
            try:
                await asyncio.wait_for(self._stop.wait(), _TICK_S)
            except TimeoutError:
                await self._watch()
        self._advertiser.stop()
        await self._drain()

    async def _connect(self) -> None:
        url = self._replica.settings.broker_url
        assert url is not None
        pause_s = 0.05
        while not self._stop.is_set():
            link = None
            try:
                link = await Link.open(url)
                self._connection_id = await asyncio.wait_for(link.call(("CLIENT", "ID")), READ_TIMEOUT_S)
                link.when_lost(self._on_lost)
                self._link, self._reading = link, False
                self._read_history(list(self._replica.streams), b"0")
                break
            except (
                BrokerUnavailable,
                ReplyError,
                *self._channel.connection.connection_errors,
            ) as error:
                log.warning("the queue cannot be read: %s", error)
                if link is not None:
                    link.close()
                if _is_out_of_files(error):
                    # user code has used up what this process may open: only another process has any
                    self.exit_code = OUT_OF_FILES_EXIT
                    self._stop.set()
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _watch(self) -> None:
        """Connect again when the connection is gone, or silent for longer than a blocking read can be."""
        if self._link is not None:
            self._link.abandon_if_silent(BLOCK_S + READ_TIMEOUT_S)
        else:
            await self._connect()

    # -- what this replica was given before ----------------------------------------------------------

    def _read_history(self, streams: list[str], after: bytes) -> None:
        """Read what was given to this replica by a read whose reply was lost with its connection.

        The broker has put such entries into this replica's pending list, where nobody else gets them while it
        lives. Reading them again is the first thing on a new connection, so there are never more of them than
        one read can bring.

        Parameters:
          streams: Those that are still to be read; the first one comes first.
          after: The entry up to which that one was read.
        """
        if not streams or self._link is None:
            self._ask()
            return
        read: Command = (
            "XREADGROUP", "GROUP", GROUP, self._replica.name, "COUNT", _HISTORY_PAGE, "STREAMS", streams[0], after,
        )  # fmt: skip
        # as of now: a call that ends while the reply is on its way must not look like a new one
        known = set(self._channel.qos.held)
        self._reading = True
        self._link.post([(read, lambda reply: self._on_history(streams, known, reply))])

    def _on_history(self, streams: list[str], known: set[Tag], reply: Any) -> None:
        self._reading = False
        if isinstance(reply, Exception):
            # no group: the queue is gone, and what was pending with it
            self._read_history(streams[1:], b"0")
            return
        entries = reply[0][1] if reply else []
        mine = []
        for entry_id, fields in entries:
            tag = Tag(streams[0], entry_id)
            if tag in known or tag in self._channel.qos.held or tag in self._replica.backlog:
                continue
            if fields:
                mine.append(_fetched(tag, fields))
            else:
                # whoever ended its request has deleted it
                log.info("call %s of queue %s was ended before it was begun", entry_id.decode(), streams[0])
                self._replica.plane.post(("XACK", streams[0], GROUP, entry_id), lambda reply: None)
        if mine:
            log.info("%d calls were fetched over the connection that was lost; they begin now", len(mine))
            self._begin(mine)
        if len(entries) < _HISTORY_PAGE:
            self._read_history(streams[1:], b"0")
        else:
            self._read_history(streams, entries[-1][0])

    # -- what is new -------------------------------------------------------------------------------

    def _ask(self) -> None:
        room = self._replica.room()
        if self._reading or room <= 0 or self._link is None or self._stop.is_set():
            return
        self._reading = True
        read: Command = (
            "XREADGROUP", "GROUP", GROUP, self._replica.name, "COUNT", room, "BLOCK", int(BLOCK_S * 1000),
            "STREAMS", *self._replica.streams, *(">" for _ in self._replica.streams),
        )  # fmt: skip
        self._link.post([(read, self._on_entries)])

    def _ask_anew(self) -> None:
        """End the blocked read, so that the next one has the new stream."""
        if self._reading:
            self._replica.plane.post(("CLIENT", "UNBLOCK", self._connection_id), lambda reply: None)

    def _on_entries(self, reply: Any) -> None:
        self._reading = False
        if isinstance(reply, Exception):
            if not self._stop.is_set():
                self._on_refused(reply)
            return
        self._refusals = 0
        if reply:
            if failpoints.ARMED:
                failpoints.hit("fetch.after_read")
            for name, entries in reply:
                stream = name.decode()
                self._begin([_fetched(Tag(stream, entry_id), fields) for entry_id, fields in entries])
            # what the calls caused leaves before the next read is asked for: other replicas wait for it
            self._replica.plane.flush()
        self._ask()

    def _begin(self, entries: list[Fetched]) -> None:
        for tag, fields in self._replica.backlog.drain(entries):
            try:
                self._channel.deliver(tag.stream, [(tag.entry_id, fields)])
            except Exception as error:
                # one that is no call of ours must not take those behind it along
                self._replica.ending.bury_unread(Delivery(fields, self._channel, tag), error)

    def _on_refused(self, reply: Exception) -> None:
        """Try again, more and more slowly.

        A queue that is gone was retired, or the supervisor makes it anew: not every replica by itself, or a
        retired version would come back to life.
        """
        if not self._refusals:
            self._advertiser.renew()
        if self._refusals == REFUSALS_TO_TELL:
            log.warning("the queue cannot be read: %s", reply)
        self._refusals += 1
        self._replica.loop.call_later(min(0.1 * 2**self._refusals, 2.0), self._ask)

    def _on_lost(self, waiting: list[OnReply]) -> None:
        self._link, self._reading = None, False

    async def _drain(self) -> None:
        self._stop.set()
        self._replica.on_room = lambda: None
        if self._link is not None and self._reading:
            # the blocked read ends at once, with whatever was delivered to it meanwhile
            self._replica.plane.post(("CLIENT", "UNBLOCK", self._connection_id), lambda reply: None)
            ended = self._replica.loop.time() + 1.0
            while self._reading and self._replica.loop.time() < ended:
                await asyncio.sleep(0.005)
        if failpoints.ARMED:
            failpoints.hit("drain.mid")
        await self._replica.drain()
        if self._link is not None:
            self._link.close()
