"""The plane of a replica: it works on one event loop, and is safe to call from the replica's threads."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.broker.connection import (
    LONGEST_PAUSE_S,
    MAILBOX_BLOCK_S,
    READ_TIMEOUT_S,
    is_unknown_function,
    refusal,
)
from qserve.broker.functions import LOAD
from qserve.broker.library import Command
from qserve.broker.link import Link, OnReply, ReplyError
from qserve.calls.client import BrokerPlane, ClientPlane
from qserve.calls.mailbox import ignore
from qserve.calls.ref import Ref
from qserve.exceptions import BrokerUnavailable
from qserve.wire.application import ApplicationRecord
from qserve.wire.codec import Codec

log = get_logger(__name__)
SILENCE_CHECK_INTERVAL_S = 0.5


class LoopPlane(BrokerPlane):
    """Carries the calls, commits and results of a replica on the event loop in which it was created.

    The commands of one turn of the loop are sent in one write. Each of them can be sent again after a lost connection,
    since the broker's functions recognise a submission, a commit or an end that has happened before.

    Parameters:
      find: Returns an application's record by its name, without blocking.
    """

    owns_results = True

    def __init__(self, settings: Settings, keys: Keys, codec: Codec, find: Callable[[str], ApplicationRecord]) -> None:
        super().__init__(settings, keys, codec, find)
        assert settings.broker_url is not None
        self.loop = asyncio.get_running_loop()
        self._url = settings.broker_url
        self._thread = threading.get_ident()
        self._outbox: deque[tuple[Command, OnReply]] = deque()
        self._unanswered: deque[tuple[Command, OnReply]] = deque()
        self._is_flush_due = False
        self._link: Link | None = None
        self._reader: asyncio.Task[None] | None = None
        self._sync_plane: ClientPlane | None = None

    async def open(self) -> None:
        """Connect to the broker; raise BrokerUnavailable if that fails."""
        link = await Link.open(self._url)
        try:
            found = await asyncio.wait_for(link.call(("GET", self.epoch.key)), READ_TIMEOUT_S)
            link.when_lost(self._on_lost)
        except (TimeoutError, ReplyError) as error:
            link.close()
            raise BrokerUnavailable(f"the broker's epoch cannot be read: {error}") from error
        self.mailbox.change_epoch(found.decode() if found else "")
        self._link = link
        again, self._unanswered = self._unanswered, deque()
        self._outbox.extendleft(reversed(again))
        self.flush()
        self._check_silence(link)

    def _check_silence(self, link: Link) -> None:
        # a connection that has fallen silent is closed, and what it has not answered is sent over another one
        if link is self._link:
            link.abandon_if_silent(READ_TIMEOUT_S)
            self.loop.call_later(SILENCE_CHECK_INTERVAL_S, self._check_silence, link)

    def close(self) -> None:
        """Close the connections."""
        if self._reader is not None:
            self._reader.cancel()
        if self._link is not None:
            self._link.close()
        if self._sync_plane is not None:
            self._sync_plane.close()

    def wait(self, ref: Ref[Any], timeout_s: float | None) -> bool:
        """Block this thread until ``ref`` is done; return False if ``timeout_s`` passed first.

        In the thread of the event loop this blocks the loop. The result is then fetched over a second connection,
        which has a mailbox of its own.
        """
        if threading.get_ident() != self._thread:
            self.loop.call_soon_threadsafe(self.follow, ref)
            return ref.done.wait(timeout_s)
        plane = self._sync_plane = self._sync_plane or ClientPlane.connect(self.settings)
        # the loop would not send these before the wait is over
        outbox, self._outbox = self._outbox, deque()
        for command, on_reply in outbox:
            self.loop.call_soon(on_reply, plane.execute(command))
        twin: Ref[Any] = Ref(ref.request_id, plane)
        if not plane.wait(twin, timeout_s):
            return False
        ref.settle(twin.outcome())
        return True

    def _expect(self, ref: Ref[Any], deadline_ms: int = 0) -> None:
        super()._expect(ref, deadline_ms)
        if self._reader is None:
            self._on_loop(self._start_reader)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            self.loop.call_soon(callback)
        else:
            self.loop.call_soon_threadsafe(callback)

    # -- sending -----------------------------------------------------------------------------------

    def post(self, command: Command, on_reply: OnReply) -> None:
        """Send a command together with the others of this turn of the loop."""
        self._outbox.append((command, on_reply))
        if not self._is_flush_due:
            self._is_flush_due = True
            self._on_loop(self.flush)

    def flush(self) -> None:
        """Send the commands that have gathered; only in the loop's thread."""
        self._is_flush_due = False
        if self._link is None or not self._outbox:
            return
        release = self._release_command()
        if release is not None:
            self._outbox.append((release, ignore))
        batch, self._outbox = self._outbox, deque()
        self._unanswered.extend(batch)
        self._link.post([(command, self._on_reply) for command, _ in batch])

    def _on_reply(self, reply: Any) -> None:
        command, on_reply = self._unanswered.popleft()
        if isinstance(reply, ReplyError):
            if is_unknown_function(reply):
                # after a pause: where only a deploy may load the functions, this waits for it
                self._send_later(0.05, (LOAD, ignore), (command, on_reply))
                return
            reply = refusal(str(reply))
            if isinstance(reply, BrokerUnavailable):
                self._send_later(0.1, (command, on_reply))
                return
        on_reply(reply)

    def _send_later(self, pause_s: float, *commands: tuple[Command, OnReply]) -> None:
        self._outbox.extend(commands)
        self.loop.call_later(pause_s, self.flush)

    async def settled(self, timeout_s: float) -> bool:
        """Wait until every command was answered; return False if ``timeout_s`` passed first."""
        self.flush()
        end = self.loop.time() + timeout_s
        while (self._outbox or self._unanswered) and self.loop.time() < end:
            await asyncio.sleep(0.002)
        return not (self._outbox or self._unanswered)

    def _on_lost(self, waiting: list[OnReply]) -> None:
        self._link = None
        log.warning("the connection to the broker was lost; connecting again")
        self._reconnecting = self.loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        pause_s = 0.05
        while self._link is None:
            try:
                await self.open()
            except BrokerUnavailable:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    # -- the mailbox -------------------------------------------------------------------------------

    def _start_reader(self) -> None:
        if self._reader is None:
            self._reader = self.loop.create_task(self._read_mailbox())

    async def _read_mailbox(self) -> None:
        reading = self.mailbox.read()
        action = next(reading)
        link: Link | None = None
        while True:
            try:
                reply = None
                if isinstance(action, float):
                    await asyncio.sleep(action)
                else:
                    link = link or await Link.open(self._url)
                    reply = await asyncio.wait_for(link.call(action), MAILBOX_BLOCK_S + READ_TIMEOUT_S)
            except ReplyError as error:
                action = reading.send(error)
            except Exception as error:
                if link is not None:
                    link.close()
                    link = None
                action = reading.throw(error)
            else:
                action = reading.send(reply)
