"""The plane from sync code: scripts, threads, and a gateway's greenlets.

Two helpers serve all callers of a process: one sends whatever has gathered in one pipeline, one reads the
mailbox. Under gevent's patching the threads are greenlets.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from qserve.base import failpoints
from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.base.settings import REPLICA, Settings
from qserve.broker import functions
from qserve.broker.connection import (
    CLIENT_ERRORS,
    LONGEST_PAUSE_S,
    MAILBOX_BLOCK_S,
    STRAY_READ_S,
    connect,
    is_unknown_function,
    measure_clock,
    process_name,
)
from qserve.broker.library import LOAD, Command
from qserve.broker.link import WAIT, ThreadLink, replicated
from qserve.broker.registry import Registry
from qserve.calls.ref import Call, Ref
from qserve.calls.replies import failed
from qserve.calls.submitter import Submitter, ignore
from qserve.exceptions import AppNotFound, BrokerUnavailable, QserveException
from qserve.wire.application import ApplicationRecord
from qserve.wire.codec import Codec

log = get_logger(__name__)
SEND_FOR_S = 2.0
"""How long a submission is repeated while the broker is away, before the caller is told."""

_Sending = tuple[Command, Callable[[Any], None]]


class ClientPlane(Submitter):
    """Calls, results and cancellation over one broker, for any number of threads.

    Parameters:
      settings: Names the broker; its key signs what must be pickled.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.broker_url is None:
            raise BrokerUnavailable("no broker is named: set QSERVE_BROKER_URL, or call qserve.run(...) first")
        keys = Keys(settings.namespace)
        super().__init__(
            settings, keys, Codec(settings.keyring), keys.mailbox(process_name()), lambda app: self.application(app)
        )
        self.client = connect(settings.broker_url)
        self.registry = Registry(self.client, self.keys, self.seal)
        self._catalog: dict[str, tuple[float, ApplicationRecord]] = {}
        self._looked_at = 0.0
        self._sender, self._reader = ThreadLink(self.client), ThreadLink(self.client)
        self._deliver = partial(self._send, self._sender)
        if settings.durability == REPLICA:
            self._deliver = partial(replicated, self._deliver)
        self._outbox: SimpleQueue[_Sending | None] = SimpleQueue()
        self._start = threading.Lock()
        self._running = False
        self._closed = False

    def wait(self, ref: Ref, timeout_s: float | None) -> bool:
        """Block until ``ref`` is done; False when ``timeout_s`` passed first."""
        self.follow(ref)
        return ref.done.wait(timeout_s)

    def application(self, app: str) -> ApplicationRecord:
        """An application's record, at most a second old."""
        found = self._catalog.get(app)
        if found is None or found[0] < time.monotonic():
            try:
                self.learn(self.registry.get(app))
            except BrokerUnavailable:
                if found is None:
                    raise
                self.learn(found[1])  # as it was: a submission to a retired version is answered MOVED
        return self._catalog[app][1]

    def execute(self, command: Command) -> Any:
        """Send one command from this thread and answer its reply; for callers whose loop stands still."""
        with contextlib.closing(ThreadLink(self.client)) as connection:
            return self._send(connection, [command])[0]

    def learn(self, record: ApplicationRecord, for_s: float = 1.0) -> None:
        """Take an application's record as true for so long; the gateway is told of changes instead of asking."""
        self._catalog[record.name] = (time.monotonic() + for_s, record)

    def unlearn(self, app: str) -> None:
        """Ask the registry about an application at its next use."""
        self._catalog.pop(app, None)

    def close(self) -> None:
        """End the helper threads and the connections; open refs stay open."""
        self._closed = True
        self._outbox.put(None)
        with contextlib.suppress(*CLIENT_ERRORS):
            self.client.delete(self._mailbox)
        self.client.close()

    # -- sending -----------------------------------------------------------------------------------

    def _move(self, ref: Ref, call: Call) -> None:
        """Submit again to the version that is active now; the one that was known here has just been retired."""
        self._pending.drop(ref)
        self.unlearn(call.app)
        try:
            submission = self._composer.compose(call)
        except QserveException as error:
            ref.settle(failed(error))
            return
        ref.request_id = submission.request_id
        self._send_submission(ref, submission, lambda: self._pending.refuse(ref, failed(_replaced(call.app))))

    def post(self, command: Command, on_reply: Callable[[Any], None]) -> None:
        """Send a command with whatever else has gathered."""
        if not self._running:
            self._start_helpers()
        self._outbox.put((command, on_reply))

    def _start_helpers(self) -> None:
        with self._start:
            if not self._running:
                self._running = True
                threading.Thread(target=self._write, name="qserve-sender", daemon=True).start()
                threading.Thread(target=self._read, name="qserve-mailbox", daemon=True).start()

    def _write(self) -> None:
        while (first := self._outbox.get()) is not None:
            batch = [first]
            with contextlib.suppress(Empty):
                while len(batch) < 128:
                    item = self._outbox.get_nowait()
                    if item is None:
                        return
                    batch.append(item)
            if self._forgotten:
                done, self._forgotten = self._forgotten, []
                batch.append((functions.forget(done), ignore))
            self._exchange(batch)

    def _exchange(self, batch: list[_Sending]) -> None:
        """Send a batch and hand out the replies; every command here may safely be sent again."""
        give_up = time.monotonic() + SEND_FOR_S
        pause_s = 0.0  # a connection that stood idle may have been lost long ago
        while True:
            try:
                replies = self._deliver([command for command, _ in batch])
                break
            except CLIENT_ERRORS as error:
                if self._closed or time.monotonic() > give_up:
                    replies = [BrokerUnavailable(f"the broker cannot be reached: {error}")] * len(batch)
                    break
                time.sleep(pause_s)
                pause_s = min(pause_s * 2 or 0.05, 0.5)
        for (_, on_reply), reply in zip(batch, replies, strict=True):
            try:
                on_reply(reply)
            except Exception:  # one caller's trouble must not end the thread that serves them all
                log.exception("a reply of the broker could not be taken")

    def _send(self, connection: ThreadLink, commands: list[Command]) -> list[Any]:
        replies = connection.exchange(commands)
        missing = [place for place, reply in enumerate(replies) if is_unknown_function(reply)]
        if missing:
            if commands[-1] is WAIT:
                missing.append(len(commands) - 1)
            self.client.execute_command(*LOAD)
            again = self._send(connection, [commands[place] for place in missing])
            for place, reply in zip(missing, again, strict=True):
                replies[place] = reply
        return replies

    # -- the mailbox -------------------------------------------------------------------------------

    def _read(self) -> None:
        pause_s, stray_until = 0.05, math.inf
        read: Command = ("BLMPOP", str(MAILBOX_BLOCK_S), 1, self._mailbox, "LEFT", "COUNT", 256)
        while not self._closed:
            try:
                if failpoints.ARMED:
                    failpoints.hit("reply.before_wait")
                measure_clock(self.client)
                (found,) = self._reader.exchange([read])
                if isinstance(found, Exception):
                    raise found
                self._look_for_losses()
                if pause_s != 0.05 or time.monotonic() > stray_until:
                    self._catch_up()
                    # once more when the read of the lost connection is over at the broker
                    stray_until = time.monotonic() + STRAY_READ_S if pause_s != 0.05 else math.inf
                    pause_s = 0.05
            except Exception as error:
                if self._closed:  # under our feet, with whatever error the half-closed socket gives
                    return
                if isinstance(error, CLIENT_ERRORS):
                    log.debug("the mailbox cannot be read: %s", error)
                else:  # whatever it is, all callers of this process wait for this thread
                    log.exception("the mailbox cannot be read")
                self._look_after()  # deadlines pass all the same
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                continue
            for message in found[1] if found else ():
                self._pending.arrive(message)
            self._look_after()

    def _look_for_losses(self) -> None:
        """Once a second, while somebody waits: whether the broker still has what it had."""
        now = time.monotonic()
        if now - self._looked_at < 1.0 or not len(self._pending):
            return
        self._looked_at = now
        found: Any = self.client.get(self.epoch.key)
        self.adopt(found.decode() if found else "")


def _replaced(app: str) -> AppNotFound:
    return AppNotFound(f"the queues of application {app!r} are gone: it was deleted, or is being replaced")
