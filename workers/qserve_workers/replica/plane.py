"""The plane of a replica: everything on one asyncio loop, and safe to call from its threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.connection import (
    LONGEST_PAUSE_S,
    MAILBOX_BLOCK_S,
    READ_TIMEOUT_S,
    STRAY_READ_S,
    is_unknown_function,
    process_name,
    refusal,
)
from qserve.broker.library import LOAD, Command
from qserve.broker.link import Link, OnReply, ReplyError
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Ref
from qserve.calls.submitter import Submitter, ignore
from qserve.exceptions import BrokerUnavailable
from qserve.wire.application import ApplicationRecord
from qserve.wire.codec import Codec

log = logging.getLogger(__name__)
_LOOK_S = 0.5


class LoopPlane(Submitter):
    """Calls, commits and results on the loop that made it.

    Commands of one turn of the loop leave in one write. Each of them may be sent again after a lost
    connection: submissions, commits and endings say of themselves that they happened before.

    Parameters:
      settings: Names the broker; its key signs what must be pickled.
      find: Gives an application's record by its name without blocking.
    """

    owns_results = True

    def __init__(self, settings: Settings, keys: Keys, codec: Codec, find: Callable[[str], ApplicationRecord]) -> None:
        super().__init__(settings, keys, codec, keys.mailbox(process_name()), find)
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._outbox: deque[tuple[Command, OnReply]] = deque()
        self._unanswered: deque[tuple[Command, OnReply]] = deque()
        self._flushing = False
        self._link: Link | None = None
        self._reader: asyncio.Task[None] | None = None
        self._aside: ClientPlane | None = None
        self._looked_at = 0.0

    async def open(self) -> None:
        """Connect; raises BrokerUnavailable."""
        assert self.settings.broker_url is not None
        link = await Link.open(self.settings.broker_url)
        try:
            found = await asyncio.wait_for(link.call(("GET", self.epoch.key)), READ_TIMEOUT_S)
            link.when_lost(self._on_lost)
        except (TimeoutError, ReplyError) as error:
            link.close()
            raise BrokerUnavailable(f"the broker does not tell its epoch: {error}") from error
        self.adopt(found.decode() if found else "")
        self._link = link
        self._resend()
        self._watch(self._link)

    def _watch(self, link: Link) -> None:
        # a connection that has fallen silent: what waits is sent again over another one
        if link is self._link:
            link.abandon_if_silent(READ_TIMEOUT_S)
            self.loop.call_later(_LOOK_S, self._watch, link)

    def close(self) -> None:
        """Close the connections."""
        if self._reader is not None:
            self._reader.cancel()
        if self._link is not None:
            self._link.close()
        if self._aside is not None:
            self._aside.close()

    # -- the Plane ---------------------------------------------------------------------------------

    def wait(self, ref: Ref, timeout_s: float | None) -> bool:
        """Block this thread until ``ref`` is done.

        On the loop's own thread the loop stands still meanwhile, so the result is fetched beside it, over
        a second connection that has a mailbox of its own.
        """
        if threading.get_ident() != self._thread:
            self.loop.call_soon_threadsafe(self.follow, ref)
            return ref.done.wait(timeout_s)
        aside = self._aside = self._aside or ClientPlane(self.settings)
        self._hand_over(aside)
        twin = Ref(ref.request_id, aside)
        if not aside.wait(twin, timeout_s):
            return False
        ref.settle(twin.outcome())
        return True

    def _hand_over(self, aside: ClientPlane) -> None:
        # what this turn of the loop has gathered would never leave while the loop stands still
        outbox, self._outbox = self._outbox, deque()
        for command, on_reply in outbox:
            reply = aside.execute(command)
            self.loop.call_soon(on_reply, reply)

    def _expect(self, ref: Ref, deadline_ms: int = 0) -> None:
        super()._expect(ref, deadline_ms)
        if self._reader is None:
            self._on_loop(self._listen)

    # -- sending -----------------------------------------------------------------------------------

    def post(self, command: Command, on_reply: OnReply) -> None:
        """Send a command with whatever else leaves in this turn of the loop."""
        self._outbox.append((command, on_reply))
        if not self._flushing:
            self._flushing = True
            self._on_loop(self.flush)

    async def settled(self, timeout_s: float) -> bool:
        """Wait until everything sent was answered; False when that took longer."""
        self.flush()
        end = self.loop.time() + timeout_s
        while (self._outbox or self._unanswered) and self.loop.time() < end:
            await asyncio.sleep(0.002)
        return not (self._outbox or self._unanswered)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            self.loop.call_soon(callback)
        else:
            self.loop.call_soon_threadsafe(callback)

    def flush(self) -> None:
        """Send what has gathered; on the loop's thread only."""
        self._flushing = False
        if self._link is None or not self._outbox:
            return
        if self._forgotten:
            done, self._forgotten = self._forgotten, []
            self._outbox.append((functions.forget(done), ignore))
        batch, self._outbox = self._outbox, deque()
        self._unanswered.extend(batch)
        self._link.post([(command, self._answer) for command, _ in batch])

    def _answer(self, reply: Any) -> None:
        command, on_reply = self._unanswered.popleft()
        if isinstance(reply, ReplyError):
            text = str(reply)
            if is_unknown_function(reply):
                self._outbox.extend([(LOAD, ignore), (command, on_reply)])
                # not at once: where only the deployer may load, this waits for it
                self.loop.call_later(0.05, self.flush)
                return
            reply = refusal(text)
            if isinstance(reply, BrokerUnavailable):
                self._outbox.append((command, on_reply))
                self.loop.call_later(0.1, self.flush)
                return
        on_reply(reply)

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

    def _resend(self) -> None:
        again, self._unanswered = self._unanswered, deque()
        self._outbox.extendleft(reversed(again))
        self.flush()

    # -- the mailbox -------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._reader is None:
            self._reader = self.loop.create_task(self._read_mailbox())

    async def _read_mailbox(self) -> None:
        assert self.settings.broker_url is not None
        take: Command = ("BLMPOP", str(MAILBOX_BLOCK_S), 1, self._mailbox, "LEFT", "COUNT", 256)
        pause_s = 0.05
        while True:
            link = None
            try:
                link = await Link.open(self.settings.broker_url)
                self._catch_up()
                self.loop.call_later(STRAY_READ_S, self._catch_up)
                pause_s = 0.05
                while True:
                    found = await asyncio.wait_for(link.call(take), MAILBOX_BLOCK_S + READ_TIMEOUT_S)
                    for message in found[1] if found else ():
                        self._pending.arrive(message)
                    self._look_after()
                    await self._look_for_losses(link)
            except (BrokerUnavailable, ReplyError, TimeoutError) as error:
                log.debug("the mailbox cannot be read: %s", error)
                if link is not None:
                    link.close()
                self._look_after()  # deadlines pass all the same
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _look_for_losses(self, link: Link) -> None:
        """Once a second, while somebody waits: whether the broker still has what it had."""
        now = self.loop.time()
        if now - self._looked_at < 1.0 or not len(self._pending):
            return
        self._looked_at = now
        found = await asyncio.wait_for(link.call(("GET", self.epoch.key)), MAILBOX_BLOCK_S + READ_TIMEOUT_S)
        self.adopt(found.decode() if found else "")
