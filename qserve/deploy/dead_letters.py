"""Dead letters: calls that failed for good, to be inspected, replayed or deleted by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qserve.base.carried import Carried
from qserve.base.clock import clock
from qserve.base.keys import CLOCK_MARGIN_MS
from qserve.broker import functions
from qserve.broker.connection import broker_errors
from qserve.broker.functions import Reply
from qserve.deploy.installation import Installation
from qserve.exceptions import AppNotFound, DeadLetterError, PayloadError, WrongType
from qserve.http.shown import ShownCodec
from qserve.tracing.ids import id_of_try, replaced
from qserve.wire import replies
from qserve.wire.application import ApplicationRecord
from qserve.wire.dead_letter import DeadLetter, HeldCall
from qserve.wire.envelope import Header
from qserve.wire.sealing import seal_header

_REFUSALS = {
    Reply.NONE: "dead letter {} has just been replayed or deleted",
    Reply.OPEN: "request {} is already running",
    Reply.MOVED: "dead letter {} cannot be replayed while its application is being replaced; try again",
}


def not_there(*request_ids: str) -> DeadLetterError:
    """Return the error for IDs that no dead letter has."""
    named = ", ".join(map(repr, request_ids))
    return DeadLetterError(f"there is no dead letter {named}; `qserve dlq list` shows all of them")


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
        return 0 if found is None else replies.number(found)

    @broker_errors()
    def ids(self, limit: int = -1) -> list[str]:
        """Return their request IDs, the newest first; ``limit`` -1 for all."""
        found: Any = self._client.zrevrange(self._keys.dead_letters, 0, limit - 1 if limit >= 0 else -1)
        return list(replies.each(found, replies.request_id))

    def list(self, limit: int = 100) -> Iterator[DeadLetter]:
        """Yield the newest dead letters, the newest first."""
        for request_id in self.ids(limit):
            try:
                letter = self.find(request_id)
            except (PayloadError, WrongType) as error:
                replies.warn_once(str(error))
                continue
            if letter is not None:  # otherwise it has just been replayed or deleted
                yield letter

    def show(self, request_id: str) -> DeadLetter:
        """Return a dead letter.

        Raises:
          DeadLetterError: There is none with that ID, or it cannot be read.
        """
        try:
            letter = self.find(request_id)
        except PayloadError as error:
            raise DeadLetterError(f"{error}; `qserve dlq purge {request_id}` deletes it") from error
        if letter is None:
            raise not_there(request_id)
        return letter

    def named(self, request_id: str) -> Sequence[str]:
        """Return the IDs of the dead letters of a request: its own, or of those with this ``X-Request-ID``."""
        with broker_errors():
            is_own = self._client.exists(self._keys.dead_letter(request_id))
        if is_own:
            return [request_id]
        of_client = (letter for letter in self.list(-1) if letter.header and letter.header.trace_id == request_id)
        return [letter.request_id for letter in of_client] or [request_id]

    def shown(self, letter: DeadLetter) -> Sequence[str]:
        """Return the arguments of the call as text."""
        codec = ShownCodec(self._installation.settings.keyring)
        return [codec.show(value) for value in letter.call.values]

    def find(self, request_id: str) -> DeadLetter | None:
        """Return a dead letter; None if there is none. PayloadError: it cannot be read."""
        with broker_errors():
            found: Any = self._client.hgetall(self._keys.dead_letter(request_id))
        return DeadLetter.read(request_id, found, self._installation.seal)

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
        renewed = header._replace(deadline_ms=int(clock.stamp_ms() + timeout_ms), carried=_of_replay(letter, header))
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
            index = replies.step_number(call.step)
            if index is None or index >= len(steps) or steps[index].deployment != deployment:
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
        return replies.number(self._client.execute_command(*command))


def _of_replay(letter: DeadLetter, header: Header) -> Carried | None:
    """Return what a replay carries: the same, and in a trace also the first try of the step that has failed."""
    carried = header.carried
    if carried is None or not carried.traceparent:
        return carried
    failed = id_of_try(header.request_id, header.deadline_ms, letter.call.step, 1)
    return carried._replace(origin=replaced(carried.traceparent, failed))
