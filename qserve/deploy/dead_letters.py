"""Dead letters: calls that failed for good, to be inspected, replayed or deleted by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
from qserve.wire.outcome import Outcome, State
from qserve.wire.sealing import Seal, open_end, open_header, open_values, seal_header

_META = ("!why", "!at", "!failure", "!y", "!n", "!1")


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
    others: tuple[HeldCall, ...] = field(default=())


class DeadLetters:
    """The dead letters of an installation.

    Parameters:
      installation: Its client needs the rights of the role ``operator``. Its settings have the defaults for the
        deadline of a replay and for how long the result is kept.
    """

    def __init__(self, installation: Installation) -> None:
        self._client = installation.client
        self._keys = installation.keys
        self._seal = installation.seal
        self._settings = installation.settings
        self._registry = installation.registry

    def __len__(self) -> int:
        with broker_errors():
            return int(self._client.zcard(self._keys.dead_letters))

    def dropped(self) -> int:
        """Return how many of the last seven days were dropped because there were more than ten thousand."""
        with broker_errors():
            found: Any = self._client.get(self._keys.dropped_letters)
        return int(found or 0)

    def ids(self, limit: int = -1) -> list[str]:
        """Return their request IDs, the newest first; ``limit`` -1 for all."""
        with broker_errors():
            found: Any = self._client.zrevrange(self._keys.dead_letters, 0, limit - 1 if limit >= 0 else -1)
        return [one.decode() for one in found]

    def list(self, limit: int = 100) -> Iterable[DeadLetter]:
        """Return the newest dead letters, the newest first, without the calls of other branches."""
        for request_id in self.ids(limit):
            with broker_errors():
                parts: Any = self._client.hmget(self._keys.dead_letter(request_id), *_META)
            if parts[-1] is not None:  # otherwise it has just been replayed or deleted
                yield _read(request_id, dict(zip(_META, parts, strict=True)), self._seal)

    def show(self, request_id: str) -> DeadLetter:
        """Return a dead letter with all of its calls.

        Raises:
          DeadLetterError: There is none with that ID.
        """
        with broker_errors():
            found: Any = self._client.hgetall(self._keys.dead_letter(request_id))
        if b"!1" not in found:
            raise DeadLetterError(f"there is no dead letter {request_id!r}; `qserve dlq list` shows all of them")
        return _read(request_id, {name.decode(): value for name, value in found.items()}, self._seal)

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
            record = self._registry.get(header.app)
        except AppNotFound as error:
            raise DeadLetterError(f"dead letter {request_id} cannot be replayed: {error}; deploy it first") from error
        moved = {call.stream: self._queue_now(call, header, record) for call in (letter.call, *letter.others)}
        timeout_s = record.timeout_s or self._settings.request_timeout_s
        keep_ms = int(self._settings.result_ttl_s * 1000)
        renewed = header._replace(deadline_ms=int(clock.stamp_ms() + timeout_s * 1000))
        command = functions.replay(
            self._keys.dead_letter(request_id),
            self._keys.request(request_id),
            request_id,
            seal_header(self._seal, renewed.encode()),
            int(timeout_s * 1000) + CLOCK_MARGIN_MS,
            keep_ms,
            moved,
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
            plan = record.plans[header.graph][0] if header.graph in record.plans else None
            index = int(call.step) if call.step.isdigit() else -1
            if plan is None or not 0 <= index < len(plan.steps) or plan.steps[index].deployment != deployment:
                raise DeadLetterError(
                    f"step {call.step} of the graph was {deployment!r} when request {header.request_id} failed, and is"
                    " something else now: deploy a version with the same graph to replay it, or purge it"
                )
        return record.stream(self._keys, deployment)

    def purge(self, request_ids: Iterable[str]) -> int:
        """Delete dead letters, and return how many there were."""
        letters = {request_id: self._keys.dead_letter(request_id) for request_id in request_ids}
        if not letters:
            return 0
        with broker_errors():
            command = functions.purge(self._keys.dead_letters, list(letters.values()), list(letters))
            return int(self._client.execute_command(*command))


_REFUSALS = {
    Reply.NONE: "dead letter {} has just been replayed or deleted",
    Reply.OPEN: "request {} is already running",
    Reply.MOVED: "dead letter {} cannot be replayed while its application is being replaced; try again",
}


def _read(request_id: str, parts: Mapping[str, bytes | None], seal: Seal) -> DeadLetter:
    count = int(parts.get("!n") or 0)
    held = [_held(parts[f"!{number}"], seal) for number in range(1, count + 1) if parts.get(f"!{number}") is not None]
    call, header = held[0]
    return DeadLetter(
        request_id,
        (parts["!why"] or b"").decode(),
        int(parts["!at"] or 0) / 1000,
        _failure(parts["!failure"] or b"", request_id, seal),
        tuple(Event(at / 1000, who, what) for at, who, what in msgpack.unpackb(parts["!y"] or b"\x90")),
        call,
        header,
        tuple(call for call, _ in held[1:]),
    )


def _held(data: Any, seal: Seal) -> tuple[HeldCall, Header | None]:
    stream, flat = msgpack.unpackb(data, raw=True)
    fields = dict(zip(flat[::2], flat[1::2], strict=False))
    values: list[bytes] = []
    while (value := fields.get(str(len(values)).encode())) is not None:
        values.append(value)
    step = fields.get(b"s", b"").decode(errors="replace")
    header = _header(fields.get(b"h", b""), seal)
    if header is not None:
        with contextlib.suppress(PayloadError):  # what cannot be opened is shown as it is
            values = open_values(seal, stream.decode(), header, step, values)
    return HeldCall(stream.decode(), step, tuple(values)), header


def _header(data: bytes, seal: Seal) -> Header | None:
    try:
        return open_header(seal, data)
    except (PayloadError, UnicodeDecodeError):
        return None


def _failure(data: bytes, request_id: str, seal: Seal) -> Failure | None:
    try:
        return Failure.decode(open_end(seal, request_id, Outcome(State.FAILED, data)).payload)
    except PayloadError:
        return None
