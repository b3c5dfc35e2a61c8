"""The plane of a replica: everything on one asyncio loop, and safe to call from its threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hiredis

from qserve.exceptions import BrokerUnavailable
from qserve.items import ItemRef
from qserve.keys import Keys
from qserve.plane import functions
from qserve.plane.base import CallOptions, Outcome
from qserve.plane.client import ClientPlane
from qserve.plane.connection import BLOCK_S, process_name, refusal
from qserve.plane.functions import LOAD, Command
from qserve.plane.link import Link, OnReply
from qserve.plane.outgoing import Composer, Submission
from qserve.plane.pending import Pending
from qserve.plane.replies import refused
from qserve.ref import Ref
from qserve.registry import ApplicationRecord
from qserve.settings import Settings
from qserve.wire.codec import Codec

log = logging.getLogger(__name__)


class LoopPlane:
    """Calls, commits and results on the loop that made it.

    Commands of one turn of the loop leave in one write. Each of them may be sent again after a lost
    connection: submissions, commits and endings say of themselves that they happened before.

    Parameters:
      settings: Names the broker; its key signs what must be pickled.
      find: Gives an application's record by its name without blocking.
    """

    def __init__(self, settings: Settings, keys: Keys, codec: Codec, find: Callable[[str], ApplicationRecord]) -> None:
        self.settings = settings
        self.keys = keys
        self.codec = codec
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._mailbox = keys.mailbox(process_name())
        self._composer = Composer(settings, keys, codec, find)
        self._pending = Pending()
        self._outbox: deque[tuple[Command, OnReply]] = deque()
        self._unanswered: deque[tuple[Command, OnReply]] = deque()
        self._flushing = False
        self._link: Link | None = None
        self._reader: asyncio.Task[None] | None = None
        self._aside: ClientPlane | None = None
        self._forgotten: list[str] = []

    async def open(self) -> None:
        """Connect; raises BrokerUnavailable."""
        assert self.settings.broker_url is not None
        self._link = await Link.open(self.settings.broker_url, self._on_lost)
        self._resend()

    def close(self) -> None:
        """Close the connections."""
        if self._reader is not None:
            self._reader.cancel()
        if self._link is not None:
            self._link.close()
        if self._aside is not None:
            self._aside.close()

    # -- the Plane ---------------------------------------------------------------------------------

    def call(
        self,
        app: str,
        deployment: str,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: CallOptions,
    ) -> Ref:
        """Start one method of a deployment; see ``plane.base.Plane``."""
        return self._submit(self._composer.call(app, deployment, method, args, kwargs, options), options)

    def run(
        self,
        app: str,
        graph: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: CallOptions,
    ) -> Ref:
        """Start a graph; see ``plane.base.Plane``."""
        return self._submit(self._composer.run(app, graph, args, kwargs, options), options)

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

    def follow(self, ref: Ref) -> None:
        """Have this process told when ``ref``, which may come from elsewhere, is done."""
        if ref.done.is_set() or ref.request_id in self._pending:
            return
        self._pending.add(ref)
        self._listen()
        self.post(functions.watch(self.keys.request(ref.request_id), self._mailbox), self._pending.on_watched(ref))

    def cancel(self, ref: Ref) -> None:
        """End an open request without a result."""
        self.post(functions.close(self.keys.request(ref.request_id), ref.request_id, "c", b""), ignore)

    def take(self, request_id: str, count: int) -> None:
        """This many more items of a streamed result were taken."""
        self.post(functions.take(self.keys.request(request_id), count), ignore)

    def forget(self, request_id: str) -> None:
        """Drop a result that nobody will ask for again; sent along with what leaves next."""
        self._forgotten.append(self.keys.request(request_id))

    # -- sending -----------------------------------------------------------------------------------

    def _submit(self, submission: Submission, options: CallOptions) -> Ref:
        kind = ItemRef if options.stream else Ref
        ref = kind(submission.request_id, self, owned=True)
        if submission.outcome is not None:
            ref.settle(submission.outcome)
            return ref
        self._pending.add(ref, submission.deadline_ms)

        def on_reply(reply: Any) -> None:
            outcome = refused(reply)
            if outcome is None:
                ref.accepted.set(None)
            else:
                self._pending.settle(ref.request_id, outcome)

        self.post(submission.command(self._mailbox), on_reply)
        if self._reader is None:
            self._on_loop(self._listen)
        return ref

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
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            if "Function not found" in text:
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
                pause_s = min(pause_s * 2, 2.0)

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
        take: Command = ("BLMPOP", str(BLOCK_S), 1, self._mailbox, "LEFT", "COUNT", 256)
        pause_s = 0.05
        while True:
            try:
                link = await Link.open(self.settings.broker_url, _report_lost)
                self._catch_up()
                pause_s = 0.05
                while True:
                    found = await asyncio.wait_for(link.call(take), BLOCK_S + 5)
                    for message in found[1] if found else ():
                        self._pending.arrive(message)
                    self._look_after()
            except (BrokerUnavailable, hiredis.ReplyError, TimeoutError) as error:
                log.debug("the mailbox cannot be read: %s", error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 2.0)

    def _catch_up(self) -> None:
        # a reply may have been popped for a connection that was lost: the result itself is still stored
        for ref in self._pending.refs():
            self.post(functions.watch(self.keys.request(ref.request_id)), self._pending.on_watched(ref))

    def _look_after(self) -> None:
        late, foreign = self._pending.due()
        for ref in late:
            self.post(functions.close(self.keys.request(ref.request_id), ref.request_id, "x", b""), ignore)
            self._pending.settle(ref.request_id, Outcome("x", b""))
        for ref in foreign:
            self.post(functions.watch(self.keys.request(ref.request_id)), self._pending.on_watched(ref))


def _report_lost(waiting: list[OnReply]) -> None:
    lost = BrokerUnavailable("the connection to the broker was lost")
    for on_reply in waiting:
        on_reply(lost)


def ignore(reply: Any) -> None:
    """For commands whose answer changes nothing."""
