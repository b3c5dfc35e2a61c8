"""The plane of a replica: it works on one event loop, and is safe to call from the replica's threads."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from qserve.base.forks import on_fork
from qserve.base.log import get_logger
from qserve.base.loop_at_hand import held, loop_that_runs
from qserve.base.once import may_say
from qserve.base.promise import Promise
from qserve.base.settings import Settings
from qserve.base.turns import Turns
from qserve.broker.connection import (
    IDLE_BLOCK_S,
    LONGEST_PAUSE_S,
    MAILBOX_BLOCK_S,
    READ_TIMEOUT_S,
    is_unknown_function,
    refusal,
)
from qserve.broker.functions import LOAD
from qserve.broker.library import Command
from qserve.broker.link import Link, OnReply, ReplyError
from qserve.calls.client import SEND_FOR_S, BrokerPlane, ClientPlane
from qserve.calls.events import Logged
from qserve.calls.mailbox import ignore
from qserve.calls.ref import Call, Ref, current
from qserve.exceptions import BrokerError, BrokerUnavailable, WrongType
from qserve.payloads.store import ValueStore
from qserve.wire.application import ApplicationRecord
from qserve.wire.progress import Progress
from qserve.wire.replies import epoch, warn_once
from qserve_workers.replica.lasting_link import SHORTEST_PAUSE_S, LastingLink

log = get_logger(__name__)


class _BesidePlane(ClientPlane):
    """The plane of sync code that holds up the loop of a replica; it has threads and a mailbox of its own."""

    owns_results = True

    def __init__(self, settings: Settings, find: Callable[[str], ApplicationRecord], store: ValueStore) -> None:
        super().__init__(settings, store=store)
        self.find = find


UNBLOCK_AGAIN_S = 0.1
"""A read that was about to block when it was ended blocks all the same, so it is ended again."""
_LOST_FOR_S = 5.0
"""The connections of all replicas of a worker are lost together, within so many seconds."""


_said_lost_at = -_LOST_FOR_S


def _say_lost() -> None:
    global _said_lost_at
    now = time.monotonic()
    if now - _said_lost_at >= _LOST_FOR_S and may_say("a connection is lost", _LOST_FOR_S):
        _said_lost_at = now
        log.warning("the connection to the broker was lost; connecting again")


class LoopPlane(BrokerPlane):
    """Carries the calls, commits and results of a replica on the event loop in which it was created.

    The commands of one turn of the loop are sent in one write. Each of them can be sent again after a lost connection,
    since the broker's functions recognise a submission, a commit or an end that has happened before.

    Parameters:
      find: Returns an application's record by its name, without blocking.
      replica: The name of the replica; the broker's functions notify it of cancelled calls under that name.
    """

    owns_results = serves_replica = True

    def __init__(self, settings: Settings, find: Callable[[str], ApplicationRecord], replica: str = "") -> None:
        super().__init__(settings, find, name=replica)
        assert settings.broker_url is not None
        self.loop = asyncio.get_running_loop()
        self._link = LastingLink(
            settings.broker_url,
            Turns("connecting to the broker", log, first_s=SHORTEST_PAUSE_S, longest_s=LONGEST_PAUSE_S, is_quiet=True),
            READ_TIMEOUT_S,
            prepare=self._read_epoch,
            on_open=self._send_again,
            on_lost=_say_lost,
        )
        self._url = settings.broker_url
        self._thread = threading.get_ident()
        self._context = contextvars.copy_context()  # the plane's own work belongs to none of the calls that cause it
        self._outbox: deque[tuple[Command, OnReply]] = deque()
        self._unanswered: deque[tuple[Command, OnReply]] = deque()
        self._is_flush_due = False
        self._reader: asyncio.Task[None] | None = None
        self._mailbox_link: Link | None = None
        self._reader_id = 0
        self.mailbox.read_long(IDLE_BLOCK_S)
        self._sync_plane: ClientPlane | None = None
        self._opening_beside = threading.Lock()
        on_fork(self)

    def leave_to_parent(self) -> None:
        """In a forked child: handles, and waits for refs of the parent, use a plane like that of any program."""
        current.installed = client = ClientPlane(self.settings, is_of_program=True)
        client.mailbox.expect_unknown(self.on_their_way(), 2 * SEND_FOR_S)
        self.wait, self.follow = client.wait, client.follow  # type: ignore[method-assign]
        self.progress, self.events = client.progress, client.events  # type: ignore[method-assign]
        self.note = client.note  # type: ignore[method-assign]
        self.cancel = ignore  # type: ignore[method-assign, assignment]  # copies of streams are deleted

    async def open(self) -> None:
        await self._link.open()

    async def _read_epoch(self, link: Link) -> None:
        try:
            self.mailbox.change_epoch(epoch(await link.call(("GET", self.epoch.key))))
        except ReplyError as error:
            if not isinstance(refusal(error), WrongType):
                raise
            # each submission is refused for it, and what was accepted goes on
            warn_once(f"the epoch cannot be read: {error}")

    def _send_again(self) -> None:
        again, self._unanswered = self._unanswered, deque()
        self._outbox.extendleft(reversed(again))
        self.flush()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        self._link.close()
        if self._sync_plane is not None:
            self._sync_plane.close()
        self.store.close()

    def wait(self, ref: Ref[Any], timeout_s: float | None) -> bool:
        """Block this thread until ``ref`` is done; return False if ``timeout_s`` passed first.

        In the thread of the event loop this blocks the loop. The result is then fetched over a second connection,
        which has its own mailbox.
        """
        if threading.get_ident() != self._thread:
            self.loop.call_soon_threadsafe(self.follow, ref)
            return ref.done.wait(timeout_s) or self.look(ref)
        plane = self._beside()
        # the loop would not send these before the wait is over
        outbox, self._outbox = self._outbox, deque()
        for command, on_reply in outbox:
            reply = plane.execute(command)
            if isinstance(on_reply, partial) and on_reply.args[:1] == (ref,):
                on_reply(reply)  # the call may have been refused: then the broker does not know it
            else:
                self.loop.call_soon(on_reply, reply)
        if ref.done.is_set():
            return True
        twin: Ref[Any] = Ref(ref.request_id, plane)
        if not plane.wait(twin, timeout_s):
            return False
        ref.settle(twin.outcome())
        return True

    def submit(self, call: Call) -> Ref[Any]:
        if held and self.loop in held:  # sync code, such as a constructor's, may wait for the result in any thread
            return self._beside().submit(call)
        return super().submit(call)

    def _beside(self) -> ClientPlane:
        with self._opening_beside:
            if self._sync_plane is None:
                self._sync_plane = _BesidePlane(self.settings, self.find, self.store)
            return self._sync_plane

    def follow(self, ref: Ref[Any]) -> None:
        if self._is_held_up():
            self.wait(ref, None)
        else:
            super().follow(ref)

    def progress(self, request_id: str) -> Promise[Progress | Exception | None]:
        return self._beside().progress(request_id) if self._is_held_up() else super().progress(request_id)

    def events(self, request_id: str, after: int) -> Promise[Logged | Exception]:
        return self._beside().events(request_id, after) if self._is_held_up() else super().events(request_id, after)

    def check_items_arrive(self) -> None:
        if self._is_held_up():
            raise RuntimeError(
                "a stream cannot be read by a loop that holds up the replica's, which brings its items: read it in an"
                " `async def` method, or in an `async def __init__`"
            )

    def _is_held_up(self) -> bool:
        """Return whether a loop that user code runs, such as that of a constructor, holds up this one."""
        return threading.get_ident() == self._thread and loop_that_runs() is not self.loop

    def _expect(self, ref: Ref[Any], deadline_ms: int = 0) -> None:
        super()._expect(ref, deadline_ms)
        if self._reader is None:
            self._on_loop(self._start_reader)
        elif self.mailbox.reads_long:
            self._on_loop(self._end_long_read)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            self.loop.call_soon(callback, context=self._context)
        else:
            self.loop.call_soon_threadsafe(callback, context=self._context)

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
        link = self._link.current
        if link is None or not self._outbox:
            return
        self._outbox += self._releases()
        batch, self._outbox = self._outbox, deque()
        self._unanswered.extend(batch)
        try:
            link.post([(command, self._on_reply) for command, _ in batch])
        except (TypeError, ValueError):  # one of them cannot be written, and none was sent
            for _ in batch:
                self._unanswered.pop()
            for command, on_reply in batch:
                self._post_alone(link, command, on_reply)

    def _post_alone(self, link: Link, command: Command, on_reply: OnReply) -> None:
        self._unanswered.append((command, on_reply))
        try:
            link.post([(command, self._on_reply)])
        except (TypeError, ValueError) as error:
            self._unanswered.pop()
            on_reply(BrokerError(f"a command for the broker cannot be written: {error}"))

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

    async def settled(self, timeout_s: float) -> None:
        """Wait until every command was answered, or ``timeout_s`` has passed."""
        self.flush()
        end = self.loop.time() + timeout_s
        while (self._outbox or self._unanswered) and self.loop.time() < end:
            await asyncio.sleep(0.002)

    def end_read(self, connection_id: int) -> None:
        """End the blocking read of another connection of this replica, if one is under way."""
        self.post(("CLIENT", "UNBLOCK", connection_id), ignore)

    # -- the mailbox -------------------------------------------------------------------------------

    def listen(
        self,
        on_ended: Callable[[str, str], None],
        on_gap: Callable[[], None],
        on_reader: Callable[[str], None],
        on_told: Callable[[str, bytes], None],
    ) -> None:
        """Read the mailbox from now on.

        Parameters:
          on_ended: Gets each request that was cancelled or has expired.
          on_gap: Called when such messages may have been lost.
          on_reader: Gets each request that somebody begins to follow.
          on_told: Gets what the clients of WebSockets send: the request, and a sealed part.
        """
        self.mailbox.report_ends(on_ended, on_gap, on_reader, on_told)
        self._on_loop(self._start_reader)

    def _start_reader(self) -> None:
        if self._reader is None:
            self._reader = self.loop.create_task(self._read_mailbox())

    def renew(self) -> None:
        """Open all connections again: the broker is silent, as another connection has noticed."""
        self._link.renew()
        if self._mailbox_link is not None:
            self._mailbox_link.abort()

    def _end_long_read(self) -> None:
        if self.mailbox.reads_long and self._reader_id:
            self.end_read(self._reader_id)
            self.loop.call_later(UNBLOCK_AGAIN_S, self._end_long_read)

    async def _open_reader(self) -> Link:
        link = await Link.open(self._url)
        self._reader_id = await link.call(("CLIENT", "ID"))
        return link

    async def _read_mailbox(self) -> None:
        reading = self.mailbox.read()
        action = next(reading)
        link: Link | None = None
        while True:
            self.trim()
            try:
                reply = None
                if isinstance(action, float):
                    await asyncio.sleep(action)
                else:
                    link = link or await self._open_reader()
                    self._mailbox_link = link
                    limit_s = IDLE_BLOCK_S if self.mailbox.reads_long else MAILBOX_BLOCK_S
                    reply = await asyncio.wait_for(link.call(action), limit_s + READ_TIMEOUT_S)
            except ReplyError as error:
                action = reading.send(error)
            except BaseException as error:
                if link is not None:
                    link.close()
                    link, self._reader_id = None, 0
                if not isinstance(error, Exception):  # the plane is closed
                    raise
                action = reading.throw(error)
            else:
                action = reading.send(reply)
