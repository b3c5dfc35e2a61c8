"""Celery's consumer with asyncio's loop in the place of its own: one thread reads, runs and commits."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import hiredis
from celery import bootsteps
from celery.worker import state
from celery.worker.consumer import Consumer

from qserve.exceptions import BrokerUnavailable
from qserve.keys import GROUP
from qserve.log import get_logger
from qserve.plane.connection import BLOCK_S, READ_TIMEOUT_S
from qserve.plane.library import Command
from qserve.plane.link import Link, OnReply
from qserve_workers.models import Advertiser
from qserve_workers.replica import Replica

log = get_logger(__name__)
_TICK_S = 0.5


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


def _run_loop(consumer: Any, connection: Any, task_consumer: Any, blueprint: Any, *args: Any, **kwargs: Any) -> None:
    replica: Replica = consumer.controller.replica
    consumer.task_consumer.on_message = consumer.create_task_handler()
    fetcher = Fetcher(replica, task_consumer, lambda: blueprint.state == bootsteps.RUN)
    replica.loop.run_until_complete(fetcher.run(consumer.on_ready))
    state.should_stop = 0
    state.maybe_shutdown()


class Fetcher:
    """Reads a deployment's queue for one replica: as much as it has room for, never more.

    Parameters:
      replica: Runs the calls, and says how many more it can take.
      task_consumer: Celery's consumer of the queue, through whose channel messages are delivered.
      running: Whether Celery wants the worker to go on.
    """

    def __init__(self, replica: Replica, task_consumer: Any, running: Callable[[], bool]) -> None:
        self._replica = replica
        self._channel = task_consumer.channel
        self._running = running
        self._link: Link | None = None
        self._reading = False
        self._read_at = 0.0
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
        advertiser = Advertiser(self._replica, self._replica.keys, self._channel)
        await self._connect()
        on_ready()
        while self._running() and not self._stop.is_set() and state.should_stop is None:
            try:
                await asyncio.wait_for(self._stop.wait(), _TICK_S)
            except TimeoutError:
                await self._watch()
        advertiser.stop()
        await self._drain()

    async def _connect(self) -> None:
        url = self._replica.settings.broker_url
        assert url is not None
        pause_s = 0.05
        while not self._stop.is_set():
            try:
                link = await Link.open(url, self._on_lost)
                self._connection_id = await link.call(("CLIENT", "ID"))
                self._link, self._reading = link, False
                self._ask()
                return
            except (
                BrokerUnavailable,
                hiredis.ReplyError,
                *self._channel.connection.connection_errors,
            ) as error:
                log.warning("the queue cannot be read: %s", error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 2.0)

    async def _watch(self) -> None:
        """Connect again when the connection is gone, or silent for longer than a blocking read can be."""
        silent_s = self._replica.loop.time() - self._read_at
        if self._link is not None and self._reading and silent_s > BLOCK_S + READ_TIMEOUT_S:
            log.warning("the connection to the queue is silent; connecting again")
            self._link.close()
            self._link = None
        if self._link is None:
            await self._connect()

    def _ask(self) -> None:
        room = self._replica.room()
        if self._reading or room <= 0 or self._link is None or self._stop.is_set():
            return
        self._reading = True
        self._read_at = self._replica.loop.time()
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
        if isinstance(reply, hiredis.ReplyError):
            # a queue that is gone was retired, or the supervisor makes it anew: not every replica by itself, or a
            # retired version would come back to life
            log.debug("the queue cannot be read: %s", reply)
            self._replica.loop.call_later(0.2, self._ask)
            return
        if reply:
            for stream, entries in reply:
                pairs = [(entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in entries]
                self._channel.deliver(stream.decode(), pairs)
            # what the calls caused leaves before the next read is asked for: other replicas wait for it
            self._replica.plane.flush()
        self._ask()

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
        await self._replica.drain()
        if self._link is not None:
            self._link.close()
