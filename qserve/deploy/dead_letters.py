"""Dead letters: calls that will not be run again by themselves, for people to look at, replay or throw away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

from qserve.base.clock import clock
from qserve.base.keys import CLOCK_MARGIN_MS, Keys
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.connection import Client, broker_errors
from qserve.broker.registry import Registry
from qserve.exceptions import AppNotFound, DeadLetterError, PayloadError
from qserve.wire.application import ApplicationRecord
from qserve.wire.envelope import Header
from qserve.wire.failure import Failure
from qserve.wire.outcome import Outcome, State
from qserve.wire.sealing import Seal, open_end, open_header, open_values, seal_header

_META = ("!why", "!at", "!failure", "!y", "!n", "!1")


@dataclass(frozen=True)
class Event:
    """What happened to a call once: when (Unix seconds), on which replica, and what."""

    at: float
    replica: str
    what: str


@dataclass(frozen=True)
class HeldCall:
    """One call that a replay starts: its queue, its step and its values, encoded."""

    stream: str
    step: str
    values: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter.

    Parameters:
      request_id: Its request; a replay answers under the same id.
      why: ``deaths`` (its replica died three times), ``retries`` (they are used up) or ``unreadable``.
      at: When, in Unix seconds.
      failure: What its caller was told; None when that cannot be read.
      history: What happened to the call that failed, in order.
      call: The call that failed.
      header: Whose call it is; None when that cannot be read.
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
    """The dead letters of one broker.

    Parameters:
      client: A connection with the rights of the role ``operator``.
      keys: The installation's key names.
      settings: Defaults for the deadline and the life of results of what is replayed.
    """

    def __init__(self, client: Client, keys: Keys, settings: Settings) -> None:
        self._client = client
        self._keys = keys
        self._settings = settings
        self._seal = Seal(settings.keyring)

    def __len__(self) -> int:
        with broker_errors():
            return int(self._client.zcard(self._keys.dead_letters))

    def dropped(self) -> int:
        """How many of the last seven days were dropped because there were more than ten thousand."""
        with broker_errors():
            found: Any = self._client.get(self._keys.dropped_letters)
        return int(found or 0)

    def ids(self, limit: int = -1) -> list[str]:
        """Their request ids, the newest first; ``limit`` -1 for all."""
        with broker_errors():
            found: Any = self._client.zrevrange(self._keys.dead_letters, 0, limit - 1 if limit >= 0 else -1)
        return [one.decode() for one in found]

    def list(self, limit: int = 100) -> Iterable[DeadLetter]:
        """The newest dead letters, the newest first, without the calls of other branches."""
        for request_id in self.ids(limit):
            with broker_errors():
                parts: Any = self._client.hmget(self._keys.dead_letter(request_id), *_META)
            if parts[-1] is not None:  # otherwise it was replayed or thrown away meanwhile
                yield _read(request_id, dict(zip(_META, parts, strict=True)), self._seal)

    def show(self, request_id: str) -> DeadLetter:
        """One dead letter, whole.

        Raises:
          DeadLetterError: There is none of that id.
        """
        with broker_errors():
            found: Any = self._client.hgetall(self._keys.dead_letter(request_id))
        if b"!1" not in found:
            raise DeadLetterError(f"there is no dead letter {request_id!r}; `qserve dlq list` shows those there are")
        return _read(request_id, {name.decode(): value for name, value in found.items()}, self._seal)

    def replay(self, request_id: str) -> None:
        """Open its request again, under the same id: it goes on from the step that failed.

        It runs on the version that is deployed now, with a new deadline. Crash before the command is sent: it is a
        dead letter still. Crash after: it runs.

        Raises:
          DeadLetterError: There is none of that id, nobody can tell whose it is, or the application that is
            deployed now has no such step.
        """
        letter = self.show(request_id)
        header = letter.header
        if header is None:
            raise DeadLetterError(f"dead letter {request_id} cannot be replayed: its message cannot be read")
        registry = Registry(self._client, self._keys, self._seal)
        try:
            record = registry.get(header.app)
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
        if answer != b"OK":
            raise DeadLetterError(_REFUSALS[answer].format(request_id))

    def _queue_now(self, call: HeldCall, header: Header, record: ApplicationRecord) -> str:
        """The queue of a call in the version that is deployed now, once it is sure that its step is there."""
        deployment = self._keys.deployment_of(call.stream, header.app)
        if deployment not in record.deployments:
            raise DeadLetterError(f"application {header.app!r} has no deployment {deployment!r} any more")
        if header.graph is not None:
            plan = record.plans[header.graph][0] if header.graph in record.plans else None
            index = int(call.step) if call.step.isdigit() else -1
            if plan is None or not 0 <= index < len(plan.steps) or plan.steps[index].deployment != deployment:
                raise DeadLetterError(
                    f"step {call.step} of the graph was {deployment!r} when request {header.request_id} failed,"
                    " and is not any more: replay it on a version with the same graph, or purge it"
                )
        return record.stream(self._keys, deployment)

    def purge(self, request_ids: Iterable[str]) -> int:
        """Throw dead letters away; answers how many there were."""
        letters = {request_id: self._keys.dead_letter(request_id) for request_id in request_ids}
        if not letters:
            return 0
        with broker_errors():
            return int(self._client.execute_command(*functions.purge(self._keys.dead_letters, letters)))


_REFUSALS = {
    b"NONE": "dead letter {} was replayed or thrown away meanwhile",
    b"OPEN": "request {} runs already",
    b"MOVED": "dead letter {} cannot be replayed: a queue is gone; its application is just being replaced, try again",
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
