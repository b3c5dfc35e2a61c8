"""``ComposingPlane``: composes the submissions of calls, which start them. Nothing here touches a connection."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from qserve.base.clock import Clock
from qserve.base.clock import clock as process_clock
from qserve.base.context import request_context
from qserve.base.keys import CLOCK_MARGIN_MS, Keys
from qserve.base.settings import Settings
from qserve.calls.items import ItemRef
from qserve.calls.ref import Call, Plane, Ref, failed
from qserve.calls.responses import RESPONSES, ref_of
from qserve.exceptions import AppNotFound, DeploymentUnavailableError, PayloadError, PayloadTooLarge, QserveException
from qserve.graph.advance import Answer as AnswerMove
from qserve.graph.advance import Fill, begin
from qserve.graph.plan import Plan, Slot
from qserve.tracing.switch import switch
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.claim import MARK, Claim, Kind, claim_in
from qserve.wire.codec import Codec
from qserve.wire.envelope import REQUEST_ID_CHARS, Answer, Header
from qserve.wire.moves import BYTES_LIMIT, INPUTS_LIMIT, Awaited, Join, Model, Move, Start
from qserve.wire.outcome import Outcome, State
from qserve.wire.request_ids import new_value_id
from qserve.wire.status import ReplicaStatus

_NO_MODEL = Model()


class Submission(NamedTuple):
    """A request that is ready to be sent. (A NamedTuple: a frozen dataclass of this size takes 2 us to make.)

    Parameters:
      request: The key of the request's state.
      header: What each of its calls carries.
      moves: The calls that start at once, and the known arguments of others.
      awaited: Arguments that are other requests' results.
      life_ms, keep_ms: How long the state may live, and the result is kept.
      limits: How many calls may wait in a stream, for the streams that have a limit.
      limited: The first deployment with a limit, which says how a call beyond it is refused.
      model: The model that the call is for.
      fingerprint: See ``Call``.
      is_left: Whether the result stays until it expires, because no ref deletes it.
      webhook: See ``Call``.
    """

    request: str
    header: Header
    moves: Sequence[Move]
    awaited: Sequence[Awaited]
    life_ms: int
    keep_ms: int
    limits: dict[str, int] | None
    limited: DeploymentRecord | None
    model: Model
    fingerprint: str
    is_left: bool
    webhook: bytes


class ComposingPlane(Plane):
    """A plane that composes the submissions of its calls.

    Parameters:
      settings: Defaults for deadlines and for how long results are kept.
      find: Returns an application's record by its name; raises AppNotFound.
    """

    owns_results: bool = False
    """Whether every result is deleted together with its ref."""
    faults: Mapping[str, ReplicaStatus] = MappingProxyType({})
    """The deployments that cannot be started, by application; see ``Faults``."""

    clock: Clock = process_clock
    """Follows the clock of the broker; a client of another broker has its own."""

    def __init__(self, settings: Settings, find: Callable[[str], ApplicationRecord]) -> None:
        self.settings = settings
        self.keys: Final = Keys(settings.namespace)
        self.codec: Codec = Codec(settings.keyring, settings.max_value_bytes)
        self.find = find

    def unavailable(self, record: ApplicationRecord, deployment: str) -> DeploymentUnavailableError | None:
        """Return why a call would wait until its deadline; None when it need not.

        The first deployment of an application is refused for each of the others, which it may call.
        """
        fault = self.faults.get(record.name)
        if fault is None or fault.version != record.version or fault.until_ms < self.clock.judge_ms():
            return None
        if deployment not in (fault.deployment, record.ingress):
            return None
        error = DeploymentUnavailableError(
            f"deployment {fault.deployment!r} of application {record.name!r} has no replica, and none can be started:"
            f" {fault.message}"
        )
        error.deployment = fault.deployment
        return error

    def submit(self, call: Call) -> Ref[Any]:
        return self._start(call, self._send)

    def submit_many(self, calls: Sequence[Call]) -> list[Ref[Any]]:
        if calls:
            self.find(calls[0].app)  # without their application, or the broker, none is sent
        return [self._start_or_refuse(call, self.submit) for call in calls]

    def _start_or_refuse(self, call: Call, start: Callable[[Call], Ref[Any]]) -> Ref[Any]:
        try:
            return start(call)
        except QserveException as error:  # a value that cannot be sent
            ref: Ref[Any] = Ref("", self)
            self._note_refusal(ref, call.app, call.deployment)
            ref.settle(failed(error), was_accepted=False)
            return ref

    def _start(self, call: Call, send: Callable[[Ref[Any], Submission, Call], None]) -> Ref[Any]:
        spans = switch.spans
        if spans is None:
            return self._begin(call, send)
        carried, span = spans.send(call.app, call.deployment, call.carried)
        sent = partial(spans.sent, span)
        try:
            ref = self._begin(call._replace(carried=carried), send)
        except BaseException as error:
            sent("", error)
            raise
        ref.acceptance.call_when_set(lambda: sent(ref.request_id, None if ref.acceptance.get_nowait() else ref.error()))
        return ref

    def _begin(self, call: Call, send: Callable[[Ref[Any], Submission, Call], None]) -> Ref[Any]:
        submission = self._compose(call)
        kind = ItemRef if call.stream else Ref
        if isinstance(submission, Outcome):
            ref = kind("", self)
            is_refused = submission.state != State.DONE
            if is_refused:
                self._note_refusal(ref, call.app, call.deployment)
            ref.settle(submission, not is_refused)
        else:
            ref = kind(submission.header.request_id, self, self._owns(call))
            if isinstance(ref, ItemRef):
                ref.is_of_values = call.answer is Answer.VALUE
            if submission.awaited:
                arguments = list(filter(None, map(ref_of, (*call.args, *call.kwargs.values()))))
                try:
                    self._check_own(arguments)
                except PayloadError:
                    self.codec.forget(claims_in(submission.moves))
                    raise
                ref.takes(arguments)
            send(ref, submission, call)
        return ref

    def _owns(self, call: Call) -> bool:
        """Return whether the result is deleted together with its ref: not where a webhook says that it can be had."""
        return (self.owns_results or call.owned) and not call.webhook

    def _check_own(self, refs: Sequence[Ref[Any]]) -> None:
        for ref in refs:
            other = ref.plane
            if isinstance(other, ComposingPlane) and other is not self and other._place() != self._place():
                raise PayloadError(
                    f"an argument is the result of request {ref.request_id}, which belongs to another installation:"
                    " wait for it, and pass its value"
                )

    def _place(self) -> tuple[str | None, str]:
        return self.settings.broker_url, self.settings.namespace

    def _note_refusal(self, ref: Ref[Any], app: str, deployment: str) -> None:
        """Called before a ref is settled whose call was refused."""

    @abstractmethod
    def _send(self, ref: Ref[Any], submission: Submission, call: Call | None) -> None:
        """Send a submission.

        Parameters:
          call: The call to submit again if the version has been retired meanwhile; None if that was done before.
        """

    def _compose(self, call: Call) -> Submission | Outcome:
        """Return the submission of a call, or an outcome if the request has ended before it began.

        Raises:
          AppNotFound: There is no such application.
          PayloadError: An argument cannot be encoded.
        """
        record = call.version or self.find(call.app)
        if self.faults and (error := self.unavailable(record, call.deployment)):
            return failed(error)
        if call.graph is not None:
            return self._compose_graph(record, call.graph, call)
        if call.deployment != record.ingress or call.method == "adapt":
            return self._compose_method(record, call)
        if record.driver is not None:
            return self._compose_driver(record, call)
        if call.method == "__call__" and "" in record.graphs:  # a function that was bound to arguments
            return self._compose_graph(record, "", call)
        return self._compose_method(record, call)

    def _compose_method(self, record: ApplicationRecord, call: Call) -> Submission | Outcome:
        deployment, method = call.deployment, call.method
        if deployment not in record.deployments:
            known = ", ".join(record.deployments)
            return failed(AppNotFound(f"application {call.app!r} has no deployment {deployment!r}; it has: {known}"))
        stream = self.keys.stream(record.name, record.version, deployment)
        args, kwargs, refs = _replace_refs(call.args, call.kwargs)
        needs = len(refs) + 1
        if needs > INPUTS_LIMIT:
            raise PayloadError(
                f"a call of {deployment}.{method} has {len(refs)} results of other calls as arguments; the limit is"
                f" {INPUTS_LIMIT - 1}. Await some of them first, and pass their values."
            )
        arguments = self.codec.encode([args, kwargs], Kind.KEPT)
        if not refs:
            return self._submission(record, None, call, [Start(stream, method, [arguments])], [])
        awaited = [
            Awaited(self.keys.request(ref.request_id), stream, method, needs, slot) for slot, ref in enumerate(refs, 1)
        ]
        return self._submission(record, None, call, [Join(stream, method, needs, [(0, arguments)])], awaited)

    def _compose_driver(self, record: ApplicationRecord, call: Call) -> Submission | Outcome:
        """A call of the application's DAGDriver by handle: it runs one of the graphs."""
        graph, args = "", call.args
        if call.method == "predict_with_route":
            graph, args = str(args[0]) if args else "", args[1:]
            if graph not in record.graphs:
                return failed(QserveException(f"{graph} does not exist in dags routes"))
        elif graph not in record.graphs or call.method not in ("predict", "__call__"):
            return failed(
                QserveException(
                    f"Tried to call a method {call.method!r} that does not exist."
                    " Available methods: ['predict', 'predict_with_route']."
                )
            )
        call = call._replace(args=args)
        if record.driver and graph in record.driver.direct:
            deployment = record.driver.direct[graph]
            return self._compose_method(record, call._replace(deployment=deployment, method="__call__"))
        return self._compose_graph(record, graph, call)

    def _compose_graph(self, record: ApplicationRecord, graph: str, call: Call) -> Submission | Outcome:
        plan, _ = record.plans[graph]
        try:
            moves = begin(plan, tuple(call.args), dict(call.kwargs))
        except Exception as error:  # a part of the input is missing: that fails the request, not its caller
            return failed(error, "" if isinstance(error, QserveException) else record.ingress)
        answer = next((move for move in moves if isinstance(move, AnswerMove)), None)
        if answer is not None:  # it is stored nowhere: no request would let go of it
            whole = Codec(self.settings.keyring, self.settings.max_value_bytes)
            return Outcome(State.DONE, whole.encode(answer.value))
        awaited: list[Awaited] = []
        packed = pack_moves(moves, record, plan, self.keys, self.codec, awaited)
        return self._submission(record, graph, call, packed, awaited)

    def _submission(
        self,
        record: ApplicationRecord,
        graph: str | None,
        call: Call,
        moves: Sequence[Move],
        awaited: Sequence[Awaited],
    ) -> Submission:
        is_owned = self._owns(call)
        request_id = call.request_id or (os.urandom(16).hex() if is_owned else new_value_id())
        timeout_s = call.timeout_s or record.timeout_s or self.settings.request_timeout_s
        clock = self.clock
        deadline_ms = int(clock.stamp_ms() + timeout_s * 1000)
        parent = request_context.get()
        parent_ms = parent.deadline_ms
        if parent_ms and not parent.cancelled:  # what code does about its end may take longer
            if clock is not process_clock:
                parent_ms += int(clock.now_ms() - process_clock.now_ms())
            deadline_ms = min(deadline_ms, parent_ms)
        header = Header(
            request_id, record.name, graph, deadline_ms, call.answer,
            call.trace_id or request_id, call.route, call.model_id, call.stream,
            {f"{item.step}.{item.slot}": item.request[-REQUEST_ID_CHARS:] for item in awaited} if awaited else {},
            call.carried,
        )  # fmt: skip
        life_ms = int(max(0.0, deadline_ms - clock.judge_ms()) + CLOCK_MARGIN_MS)
        keep_s = self.settings.result_ttl_s if call.result_ttl_s is None else call.result_ttl_s
        limits = None
        if record.limited:
            limits = {
                self.keys.stream(record.name, record.version, limited.name): limited.max_queued
                for limited in record.limited
            }
        model = _NO_MODEL
        if call.model_id and graph is None:
            model = Model(call.model_id, record.deployments[call.deployment].max_ongoing)
        return Submission(
            self.keys.request(request_id), header, moves, awaited, life_ms, int(keep_s * 1000), limits,
            record.limited[0] if limits else None, model, call.fingerprint, not is_owned,
            call.webhook,
        )  # fmt: skip


def _replace_refs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any], list[Ref[Any]]]:
    """Put slots in the places of the refs among the arguments; the broker fills in their values."""
    refs: list[Ref[Any]] = []

    def place(value: Any) -> Any:
        ref = ref_of(value)
        if ref is None:
            return value
        if not ref.request_id:  # it has its value already
            return ref.result()
        if ref not in refs:
            refs.append(ref)
        return Slot(refs.index(ref) + 1)

    return [place(value) for value in args], {name: place(value) for name, value in kwargs.items()}, refs


def failure_in(call: Call) -> Outcome | None:
    """Return the outcome of an argument that was refused: such a request is stored nowhere; its ref has the error."""
    for value in (*call.args, *call.kwargs.values()):
        ref = ref_of(value)
        if ref is not None and ref.done.is_set() and ref.outcome().state != State.DONE:
            return ref.outcome()
    return None


def pack_moves(
    moves: Sequence[Fill | AnswerMove],
    record: ApplicationRecord,
    plan: Plan,
    keys: Keys,
    codec: Codec,
    awaited: list[Awaited] | None = None,
    kind: Kind = Kind.KEPT,
) -> list[Move]:
    """Return a graph's moves with encoded values.

    Parameters:
      awaited: Receives the refs among the values, which the broker fills in; None where there can be none.
      kind: What the values are stored for, if they are large.

    Raises:
      PayloadError: A value cannot be encoded, or together they are too long for one command.
    """
    encode = _Encoder(codec, kind)
    try:
        packed = [_packed(move, record, plan, keys, encode, awaited) for move in moves if isinstance(move, Fill)]
        size = sum(len(value) for move in packed for value in _values_of(move))
        if size > BYTES_LIMIT:
            raise PayloadTooLarge(
                f"{len(packed)} calls of the graph would get {size} bytes at once; the limit is {BYTES_LIMIT}. Pass"
                " smaller values, or the place where they are stored."
            )
    except BaseException:
        codec.forget(filter(None, map(claim_in, encode.encoded.values())))
        raise
    return packed


class _Encoder:
    """Encodes the values of one set of moves; one that goes to several steps is encoded, and stored, once."""

    def __init__(self, codec: Codec, kind: Kind) -> None:
        self._codec, self._kind = codec, kind
        self.encoded: dict[int, bytes] = {}

    def __call__(self, value: Any) -> bytes:
        found = self.encoded.get(id(value))
        if found is None:
            found = self.encoded[id(value)] = self._codec.encode(value, self._kind)
        return found


def _packed(
    move: Fill,
    record: ApplicationRecord,
    plan: Plan,
    keys: Keys,
    encode: Callable[[Any], bytes],
    awaited: list[Awaited] | None,
) -> Move:
    stream, step = keys.stream(record.name, record.version, plan.steps[move.step].deployment), str(move.step)
    values = []
    for slot, value in move.values:
        ref = ref_of(value) if isinstance(value, RESPONSES) else None
        if awaited is None or ref is None:
            values.append((slot, encode(value)))
        elif not ref.request_id:
            values.append((slot, encode(ref.result())))
        else:
            awaited.append(Awaited(keys.request(ref.request_id), stream, step, move.needs, slot))
    if len(values) == move.needs:
        return Start(stream, step, [value for _, value in (values if len(values) == 1 else sorted(values))])
    return Join(stream, step, move.needs, values)


def claims_in(moves: Sequence[Move]) -> dict[Claim, int]:
    """Return the claims of the stored values in moves, each with the number of slots that it goes to.

    Raises:
      PayloadError: A claim cannot be read.
    """
    found: dict[Claim, int] = {}
    for move in moves:
        for value in _values_of(move):
            claim = claim_in(value) if value.startswith(MARK) else None
            if claim is not None:
                found[claim] = found.get(claim, 0) + 1
    return found


def _values_of(move: Move) -> Sequence[bytes]:
    return move.values if isinstance(move, Start) else [value for _, value in move.slots]
