"""The planes over a broker: ``BrokerPlane``, which replicas share, and ``ClientPlane`` for sync code.

A ``ClientPlane`` serves scripts, threads, and the greenlets of a gateway. Two threads work for all callers of a
process: one sends what has gathered in one pipeline, and one reads the mailbox. Under gevent's patching they are
greenlets.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from qserve.base import failpoints
from qserve.base.log import get_logger
from qserve.base.settings import REPLICA, Settings
from qserve.broker import functions
from qserve.broker.connection import CLIENT_ERRORS, connect, is_unknown_function
from qserve.broker.functions import LOAD, NOT_REPLICATED, Reply, other_epoch, read_found
from qserve.broker.library import Command
from qserve.broker.link import WAIT, OnReply, ThreadLink, replicated
from qserve.broker.registry import Registry
from qserve.calls.compose import ComposingPlane, Submission
from qserve.calls.mailbox import STATE_LOST, Mailbox, ignore, outcome_of, refused
from qserve.calls.ref import Call, Ref, failed
from qserve.exceptions import BrokerUnavailable, QserveException
from qserve.wire.application import ApplicationRecord
from qserve.wire.outcome import Outcome, State
from qserve.wire.sealing import Seal, seal_header, seal_moves

log = get_logger(__name__)
SEND_FOR_S = 2.0
"""How long commands are sent again while the broker is away, before their callers get an error."""
_SEND_COUNT = 128


class BrokerPlane(ComposingPlane):
    """Submits calls to a broker and follows them to their end; for the parameters see ``ComposingPlane``."""

    def __init__(self, settings: Settings, find: Callable[[str], ApplicationRecord]) -> None:
        super().__init__(settings, find)
        self.seal = Seal(settings.keyring)
        self.mailbox = Mailbox(self.keys, self.seal, self.post)
        self.epoch = self.mailbox.epoch
        self._released: list[str] = []

    @abstractmethod
    def post(self, command: Command, on_reply: OnReply) -> None:
        """Send a command and call back with its reply; it may be sent again when the reply is lost."""

    def follow(self, ref: Ref[Any]) -> None:
        if not ref.done.is_set() and ref not in self.mailbox:
            self._expect(ref)
            self.mailbox.watch(ref, self.mailbox.name)

    def cancel(self, ref: Ref[Any]) -> None:
        self.mailbox.close(ref, State.CANCELLED)

    def expire(self, ref: Ref[Any]) -> None:
        """End a request whose deadline has passed while its caller waited."""
        self.mailbox.expire(ref)

    def add_credit(self, request_id: str, items: int) -> None:
        self.post(functions.take(self.keys.request(request_id), items), ignore)

    def release(self, request_id: str) -> None:
        self._released.append(self.keys.request(request_id))

    def _release_command(self) -> Command | None:
        """Return the command that deletes the released results; None if there are none."""
        if not self._released:
            return None
        released, self._released = self._released, []
        return functions.forget(released)

    def _expect(self, ref: Ref[Any], deadline_ms: int = 0) -> None:
        self.mailbox.add(ref, deadline_ms)

    def _send(self, ref: Ref[Any], submission: Submission, call: Call | None) -> None:
        self._expect(ref, submission.header.deadline_ms)
        if failpoints.ARMED:
            failpoints.hit("submit.before_send")
        request, header, moves, awaited, life_ms, keep_ms, limits, model, fingerprint = submission
        request_id = header.request_id
        sealed, moves = seal_header(self.seal, header.encode()), seal_moves(self.seal, request_id, moves)
        command = functions.submit(
            request, request_id, self.epoch, sealed, self.mailbox.name, life_ms, keep_ms, moves,
            awaited, limits, model.model_id, model.max_ongoing, fingerprint,
        )  # fmt: skip
        self.post(command, partial(self._on_submitted, ref, submission, call))

    def _on_submitted(self, ref: Ref[Any], submission: Submission, call: Call | None, reply: Any) -> None:
        epoch = other_epoch(reply)
        if epoch is not None:
            self._on_other_epoch(ref, submission, call, epoch)
            return
        found = read_found(reply)
        if found is None:
            outcome = refused(reply)
        else:  # the id is in use: by a process that submitted the request before
            ref.accepted.set(True)
            self.mailbox.clear_deadline(ref)
            outcome = outcome_of(found, self.seal, ref.request_id)
        if outcome is not None:
            self.mailbox.refuse(ref, outcome)
        if reply == NOT_REPLICATED:  # its caller will send another in its place, maybe with the same key
            self.cancel(ref)
            self.release(ref.request_id)
        ref.accepted.set(True)  # no effect on a ref that was refused: it is settled

    def _on_other_epoch(self, ref: Ref[Any], submission: Submission, call: Call | None, epoch: str) -> None:
        """Send a submission again that was meant for another state of the broker, and so was not accepted."""
        self.mailbox.remove(ref)
        self.mailbox.change_epoch(epoch)
        if ref.done.is_set():
            return
        if epoch:
            self._send(ref, submission, call)
        else:
            ref.settle(STATE_LOST)


class ClientPlane(BrokerPlane):
    """Carries the calls of any number of threads over the broker that the settings name.

    Nothing is sent before the first call.

    Raises:
      BrokerUnavailable: The settings name no broker.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, self.application)
        if settings.broker_url is None:
            raise BrokerUnavailable(
                "no broker is set: set QSERVE_BROKER_URL to its address, or call qserve.run(...) first"
            )
        self.client = connect(settings.broker_url)
        self.registry = Registry(self.client, self.keys, self.seal)
        self._records: dict[str, tuple[float, ApplicationRecord]] = {}
        self._sender, self._reader = ThreadLink(self.client), ThreadLink(self.client)
        self._deliver = partial(self._exchange, self._sender)
        if settings.durability == REPLICA:
            self._deliver = partial(replicated, self._deliver)
        self._outbox: SimpleQueue[tuple[Command, OnReply] | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._started = False
        self._closed = False

    def execute(self, command: Command) -> Any:
        """Send one command from this thread and return its reply, for callers whose event loop is blocked."""
        with contextlib.closing(ThreadLink(self.client)) as connection:
            return self._exchange(connection, [command])[0]

    def close(self) -> None:
        """Stop the threads and close the connections; open refs stay open."""
        self._closed = True
        self._outbox.put(None)
        with contextlib.suppress(*CLIENT_ERRORS):
            self.client.delete(self.mailbox.name)
        self.client.close()

    # -- applications ------------------------------------------------------------------------------

    def application(self, app: str) -> ApplicationRecord:
        """Return an application's record, which is a second old at most; raise AppNotFound if there is none."""
        found = self._records.get(app)
        if found is None or found[0] < time.monotonic():
            try:
                self.cache_application(self.registry.get(app))
            except BrokerUnavailable:
                if found is None:
                    raise
                self.cache_application(found[1])  # a submission to a retired version is answered with MOVED
        return self._records[app][1]

    def cache_application(self, record: ApplicationRecord, for_s: float = 1.0) -> None:
        """Use this record for so long without asking the registry; a gateway is notified of changes instead."""
        self._records[record.name] = (time.monotonic() + for_s, record)

    def uncache_application(self, app: str) -> None:
        self._records.pop(app, None)

    def _on_submitted(self, ref: Ref[Any], submission: Submission, call: Call | None, reply: Any) -> None:
        if reply != Reply.MOVED or call is None:
            super()._on_submitted(ref, submission, call, reply)
            return
        # the version that was called has been retired: submit the call again, to the one that is active now
        self.mailbox.remove(ref)
        self.uncache_application(call.app)
        try:
            again = self._compose(call)
        except QserveException as error:
            again = failed(error)
        if isinstance(again, Outcome):
            ref.settle(again)
        else:
            ref.request_id = again.header.request_id
            self._send(ref, again, None)

    # -- sending -----------------------------------------------------------------------------------

    def post(self, command: Command, on_reply: OnReply) -> None:
        if not self._started:
            self._start_threads()
        self._outbox.put((command, on_reply))

    def _start_threads(self) -> None:
        with self._starting:
            if not self._started:
                self._started = True
                threading.Thread(target=self._send_commands, name="qserve-sender", daemon=True).start()
                threading.Thread(target=self._read_mailbox, name="qserve-mailbox", daemon=True).start()

    def _send_commands(self) -> None:
        while (first := self._outbox.get()) is not None:
            batch = [first]
            with contextlib.suppress(Empty):
                while len(batch) < _SEND_COUNT:
                    item = self._outbox.get_nowait()
                    if item is None:
                        return
                    batch.append(item)
            release = self._release_command()
            if release is not None:
                batch.append((release, ignore))
            replies = self._send_batch([command for command, _ in batch])
            for (_, on_reply), reply in zip(batch, replies, strict=True):
                try:
                    on_reply(reply)
                except Exception:  # the error of one caller must not end the thread that serves all of them
                    log.exception("a reply of the broker could not be processed")

    def _send_batch(self, commands: list[Command]) -> list[Any]:
        """Send commands and return their replies, or errors if the broker stays away."""
        give_up = time.monotonic() + SEND_FOR_S
        pause_s = 0.0  # not at first: a connection that was idle may have been lost long ago
        while True:
            try:
                return self._deliver(commands)
            except CLIENT_ERRORS as error:
                if self._closed or time.monotonic() > give_up:
                    return [BrokerUnavailable(f"the broker cannot be reached: {error}")] * len(commands)
                time.sleep(pause_s)
                pause_s = min(pause_s * 2 or 0.05, 0.5)

    def _exchange(self, connection: ThreadLink, commands: list[Command]) -> list[Any]:
        replies = connection.exchange(commands)
        errors = [(place, reply) for place, reply in enumerate(replies) if isinstance(reply, Exception)]
        missing = [place for place, error in errors if is_unknown_function(error)]
        if missing:
            if commands[-1] is WAIT:
                missing.append(len(commands) - 1)
            self.client.execute_command(*LOAD)
            again = self._exchange(connection, [commands[place] for place in missing])
            for place, reply in zip(missing, again, strict=True):
                replies[place] = reply
        return replies

    def _read_mailbox(self) -> None:
        reading = self.mailbox.read()
        action = next(reading)
        while not self._closed:
            try:
                if failpoints.ARMED:
                    failpoints.hit("reply.before_wait")
                reply = None
                if isinstance(action, float):
                    time.sleep(action)
                else:
                    (reply,) = self._reader.exchange([action])
            except Exception as error:
                if self._closed:  # a socket that is closed while it is read raises various errors
                    return
                action = reading.throw(error)
            else:
                action = reading.send(reply)
