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
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final

from qserve.base import failpoints
from qserve.base.clock import Clock, Deadline, Turnstile, clock
from qserve.base.context import Run, request_context
from qserve.base.forks import on_fork
from qserve.base.log import get_logger
from qserve.base.promise import Promise
from qserve.base.settings import REPLICA, Settings
from qserve.base.turns import Turns
from qserve.broker import functions
from qserve.broker.connection import CLIENT_ERRORS, Client, connect, is_unknown_function, refusal
from qserve.broker.functions import LOAD, NOT_REPLICATED, Reply, other_epoch, read_found
from qserve.broker.library import Command
from qserve.broker.link import WAIT, OnReply, ThreadLink, replicated
from qserve.broker.registry import Registry, pick
from qserve.calls.compose import ComposingPlane, Submission, claims_in, failure_in
from qserve.calls.events import Logged
from qserve.calls.mailbox import ARGUMENT_LOST, STATE_LOST, Mailbox, Post, ignore, not_found, outcome_of, refused
from qserve.calls.program_end import Refusals, call_at_end, fail, is_ending
from qserve.calls.progress import reports
from qserve.calls.ref import Call, Ref, failed
from qserve.exceptions import BrokerError, BrokerUnavailable, DeadlineExceeded, PayloadError, QserveException
from qserve.payloads.store import ValueStore
from qserve.tracing.start import start as start_tracing
from qserve.wire.application import ApplicationRecord
from qserve.wire.claim import Claim
from qserve.wire.codec import Codec
from qserve.wire.events import Event, Happening
from qserve.wire.outcome import Field, Outcome, State
from qserve.wire.progress import Progress
from qserve.wire.replies import each, epoch, epoch_text, events, freed, stored, told, warn_once
from qserve.wire.sealing import (
    Seal,
    event_context,
    open_end,
    seal_header,
    seal_moves,
    told_context,
    webhook_context,
)
from qserve.wire.status import ReplicaStatus

log: Final = get_logger(__name__)
_replies = Turns("processing a reply of the broker", log)
CLOSED = "this client was closed: its requests go on, and `get_ref(request_id)` of another one gives their results"
NO_BROKER = "no broker is set. Call qserve.run(...) first, or set QSERVE_BROKER_URL"
SEND_FOR_S = 2.0
"""How long commands are sent again while the broker is away, before their callers get an error."""
SILENCE_LIMIT_S = 10.0
"""How long a program that ends waits for a broker that does not answer."""
ASK_TIMEOUT_S = 1.0
"""How long a wait that ends may take to ask the broker whether there is a result."""
FETCH_PAUSE_S = 0.1
TRIM_S = 5.0
ASKED_PER_S, ASKED_AT_ONCE = 10.0, 50
"""How many requests that ask for it, or are made by one that is traced, each process has traced in a second, and how
many more after a pause."""
_SEND_COUNT = 128
_MANY_COUNT, _MANY_BYTES = 250, 8 << 20
"""The most calls of ``submit_many``, and the most bytes, in one round trip.

With 1,000 calls a near broker would have nothing to do until all are composed, which took a third longer.
"""
_RESENDINGS = 4
"""How often a call may be sent again because its version, or the broker's epoch, has changed meanwhile."""


class BrokerPlane(ComposingPlane):
    """Submits calls to a broker and follows them to their end; for the parameters see ``ComposingPlane``."""

    def __init__(
        self,
        settings: Settings,
        find: Callable[[str], ApplicationRecord],
        counts_results: bool = False,
        name: str = "",
        clock: Clock = clock,
        store: ValueStore | None = None,
    ) -> None:
        super().__init__(settings, find)
        self.clock = clock
        self.seal: Final = Seal(settings.keyring)
        self.mailbox: Final = Mailbox(self.keys, self.seal, self.post, self.serves_replica, counts_results, name, clock)
        self.epoch: Final = self.mailbox.epoch
        self._released: list[tuple[str, Claim | None]] = []
        self._read: list[Claim] = []
        self._trimmed_at = time.monotonic()
        self._owns_store = store is None
        self.store: Final = store or ValueStore(settings, self._epoch_of_values)
        self.codec: Codec = Codec(settings.keyring, settings.max_value_bytes, self.store)
        rate = settings.trace_sample
        self._sampled, self._asked = Turnstile(rate), Turnstile(ASKED_PER_S if rate else 0.0, ASKED_AT_ONCE)

    @abstractmethod
    def post(self, command: Command, on_reply: OnReply) -> None:
        """Send a command and call back with its reply; it may be sent again when the reply is lost."""

    def follow(self, ref: Ref[Any]) -> None:
        if not ref.done.is_set() and ref not in self.mailbox:
            self._expect(ref)
            self.mailbox.watch(ref, self.mailbox.name)

    def cancel(self, ref: Ref[Any]) -> None:
        ref.is_cancelled = True  # the broker does not know yet what it is about to be sent again
        self.mailbox.close(ref, State.CANCELLED)

    def expire(self, ref: Ref[Any]) -> bool:
        """End a request whose deadline has passed while its caller waited; return whether it had ended before."""
        self.mailbox.expire(ref)
        ref.done.wait(ASK_TIMEOUT_S)
        return ref.done.is_set() and ref.outcome().state != State.EXPIRED

    def on_their_way(self) -> list[str]:
        """Return the requests that were submitted here, and of which it is not known yet that the broker has them."""
        return [ref.request_id for ref in self.mailbox.submitted() if not ref.acceptance.is_set()]

    def add_credit(self, request_id: str, items: int) -> None:
        self.post(functions.take(self.keys.request(request_id), items), ignore)

    def tell(self, request_id: str, number: int, part: bytes) -> Promise[tuple[int, int] | Exception | None]:
        """Send a part of what the client of a WebSocket has sent to the replica of its session; -1 only asks.

        Returns:
          How many parts its application has not yet taken, and how many items the replica has sent; None when the
          session has ended. An error when the broker is away.
        """
        asked: Promise[tuple[int, int] | Exception | None] = Promise()
        sealed = self.seal.seal(told_context(request_id, number), part)
        command = functions.tell(self.keys.request(request_id), request_id, number, sealed)
        self.post(command, lambda reply: asked.set(_told_in(reply)))
        return asked

    def note(self, run: Run, event: Event, on_reply: Callable[[bool], object] = bool) -> None:
        request_id, stream, is_progress = run.request_id, run.stream, event.name == Happening.PROGRESS
        command = functions.note(
            self.keys.request(request_id), stream, run.entry_id, run.step, self.sealed(request_id, event), is_progress
        )
        # an error of the broker says nothing of the call
        self.post(command, lambda reply: on_reply(reply not in (Reply.CLOSED, Reply.STALE)))

    def sealed(self, request_id: str, event: Event) -> bytes:
        """Return an event as it is written down."""
        return self.seal.seal(event_context(request_id), event.encode())

    def events(self, request_id: str, after: int) -> Promise[Logged | Exception]:
        asked: Promise[Logged | Exception] = Promise()
        command = functions.observe(self.keys.request(request_id), request_id, after)
        self.post(command, lambda reply: asked.set(self._events_in(request_id, reply)))
        return asked

    def _events_in(self, request_id: str, reply: Any) -> Logged | Exception:
        if isinstance(reply, Exception):
            return refusal(reply)

        def read(entry: tuple[int, bytes]) -> tuple[int, Event]:
            return entry[0], Event.decode(self.seal.open(event_context(request_id), entry[1]))

        try:
            return Logged(list(each(events(reply), read)))
        except PayloadError as error:
            warn_once(f"the events of a request cannot be read: {error}")
            return Logged([])

    def progress(self, request_id: str) -> Promise[Progress | Exception | None]:
        asked: Promise[Progress | Exception | None] = Promise()
        command = ("HMGET", self.keys.request(request_id), Field.STATE, Field.PROGRESS)
        self.post(command, lambda reply: asked.set(self._progress_in(request_id, reply)))
        return asked

    def _progress_in(self, request_id: str, reply: Any) -> Progress | Exception | None:
        if isinstance(reply, Exception):
            return refusal(reply)
        state, sealed = stored(*reply)
        if state != State.OPEN or not sealed:
            return None
        try:
            event = Event.decode(self.seal.open(event_context(request_id), sealed))
            return Progress(event.fraction, event.message)
        except PayloadError as error:
            warn_once(f"the progress of a request cannot be read: {error}")
            return None

    def release(self, request_id: str, value: Claim | None = None) -> None:
        self._released.append((self.keys.request(request_id), value))

    def release_item(self, value: Claim) -> None:
        self._read.append(value)

    def wait(self, ref: Ref[Any], timeout_s: float | None) -> bool:
        """Block until ``ref`` is done; return False if it is still open in the broker after ``timeout_s``."""
        return super().wait(ref, timeout_s) or self.look(ref)

    def look(self, ref: Ref[Any]) -> bool:
        """Ask the broker about a request whose message may have been lost; return whether it has ended."""
        asked: Promise[Any] = Promise()
        self.mailbox.watch(ref, on_reply=asked.set)
        asked.wait(ASK_TIMEOUT_S)
        return ref.done.is_set()

    def _releases(self) -> list[tuple[Command, OnReply]]:
        """Return the commands that delete the released results, and the stored values of items that were read."""
        found: list[tuple[Command, OnReply]] = []
        if self._released:
            released, self._released = self._released, []
            values = [value for _, value in released if value is not None]
            command = functions.forget([request for request, _ in released])
            found.append((command, partial(self._on_released, values) if values else ignore))
        if self._read:
            read, self._read = self._read, []
            command = functions.release([self.keys.value(value.name) for value in read])
            found.append((command, partial(self._on_released, read)))
        return found

    def _on_released(self, values: Sequence[Claim], reply: Any) -> None:
        _, names = freed(reply)
        self.forget([value for value in values if value.name in names])

    # -- stored values -----------------------------------------------------------------------------

    def _epoch_of_values(self) -> str:
        """Return the broker's epoch, by which the values of installations on one host are kept apart; "" for none."""
        return epoch_text(self.epoch.value)

    def trim(self) -> None:
        """Give back the memory that is kept for more values, if there were none for a while."""
        now = time.monotonic()
        if now - self._trimmed_at > TRIM_S:
            self._trimmed_at = now
            self.store.trim()

    def forget(self, values: Sequence[Claim]) -> None:
        """Remove stored values that nobody holds any more."""
        if values:
            self.store.forget(values)

    def _on_values_told(self, ref: Ref[Any], values: Iterable[Claim], on_reply: OnReply, reply: Any) -> None:
        """Let go of the stored values of a submission: the broker holds them now, or has refused it."""
        if other_epoch(reply) is None:  # otherwise they are sent again
            self.store.settled(values)
        on_reply(reply)

    def _expect(self, ref: Ref[Any], deadline_ms: int = 0) -> None:
        self.mailbox.add(ref, deadline_ms)

    def _send(self, ref: Ref[Any], submission: Submission, call: Call | None, post: Post | None = None) -> None:
        self._expect(ref, submission.header.deadline_ms)
        if failpoints.ARMED:
            failpoints.hit("submit.before_send")
        request, header, moves, awaited, life_ms, keep_ms, limits, _, model, fingerprint, is_left, webhook = submission
        request_id = header.request_id
        if webhook:
            webhook = self.seal.seal(webhook_context(request_id), webhook)
        values = claims_in(moves)
        sealed, moves = seal_header(self.seal, header.encode()), seal_moves(self.seal, request_id, moves)
        command = functions.submit(
            request, request_id, self.epoch, sealed, self.mailbox.name, life_ms, keep_ms, moves,
            awaited, limits, model.model_id, model.max_ongoing, fingerprint, is_left, self._is_traced(call),
            webhook, {claim.name: uses for claim, uses in values.items()} if values else functions.NO_VALUES,
        )  # fmt: skip
        on_reply = partial(self._on_submitted, ref, submission, call)
        (post or self.post)(command, partial(self._on_values_told, ref, values, on_reply) if values else on_reply)

    def _is_traced(self, call: Call | None) -> bool:
        """Return whether the request that is being submitted here is traced: if that is asked for, with the one that
        makes it, or by chance.

        The first of each moment is, so that where there are few of them, all are.
        """
        runs, asks = request_context.get().runs, call is not None and call.is_traced
        if runs:
            return (asks or (bool(reports.open) and runs[0] in reports.open)) and self._asked.passes()
        return self._sampled.passes() or (asks and self._asked.passes())

    def _on_submitted(self, ref: Ref[Any], submission: Submission, call: Call | None, reply: Any) -> None:
        epoch = other_epoch(reply)
        if epoch is not None:
            self._on_other_epoch(ref, submission, call, epoch)
            return
        found = read_found(reply)
        if found is None:
            outcome = refused(reply, submission.limited)
            if outcome is ARGUMENT_LOST and call is not None:
                outcome = failure_in(call) or outcome
        else:  # the id is in use: by a process that submitted the request before
            ref.acceptance.set(True)
            self.mailbox.clear_deadline(ref)
            outcome = outcome_of(found, self.seal, ref.request_id)
        if outcome is not None:
            if found is None:
                self._note_refusal(ref, *self._target_of(submission))
            self.mailbox.refuse(ref, outcome)
        if reply == NOT_REPLICATED:  # its caller will send another in its place, maybe with the same key
            self.cancel(ref)
            if submission.webhook:
                webhook = self.keys.webhook(ref.request_id)
                self.post(functions.settle(self.keys.webhooks, webhook, ref.request_id, 0, -1), ignore)
            self.release(ref.request_id)
        ref.acceptance.set(True)  # no effect on a ref that was refused: it is settled

    def _target_of(self, submission: Submission) -> tuple[str, str]:
        app = submission.header.app
        return app, self.keys.deployment_of(submission.moves[0].stream, app)

    def _on_other_epoch(self, ref: Ref[Any], submission: Submission, call: Call | None, epoch: str | bytes) -> None:
        """Send a submission again that was meant for another state of the broker, and so was not accepted."""
        self.mailbox.remove(ref)
        self.mailbox.change_epoch(epoch)
        if _has_ended(ref):
            return
        if epoch:
            self._send(ref, submission, call)
        else:
            self._note_refusal(ref, *self._target_of(submission))
            ref.settle(STATE_LOST, was_accepted=False)


class ClientPlane(BrokerPlane):
    """Carries the calls of any number of threads over the broker that the settings name.

    Nothing is sent before the first call.

    Parameters:
      settings: Name the broker.
      is_of_program: Whether the end of the program waits until all calls are stored, and fails when they are not.
      counts_results: Whether long results are only announced, and fetched when there is room for them: see ``fetch``.
      clock: Follows the broker's clock, where it is not the broker of the rest of this process.

    Raises:
      BrokerUnavailable: The settings name no broker.
    """

    def __init__(
        self,
        settings: Settings,
        is_of_program: bool = False,
        counts_results: bool = False,
        clock: Clock = clock,
        store: ValueStore | None = None,
    ) -> None:
        super().__init__(settings, self.application, counts_results, clock=clock, store=store)
        if settings.broker_url is None:
            raise BrokerUnavailable(NO_BROKER)
        self.client: Client = connect(settings.broker_url)
        self.registry: Final = Registry(self.client, self.keys, self.seal)
        self.faults: Mapping[str, ReplicaStatus] = self.registry.faults.known
        self._records: dict[str, tuple[float, ApplicationRecord, ApplicationRecord | None]] = {}
        self._sender, self._reader = ThreadLink(self.client), ThreadLink(self.client)
        self._deliver = partial(self._exchange, self._sender)
        if settings.durability == REPLICA:
            self._deliver = partial(replicated, self._deliver)
        self._outbox: SimpleQueue[list[tuple[Command, OnReply]] | None] = SimpleQueue()
        self._sending: list[tuple[Command, OnReply]] = []
        self._starting, self._alone, self._fetching = threading.Lock(), threading.Lock(), threading.Lock()
        self._started = False
        self._ending = False
        self._given_up: BrokerError | None = None
        self._closed = False
        self.stops_with_broker = False
        """Whether this program is about to stop its own broker: then the mailbox ends with it, without a word."""
        self._is_of_program = is_of_program
        self._refusals = Refusals()
        self._take_back: Callable[[], object] = bool  # does nothing
        if is_of_program:
            on_fork(self)
            start_tracing(settings, "program")

    @property
    def is_closed(self) -> bool:
        return self._closed

    def execute(self, command: Command) -> Any:
        """Send one command from this thread and return its reply, for callers whose event loop is blocked."""
        with contextlib.closing(ThreadLink(self.client)) as connection:
            return self._exchange(connection, [command])[0]

    def fetch(self, request_id: str, timeout_s: float) -> Outcome:
        """Return how a request has ended of which only the length was announced.

        It reads one result at a time, since each is copied several times meanwhile. It waits while the broker is away.

        Raises:
          DeadlineExceeded: The result was not read within ``timeout_s``.
          BrokerError: The broker was away until then, or refuses the command.
        """
        deadline = Deadline(timeout_s)
        command = ("HMGET", self.keys.request(request_id), Field.STATE, Field.RESULT)
        error: QserveException = DeadlineExceeded(f"the result of request {request_id} was not read in time")
        while self._fetching.acquire(timeout=deadline.remaining_s() or 0.0):
            asked: Promise[Any] = Promise()
            try:
                self.post(command, asked.set)
                is_answered = asked.wait(deadline.remaining_s())
            finally:
                self._fetching.release()
            if not is_answered:
                break
            reply = asked.get_nowait()
            if isinstance(reply, Exception):
                error = refusal(reply)
                if not isinstance(error, BrokerUnavailable):
                    break
            elif (found := stored(*reply)).state != State.OPEN:  # it may be open again, after a failover
                return open_end(self.seal, request_id, found) if found.state else not_found(request_id)
            if deadline.has_passed():
                break
            time.sleep(FETCH_PAUSE_S)
        raise error

    def leave_to_parent(self) -> None:
        """In a forked child: open connections and start threads of its own when they are needed.

        The refs of the parent can be waited for; its calls are sent by the parent.
        """
        if self._closed:
            return
        unsent = self.on_their_way()
        self.__init__(self.settings, self._is_of_program, clock=self.clock, store=self.store)  # type: ignore[misc]
        self.mailbox.expect_unknown(unsent, 2 * SEND_FOR_S)

    def close(self) -> None:
        """Stop the threads and close the connections; open refs raise BrokerError, and so does each new call."""
        self._take_back()
        self._given_up = BrokerError(CLOSED)
        self._ending = self._closed = True
        self._started = False
        self._records.clear()
        with contextlib.suppress(*CLIENT_ERRORS):
            self.client.delete(self.mailbox.name)
            for command, on_reply in self._releases():
                on_reply(self.client.execute_command(*command))
        self.client.close()
        if self._owns_store:
            self.store.close()
        self._refuse_unsent(self._given_up)
        self.mailbox.settle_all(failed(self._given_up))

    def _refuse_unsent(self, error: BrokerError, *more: tuple[Command, OnReply]) -> None:
        """Refuse what nobody will send, and end the thread that sends."""
        left = list(more)
        with contextlib.suppress(Empty):
            for _ in range(self._outbox.qsize()):
                left += self._outbox.get_nowait() or ()
        self._outbox.put(None)
        _process_replies(left, [error] * len(left))

    # -- applications ------------------------------------------------------------------------------

    def application(self, app: str) -> ApplicationRecord:
        """Return the version that the next request goes to, as of a second ago at most.

        Raises:
          AppNotFound: There is no such application.
        """
        found = self._records.get(app)
        if found is None or found[0] < time.monotonic():
            if self._closed:
                raise BrokerError(CLOSED)
            try:
                self.cache_application(*(self.registry.serving(app) or (self.registry.get(app),)))
            except BrokerUnavailable:
                if found is None:
                    raise
                self.cache_application(*found[1:])  # a submission to a retired version is answered with MOVED
        _, active, staged = self._records[app]
        return active if staged is None else pick(active, staged, self.clock)

    def cache_application(
        self, record: ApplicationRecord, staged: ApplicationRecord | None = None, for_s: float = 1.0
    ) -> None:
        """Use this record for so long without asking the registry; a gateway is notified of changes instead.

        Parameters:
          staged: The version that is being deployed, if that gets a part of the requests.
        """
        self._records[record.name] = (time.monotonic() + for_s, record, staged)

    def uncache_application(self, app: str) -> None:
        self._records.pop(app, None)

    def _on_submitted(self, ref: Ref[Any], submission: Submission, call: Call | None, reply: Any) -> None:
        if reply != Reply.MOVED or call is None:
            super()._on_submitted(ref, submission, call, reply)
            return
        # the version that was called has been retired: submit the call again, to the version that is active now
        self.mailbox.remove(ref)
        self.uncache_application(call.app)
        if _has_ended(ref):
            return
        try:
            again = self._compose(call._replace(version=None))
        except QserveException as error:
            again = failed(error)
        if isinstance(again, Outcome):
            self._note_refusal(ref, call.app, call.deployment)
            ref.settle(again, again.state == State.DONE)
        else:
            ref.request_id = again.header.request_id
            self._send(ref, again, None)

    # -- the end of the program --------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until the broker has answered all calls; from then on each is sent by the thread that makes it.

        A broker that is away is tried for as long as always, but for all calls together; one that is silent, for
        ``SILENCE_LIMIT_S``. What could not be sent is refused.
        """
        self._ending = True
        if not self._started or self._closed:
            return
        try:
            is_answered, why = self._wait_for_answers(), "the broker does not answer"
            for _ in range(_RESENDINGS):
                if is_answered and any(not ref.acceptance.is_set() for ref in self.mailbox.submitted()):
                    is_answered = self._wait_for_answers()
        except KeyboardInterrupt:
            is_answered, why = False, "the program was interrupted"
        self._started = False
        self._outbox.put(None)  # from now on its connection is for the threads that call
        if not is_answered:
            self._given_up = BrokerUnavailable(why)
            self._refuse_unsent(self._given_up, *self._sending)

    def _wait_for_answers(self) -> bool:
        """Wait until all that was posted is answered; return False if nothing is answered any more."""
        answered: Promise[Any] = Promise()

        def on_reply(reply: Any) -> None:
            answered.set(reply)

        self._outbox.put([(("TIME",), on_reply)])
        left = self._outbox.qsize()
        while not answered.wait(SILENCE_LIMIT_S):
            before, left = left, self._outbox.qsize()
            if left >= before:
                return False
        return True

    def end(self) -> bool:
        """Store what was submitted, and report what cannot be stored; return whether all calls are stored."""
        self.flush()
        return self._refusals.report()

    def unfinished(self) -> list[str]:
        """Return the ids of the calls of this process that are open, except those whose caller knows that."""
        return [ref.request_id for ref in self.mailbox.submitted() if not ref.is_known_to_caller()]

    def _note_refusal(self, ref: Ref[Any], app: str, deployment: str) -> None:
        if self._is_of_program:
            self._refusals.note(ref, f"for deployment {deployment!r} of application {app!r}")

    # -- sending -----------------------------------------------------------------------------------

    def post(self, command: Command, on_reply: OnReply) -> None:
        self._post_all([(command, on_reply)])

    def _post_all(self, batch: list[tuple[Command, OnReply]]) -> None:
        if self._started or self._start_threads():
            self._outbox.put(batch)
            if self._closed:  # by another thread, which may not have seen these
                self._refuse_unsent(BrokerError(CLOSED))
            return
        _process_replies(batch, self._send_batch([command for command, _ in batch]))
        if self._refusals.noted and not self._closed and not self.end():
            fail()

    def submit_many(self, calls: Sequence[Call]) -> list[Ref[Any]]:
        if not calls:
            return []
        self.find(calls[0].app)  # without its application, or the broker, none is sent
        if not self.epoch.value:  # the broker would refuse all of them, and they would be sent again one by one
            self.mailbox.change_epoch(epoch(self.execute(("GET", self.epoch.key))))
        gathered: list[tuple[Command, OnReply]] = []
        size = 0

        def gather(command: Command, on_reply: OnReply) -> None:
            nonlocal gathered, size
            size += sum([len(part) for part in command if isinstance(part, bytes)])
            gathered.append((command, on_reply))
            if len(gathered) == _MANY_COUNT or size > _MANY_BYTES:
                batch, gathered, size = gathered, [], 0
                self._post_all(batch)

        def start(call: Call) -> Ref[Any]:
            return self._start(call, partial(self._send, post=gather))

        try:
            return [self._start_or_refuse(call, start) for call in calls]
        finally:
            if gathered:
                self._post_all(gathered)

    def wait(self, ref: Ref[Any], timeout_s: float | None) -> bool:
        if not self._ending:
            return super().wait(ref, timeout_s)
        # the thread that reads may never have been started
        self.follow(ref)
        deadline = Deadline(timeout_s)
        self._read_mailbox(ThreadLink(self.client), lambda: ref.done.is_set() or deadline.has_passed())
        return ref.done.is_set()

    def _start_threads(self) -> bool:
        """Start the threads if they can be relied on; return whether they run."""
        with self._starting:
            self._ending = self._ending or (self._is_of_program and is_ending())
            if not self._started and not self._ending:
                self._started = True
                threading.Thread(target=self._send_commands, name="qserve-sender", daemon=True).start()
                reading = partial(self._read_mailbox, self._reader)
                threading.Thread(target=reading, name="qserve-mailbox", daemon=True).start()
                if self._is_of_program:
                    self._take_back = call_at_end(self.end)
            return self._started

    def _send_commands(self) -> None:
        while self._send_next():
            pass

    def release(self, request_id: str, value: Claim | None = None) -> None:
        super().release(request_id, value)
        if value is not None:  # what it takes is given back now, even if nothing else is sent for long
            self._outbox.put([])

    def release_item(self, value: Claim) -> None:
        super().release_item(value)
        self._outbox.put([])

    def _send_next(self) -> bool:
        """Send what has gathered; return False at the end. While it waits for more, nothing of the last is held."""
        item = self._outbox.get()
        if item is None:
            return False
        batch = item
        with contextlib.suppress(Empty):
            while len(batch) < _SEND_COUNT and (item := self._outbox.get_nowait()) is not None:
                batch += item
        batch += self._releases()
        if not batch:
            return item is not None
        self._sending = batch
        _process_replies(batch, self._send_batch([command for command, _ in batch]))
        self._sending = []
        return item is not None

    def _send_batch(self, commands: list[Command]) -> list[Any]:
        """Send commands and return their replies, or errors if the broker stays away."""
        give_up = time.monotonic() + SEND_FOR_S
        pause_s = 0.0  # not at first: a connection that was idle may have been lost long ago
        while self._given_up is None:
            try:
                with self._alone:
                    return self._deliver(commands)
            except CLIENT_ERRORS as error:
                if self._closed or time.monotonic() > give_up:
                    failure = BrokerUnavailable(f"the broker cannot be reached: {error}")
                    if self._ending:  # the calls behind these do not get as long again
                        self._given_up = failure
                    return [failure] * len(commands)
                time.sleep(pause_s)
                pause_s = min(pause_s * 2 or 0.05, 0.5)
            except Exception as error:
                if len(commands) > 1:  # one of them cannot be sent: the others can
                    return [reply for command in commands for reply in self._send_batch([command])]
                return [BrokerError(f"a command for the broker cannot be sent: {error}")]
        return [self._given_up] * len(commands)

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

    def _read_mailbox(self, connection: ThreadLink, is_over: Callable[[], bool] = bool) -> None:
        reading = self.mailbox.read()
        action = next(reading)
        while not self._closed and not is_over():
            self.trim()
            if (self._released or self._read) and self._started and self._outbox.empty():
                self._outbox.put([])  # nothing may be sent for long that these could go with
            try:
                if failpoints.ARMED:
                    failpoints.hit("reply.before_wait")
                reply = None
                if isinstance(action, float):
                    time.sleep(action)
                else:
                    (reply,) = connection.exchange([action])
            except Exception as error:
                # a socket that is closed while it is read raises various errors
                if self._closed or self.stops_with_broker:
                    return
                action = reading.throw(error)
            else:
                action = reading.send(reply)


def _told_in(reply: Any) -> tuple[int, int] | Exception | None:
    if isinstance(reply, Exception):
        return refusal(reply)
    try:
        return told(reply)
    except PayloadError as error:
        return error


def _has_ended(ref: Ref[Any]) -> bool:
    """Return whether a call that the broker has not accepted has ended; one that was cancelled meanwhile ends here."""
    if getattr(ref, "is_cancelled", False):
        ref.settle(Outcome(State.CANCELLED, b""), was_accepted=False)
    return ref.done.is_set()


def _process_replies(batch: list[tuple[Command, OnReply]], replies: Sequence[Any]) -> None:
    for (_, on_reply), reply in zip(batch, replies, strict=True):
        try:
            on_reply(reply)
        except Exception as error:  # of one caller: the others must still get their replies
            _replies.note(error)
