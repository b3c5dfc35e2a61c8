"""From a call in Python to the submission that starts it; nothing here touches a connection."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from qserve.base import failpoints
from qserve.base.clock import clock
from qserve.base.context import request_context
from qserve.base.keys import CLOCK_MARGIN_MS, Keys
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.library import Command
from qserve.calls.plane import CallOptions
from qserve.calls.ref_arguments import REFS, take_awaited, take_refs
from qserve.exceptions import AppNotFound, QserveException
from qserve.graph.advance import Answer as AnswerMove
from qserve.graph.advance import Fill, Send, begin
from qserve.graph.plan import Plan
from qserve.wire.application import ApplicationRecord
from qserve.wire.codec import Codec
from qserve.wire.envelope import REQUEST_ID_CHARS, Header
from qserve.wire.failure import Failure
from qserve.wire.moves import Awaited, Epoch, Join, Model, Move, Start
from qserve.wire.outcome import Outcome, State
from qserve.wire.sealing import Seal, seal_header, seal_moves


class Submission(NamedTuple):
    """A request ready to be sent; a NamedTuple, since a frozen dataclass of this size takes 2 us to make.

    Parameters:
      outcome: Set when the request ended before it began; there is nothing to send then.
      request: The key of its state.
      header: What each of its calls carries.
      moves: What starts at once.
      awaited: Arguments that are other requests' results.
      life_ms, keep_ms: How long its state may live, and its result be kept.
      limits: The most calls that may wait in a stream, for those that have a limit.
      model: The model that the call is for.
      fingerprint: See ``CallOptions``.
    """

    request_id: str
    deadline_ms: int
    outcome: Outcome | None = None
    request: str = ""
    header: bytes = b""
    moves: Sequence[Move] = ()
    awaited: Sequence[Awaited] = ()
    life_ms: int = 0
    keep_ms: int = 0
    limits: dict[str, int] | None = None
    model: Model | None = None
    fingerprint: str = ""

    def command(self, mailbox: str, epoch: Epoch, seal: Seal) -> Command:
        """What submits it at a broker.

        Parameters:
          mailbox: Where the end is reported; "" for nowhere.
          epoch: The state of the broker that it is meant for.
          seal: Seals all that travels.
        """
        if failpoints.ARMED:
            failpoints.hit("submit.before_send")
        header, moves = seal_header(seal, self.header), seal_moves(seal, self.request_id, self.moves)
        return functions.submit(
            self.request, self.request_id, epoch, header, mailbox, self.life_ms, self.keep_ms, moves,
            self.awaited, self.limits, self.model, self.fingerprint,
        )  # fmt: skip


class Composer:
    """Composes submissions for one process.

    Parameters:
      settings: Defaults for deadlines and the life of results.
      keys: The installation's key names.
      value_codec: Encodes arguments.
      find: Gives an application's record by its name; raises AppNotFound.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        value_codec: Codec,
        find: Callable[[str], ApplicationRecord],
    ) -> None:
        self.codec = value_codec
        self._settings = settings
        self._keys = keys
        self._find = find

    def call(
        self,
        app: str,
        deployment: str,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: CallOptions,
    ) -> Submission:
        """A direct call of one method; a call of the application's driver or bound function runs its graph."""
        record = self._find(app)
        if record.driver is not None and deployment == record.ingress and method != "adapt":
            return self._drive(record, method, args, kwargs, options)
        if record.driver is None and deployment == record.ingress and method == "__call__" and "" in record.graphs:
            return self.run(app, "", args, kwargs, options)  # a function that was bound to arguments
        if deployment not in record.deployments:
            known = ", ".join(record.deployments)
            gone = f"application {app!r} has no deployment {deployment!r}; it has: {known}"
            return self._ended(AppNotFound(gone))
        stream = record.stream(self._keys, deployment)
        args, kwargs, refs = take_refs(args, kwargs)
        template = self.codec.encode([list(args), kwargs])
        moves: list[Move]
        if refs:
            needs = len(refs) + 1
            moves = [Join(stream, method, needs, [(0, template)])]
            waits = [
                Awaited(self._keys.request(ref.request_id), stream, method, needs, slot)
                for slot, ref in enumerate(refs, 1)
            ]
        else:
            moves, waits = [Start(stream, method, [template])], []
        request_id, header, deadline_ms = self._header(record, None, options, waits)
        submission = self._submission(record, request_id, header, deadline_ms, moves, waits, options)
        if not options.model_id:
            return submission
        models = self._keys.models(app, record.version, deployment)
        wish = Model(models, options.model_id, record.deployments[deployment].max_ongoing)
        return submission._replace(model=wish)

    def _drive(
        self,
        record: ApplicationRecord,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: CallOptions,
    ) -> Submission:
        graph = ""
        if method == "predict_with_route":
            graph, args = str(args[0]) if args else "", args[1:]
        if graph not in record.graphs or method not in (
            "predict",
            "predict_with_route",
            "__call__",
        ):
            what = (
                f"{graph} does not exist in dags routes"
                if method == "predict_with_route"
                else f"Tried to call a method {method!r} that does not exist."
                " Available methods: ['predict', 'predict_with_route']."
            )
            return self._ended(QserveException(what))
        if record.driver and graph in record.driver.direct:
            return self.call(record.name, record.driver.direct[graph], "__call__", args, kwargs, options)
        return self.run(record.name, graph, args, kwargs, options)

    def run(
        self,
        app: str,
        graph: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: CallOptions,
    ) -> Submission:
        """A graph on an input. An input part that is missing fails the request, not the caller."""
        record = self._find(app)
        plan, _ = record.plans[graph]
        try:
            moves = begin(plan, tuple(args), dict(kwargs))
        except Exception as error:
            return self._ended(error, record.ingress)
        waits: list[Awaited] = []
        packed = pack_moves(moves, record, plan, self._keys, self.codec, waits)
        request_id, header, deadline_ms = self._header(record, graph, options, waits)
        if isinstance(packed, bytes):
            return Submission(request_id, deadline_ms, Outcome(State.DONE, packed))
        return self._submission(record, request_id, header, deadline_ms, packed, waits, options)

    def _ended(self, error: BaseException, deployment: str = "") -> Submission:
        failure = Failure.of(error, "" if isinstance(error, QserveException) else deployment)
        return Submission("", 0, Outcome(State.FAILED, failure.encode()))

    def _header(
        self, record: ApplicationRecord, graph: str | None, options: CallOptions, waits: Sequence[Awaited]
    ) -> tuple[str, bytes, int]:
        request_id = options.request_id or os.urandom(16).hex()
        timeout_s = options.timeout_s or record.timeout_s or self._settings.request_timeout_s
        deadline_ms = int(clock.stamp_ms() + timeout_s * 1000)
        parent_ms = request_context.get().deadline_ms
        if parent_ms:
            deadline_ms = min(deadline_ms, parent_ms)
        header = Header(
            request_id, record.name, graph, deadline_ms, options.answer,
            options.trace_id or request_id, options.route, options.model_id, options.stream,
            {f"{one.step}.{one.slot}": one.request[-REQUEST_ID_CHARS:] for one in waits} if waits else {},
        )  # fmt: skip
        return request_id, header.encode(), deadline_ms

    def _submission(
        self,
        record: ApplicationRecord,
        request_id: str,
        header: bytes,
        deadline_ms: int,
        moves: Sequence[Move],
        waits: Sequence[Awaited],
        options: CallOptions,
    ) -> Submission:
        keep_s = self._settings.result_ttl_s if options.result_ttl_s is None else options.result_ttl_s
        keep_ms = int(keep_s * 1000)
        life_ms = max(0, deadline_ms - int(clock.judge_ms())) + CLOCK_MARGIN_MS
        return Submission(
            request_id, deadline_ms, None, self._keys.request(request_id), header, moves, waits, life_ms, keep_ms,
            self._limits(record), None, options.fingerprint,
        )  # fmt: skip

    def _limits(self, record: ApplicationRecord) -> dict[str, int] | None:
        limited = {
            record.stream(self._keys, name): one.max_queued
            for name, one in record.deployments.items()
            if one.max_queued >= 0
        }
        return limited or None


def pack_moves(
    moves: Sequence[Send | Fill | AnswerMove],
    record: ApplicationRecord,
    plan: Plan,
    keys: Keys,
    value_codec: Codec,
    waits: list[Awaited] | None = None,
) -> list[Move] | bytes:
    """A graph's moves for the broker; bytes when the request is answered at once.

    Parameters:
      waits: Takes up the refs among the values, which the broker fills in; None where there can be none.
    """
    packed: list[Move] = []
    for move in moves:
        if isinstance(move, AnswerMove):
            return value_codec.encode(move.value)
        stream = record.stream(keys, plan.steps[move.step].deployment)
        given = move.values
        if waits is not None and any(isinstance(value, REFS) for _, value in given):
            needs = len(given) if isinstance(move, Send) else move.needs
            given = take_awaited(given, stream, str(move.step), needs, keys, waits)
            move = Fill(move.step, given, needs)
        values = [(slot, value_codec.encode(value)) for slot, value in given]
        if isinstance(move, Send):
            packed.append(Start(stream, str(move.step), [value for _, value in sorted(values)]))
        else:
            packed.append(Join(stream, str(move.step), move.needs, values))
    return packed
