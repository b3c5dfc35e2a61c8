"""Dead letters: calls that failed for good, to be inspected, replayed or deleted by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from qserve.base.clock import clock
from qserve.base.keys import CLOCK_MARGIN_MS
from qserve.broker import functions
from qserve.broker.connection import broker_errors
from qserve.broker.functions import Reply
from qserve.deploy.installation import Installation
from qserve.exceptions import AppNotFound, DeadLetterError, PayloadError
from qserve.wire.application import ApplicationRecord
from qserve.wire.envelope import Header
from qserve.wire.failure import Failure
from qserve.wire.outcome import KEPT_CALL, CallField, Field, Outcome, State
from qserve.wire.sealing import Seal, open_end, open_header, open_values, seal_header

T = TypeVar("T")
_REFUSALS = {
    Reply.NONE: "dead letter {} has just been replayed or deleted",
    Reply.OPEN: "request {} is already running",
    Reply.MOVED: "dead letter {} cannot be replayed while its application is being replaced; try again",
}


@dataclass(frozen=True)
class Event:
    """An event in the history of a call: when (Unix seconds), on which replica, and what happened."""

    at: float
    replica: str
    what: str


@dataclass(frozen=True)
class HeldCall:
    """A call that a replay starts: its queue, its step and its encoded values."""

    stream: str
    step: str
    values: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class DeadLetter:
    """A dead letter.

    Parameters:
      request_id: Its request; the result of a replay has the same ID.
      why: ``deaths`` (its replica died three times), ``retries`` (they are used up) or ``unreadable``.
      at: The time of its failure, in Unix seconds.
      failure: The error that its caller got; None if that cannot be read.
      history: What happened to the call that failed, in order.
      call: The call that failed.
      header: The header of its request; None if that cannot be read.
      others: Calls of other branches, which a replay starts as well.
    """

    request_id: str
    why: str
    at: float
    failure: Failure | None
    history: tuple[Event, ...]
    call: HeldCall
    header: Header | None
    others: tuple[HeldCall, ...]


class DeadLetters:
    """The dead letters of an installation.

    Parameters:
      installation: Its client needs the rights of the role ``operator``. Its settings have the defaults for the
        deadline of a replay and for how long the result is kept.
    """

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._client = installation.client
        self._keys = installation.keys

    @broker_errors()
    def dropped(self) -> int:
        """Return how many of the last seven days were dropped because there were more than ten thousand."""
        found: Any = self._client.get(self._keys.dropped_letters)
        return int(found or 0)

    @broker_errors()
    def ids(self, limit: int = -1) -> list[str]:
        """Return their request IDs, the newest first; ``limit`` -1 for all."""
        found: Any = self._client.zrevrange(self._keys.dead_letters, 0, limit - 1 if limit >= 0 else -1)
        return [request_id.decode() for request_id in found]

    def list(self, limit: int = 100) -> Iterator[DeadLetter]:
        """Yield the newest dead letters, the newest first."""
        for request_id in self.ids(limit):
            letter = self._find(request_id)
            if letter is not None:  # otherwise it has just been replayed or deleted
                yield letter

    def show(self, request_id: str) -> DeadLetter:
        """Return a dead letter.

        Raises:
          DeadLetterError: There is none with that ID.
        """
        letter = self._find(request_id)
        if letter is None:
            raise DeadLetterError(f"there is no dead letter {request_id!r}; `qserve dlq list` shows all of them")
        return letter

    def _find(self, request_id: str) -> DeadLetter | None:
        with broker_errors():
            found: Any = self._client.hgetall(self._keys.dead_letter(request_id))
        return _read(request_id, found, self._installation.seal) if b"%b1" % KEPT_CALL in found else None

    def replay(self, request_id: str) -> None:
        """Run its request again, under the same ID, from the step that failed.

        It runs on the version that is deployed now, with a new deadline. Crash before the command is sent: it is still
        a dead letter. Crash after: it runs.

        Raises:
          DeadLetterError: There is none with that ID, its header cannot be read, or the application that is deployed
            now has no such step.
        """
        letter = self.show(request_id)
        header = letter.header
        if header is None:
            raise DeadLetterError(f"dead letter {request_id} cannot be replayed: its message cannot be read")
        try:
            record = self._installation.registry.get(header.app)
        except AppNotFound as error:
            raise DeadLetterError(f"dead letter {request_id} cannot be replayed: {error}; deploy it first") from error
        settings = self._installation.settings
        timeout_ms = int((record.timeout_s or settings.request_timeout_s) * 1000)
        renewed = header._replace(deadline_ms=int(clock.stamp_ms()) + timeout_ms)
        command = functions.replay(
            self._keys.dead_letter(request_id),
            self._keys.request(request_id),
            request_id,
            seal_header(self._installation.seal, renewed.encode()),
            timeout_ms + CLOCK_MARGIN_MS,
            int(settings.result_ttl_s * 1000),
            {call.stream: self._queue_now(call, header, record) for call in (letter.call, *letter.others)},
        )
        with broker_errors():
            answer = self._client.execute_command(*command)
        if answer != Reply.OK:
            raise DeadLetterError(_REFUSALS[answer].format(request_id))

    def _queue_now(self, call: HeldCall, header: Header, record: ApplicationRecord) -> str:
        """Return the queue of a call in the version that is deployed now, if that has the same step."""
        deployment = self._keys.deployment_of(call.stream, header.app)
        if deployment not in record.deployments:
            raise DeadLetterError(f"application {header.app!r} has no deployment {deployment!r} any more")
        if header.graph is not None:
            steps = record.plans[header.graph][0].steps if header.graph in record.plans else ()
            index = int(call.step) if call.step.isdigit() else len(steps)
            if index >= len(steps) or steps[index].deployment != deployment:
                raise DeadLetterError(
                    f"step {call.step} of the graph was {deployment!r} when request {header.request_id} failed, and is"
                    " something else now: deploy a version with the same graph to replay it, or purge it"
                )
        return record.stream(self._keys, deployment)

    @broker_errors()
    def purge(self, request_ids: Iterable[str]) -> int:
        """Delete dead letters, and return how many there were."""
        letters = {request_id: self._keys.dead_letter(request_id) for request_id in request_ids}
        if not letters:
            return 0
        command = functions.purge(self._keys.dead_letters, list(letters.values()), list(letters))
        return int(self._client.execute_command(*command))


def _read(request_id: str, parts: Mapping[bytes, bytes], seal: Seal) -> DeadLetter:
    names = [b"%b%d" % (KEPT_CALL, number) for number in range(1, int(parts.get(Field.CALLS, 0)) + 1)]
    (call, header), *others = [_held(parts[name], seal) for name in names if name in parts]
    failure = Outcome(State.FAILED, parts.get(Field.FAILURE, b""))
    return DeadLetter(
        request_id,
        parts.get(Field.WHY, b"").decode(),
        int(parts.get(Field.AT, 0)) / 1000,
        _readable(lambda: Failure.decode(open_end(seal, request_id, failure).payload)),
        tuple(Event(at / 1000, who, what) for at, who, what in msgpack.unpackb(parts.get(Field.HISTORY, b"\x90"))),
        call,
        header,
        tuple(call for call, _ in others),
    )


def _held(data: bytes, seal: Seal) -> tuple[HeldCall, Header | None]:
    stream, flat = msgpack.unpackb(data, raw=True)
    fields = dict(zip(flat[::2], flat[1::2], strict=False))
    slots = (str(number).encode() for number in range(len(fields)))
    values = [fields[slot] for slot in slots if slot in fields]
    step = fields.get(CallField.STEP, b"").decode(errors="replace")
    header = _readable(lambda: open_header(seal, fields.get(CallField.HEADER, b"")))
    if header is not None:
        with suppress(PayloadError):  # what cannot be opened is shown as it is
            values = open_values(seal, stream.decode(), header, step, values)
    return HeldCall(stream.decode(), step, tuple(values)), header


def _readable(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (PayloadError, UnicodeDecodeError):
        return None
