"""``Spans``: makes the spans of a process. What they carry on is a ``Carried``, whose ``traceparent`` is the span's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from qserve.base.carried import Carried, carried_here
from qserve.base.trace_context import numbers_in
from qserve.base.tracebacks import one_line
from qserve.graph.plan import Plan
from qserve.tracing.ids import id_of_send, id_of_try
from qserve.wire.envelope import Header

_SYSTEM = {"messaging.system": "qserve"}
_PLANS_KEPT = 256


Step = tuple[str, str, str, str, int, float | None, Plan | None, int]
"""A try of a step: deployment and replica, the step's name in messages and its method, the number of the try from 1,
how many milliseconds it has waited (None if that is not known), and its graph with its number in that, if any."""
Send = tuple[str, str, int]
"""What a commit has sent: the deployment, the step and the slot."""


class _Ids(RandomIdGenerator):  # type: ignore[misc]
    """Gives the next span of its thread an ID that was chosen for it."""

    def __init__(self) -> None:
        self.chosen = threading.local()

    def generate_span_id(self) -> int:
        found = getattr(self.chosen, "span_id", 0)
        self.chosen.span_id = 0
        return found or super().generate_span_id()


class Spans:
    """Makes spans.

    Parameters:
      provider: A ``TracerProvider`` of OpenTelemetry's SDK.
      is_own: Whether it was made for qserve, and so ends with it.
    """

    def __init__(self, provider: Any, is_own: bool) -> None:
        self.provider: Any = provider
        self.is_own: Final = is_own
        self._tracer = provider.get_tracer("qserve")
        self._ids = _Ids()
        self._tracer.id_generator = self._ids  # of this tracer only: the provider may be the user's
        self._slots: dict[int, tuple[Plan, dict[int, list[int]]]] = {}

    def _start(
        self,
        name: str,
        kind: SpanKind,
        parent: Carried | None,
        attributes: Mapping[str, Any],
        links: Sequence[Link] = (),
        span_id: int = 0,
        start_ns: int | None = None,
        parent_id: int = 0,
    ) -> Any:
        context = _context_of(parent, parent_id)
        self._ids.chosen.span_id = span_id
        try:
            return self._tracer.start_span(name, context, kind, attributes, links, start_ns)
        finally:
            self._ids.chosen.span_id = 0

    # -- the HTTP request --------------------------------------------------------------------------

    def serve(self, method: str, parent: Carried | None, attributes: Mapping[str, Any]) -> Any:
        """Return the span of an HTTP request; whoever has sent the reply ends it."""
        return self._start(method, SpanKind.SERVER, parent, {"http.request.method": method, **attributes})

    def served(self, span: Any, is_failed: bool) -> None:
        """End the span of an HTTP request."""
        if is_failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def carried(self, span: Any, carried: Carried | None) -> Carried:
        """Return what is carried on below a span."""
        return carried_of(span, carried)

    # -- sends -------------------------------------------------------------------------------------

    def send(self, app: str, deployment: str, carried: Carried | None) -> tuple[Carried, Any]:
        """Return what a call carries that is sent now, and the span of its send; see ``sent``."""
        here = trace.get_current_span()
        is_given = carried is not None and carried.traceparent and carried_here.get() is not None
        attributes = {
            **_SYSTEM,
            "messaging.operation.type": "send",
            "messaging.destination.name": deployment,
            "qserve.application": app,
        }
        parent = carried_of(here, carried) if here.get_span_context().is_valid and not is_given else carried
        span = self._start(f"send {deployment}", SpanKind.PRODUCER, parent, attributes)
        return carried_of(span, carried), span

    def sent(self, span: Any, request_id: str, error: BaseException | None) -> None:
        """End the span of a send: the broker has the request, or it was refused."""
        span.set_attribute("messaging.message.id", request_id)
        if error is not None:
            _note(span, error)
        span.end()

    # -- steps -------------------------------------------------------------------------------------

    def process(self, header: Header, step: Step) -> StepSpan:
        """Return the span of a try of a step, which begins now."""
        carried, request_id = header.carried, header.request_id
        deployment, replica, name, method, attempt, queued_ms, plan, index = step
        parent_id, links = 0, []
        slots = self._slots_of(plan).get(index, ()) if plan is not None else ()
        if carried is not None and carried.traceparent:
            if slots:
                parent_id = id_of_send(request_id, name, slots[0])
                links = [_link(carried, id_of_send(request_id, name, slot), "join") for slot in slots[1:]]
            if attempt > 1:
                links.append(_link(carried, id_of_try(request_id, header.deadline_ms, name, 1), "first try"))
            if carried.origin:
                links.append(_link(carried._replace(traceparent=carried.origin), 0, "replayed"))
        attributes = {
            **_SYSTEM,
            "messaging.operation.type": "process",
            "messaging.destination.name": deployment,
            "messaging.message.id": request_id,
            "qserve.application": header.app,
            "qserve.deployment": deployment,
            "qserve.replica": replica,
            "qserve.attempt": attempt,
            "qserve.request_id": header.trace_id,
        }
        if queued_ms is not None:
            attributes["qserve.queue_ms"] = round(queued_ms, 3)
        span = self._start(
            f"process {deployment}.{method}", SpanKind.CONSUMER, carried, attributes, links,
            id_of_try(request_id, header.deadline_ms, name, attempt), parent_id=parent_id,
        )  # fmt: skip
        return StepSpan(self, span, carried_of(span, carried), request_id)

    def _slots_of(self, plan: Plan) -> dict[int, list[int]]:
        """Return by step which of its slots are filled by other steps."""
        found = self._slots.get(id(plan))
        if found is None:
            if len(self._slots) >= _PLANS_KEPT:
                self._slots.clear()
            slots: dict[int, list[int]] = {}
            for source, targets in plan.feeds.items():
                for target, slot in targets if type(source) is int else ():
                    slots.setdefault(target, []).append(slot)
            found = self._slots[id(plan)] = plan, {target: sorted(own) for target, own in slots.items()}
        return found[1]

    def forwarded(self, carried: Carried, request_id: str, sends: Iterable[Send], start_ns: int) -> None:
        """Record what a commit has sent to the next steps."""
        for deployment, step, slot in sends:
            attributes = {
                **_SYSTEM,
                "messaging.operation.type": "send",
                "messaging.destination.name": deployment,
                "messaging.message.id": request_id,
            }
            span_id = id_of_send(request_id, step, slot)
            self._start(
                f"send {deployment}", SpanKind.PRODUCER, carried, attributes, (), span_id, start_ns
            ).end()  # fmt: skip

    # -- batches -----------------------------------------------------------------------------------

    def batch(self, name: str, calls: Sequence[Carried | None], shared: Carried | None) -> tuple[Carried, Any]:
        """Return what a batch carries, and its span: below that of its first call, and linked with all."""
        traced = [call for call in calls if call is not None and call.traceparent]
        links = [_link(call, 0, "item") for call in traced]
        attributes = {"messaging.batch.message_count": len(calls)}
        span = self._start(f"batch {name}", SpanKind.INTERNAL, traced[0] if traced else None, attributes, links)
        return carried_of(span, shared), span

    def attach(self, span: Any) -> None:
        """Make a span the parent of the spans of user code in this context, which lasts no longer than the span."""
        contexts.attach(trace.set_span_in_context(span))

    def batched(self, span: Any, error: BaseException | None) -> None:
        """End the span of a batch."""
        if error is not None:
            _note(span, error)
        span.end()


class StepSpan:
    """The span of one try of a step: it ends when the broker has said what became of the try."""

    __slots__ = ("_ended_ns", "_request_id", "_span", "_spans", "carried")

    def __init__(self, spans: Spans, span: Any, carried: Carried, request_id: str) -> None:
        self._spans, self._span, self._request_id = spans, span, request_id
        self.carried: Final = carried
        self._ended_ns = 0

    def attach(self) -> None:
        """Make it the parent of the spans of user code in this context, which is that of one call."""
        self._spans.attach(self._span)

    def ran(self, error: BaseException | None = None) -> None:
        """Note that the code has ended now, and with what error."""
        if not self._ended_ns and self._span is not None:
            self._ended_ns = time.time_ns()
            if error is not None:
                _note(self._span, error)

    def settled(self, outcome: str, committed: bool, sends: Iterable[Send] = ()) -> None:
        """End the span.

        Parameters:
          outcome: What became of the try.
          committed: Whether it is the one try of its step whose effects the request has.
          sends: What it has sent to the next steps.
        """
        span, self._span = self._span, None
        if span is None:
            return
        self._ended_ns = self._ended_ns or time.time_ns()
        if committed and span.is_recording():
            self._spans.forwarded(self.carried, self._request_id, sends, self._ended_ns)
        span.set_attribute("qserve.outcome", outcome)
        span.set_attribute("qserve.committed", committed)
        span.end(self._ended_ns)


def carried_of(span: Any, carried: Carried | None) -> Carried:
    """Return what is carried on below a span."""
    context = span.get_span_context()
    if not context.is_valid:
        return carried or Carried()
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 3:02x}"
    return (carried or Carried())._replace(traceparent=parent, tracestate=context.trace_state.to_header())


def span_context_of(carried: Carried, span_id: int = 0) -> SpanContext:
    """Return the span that a ``traceparent`` names, or another one of its trace."""
    trace_id, own_id, flags = numbers_in(carried.traceparent)
    state = TraceState.from_header([carried.tracestate]) if carried.tracestate else None
    return SpanContext(trace_id, span_id or own_id, True, TraceFlags(flags), state)


def _context_of(parent: Carried | None, parent_id: int) -> Any:
    if parent is None or not parent.traceparent:
        return contexts.Context()
    return trace.set_span_in_context(NonRecordingSpan(span_context_of(parent, parent_id)), contexts.Context())


def _link(carried: Carried, span_id: int, why: str) -> Link:
    return Link(span_context_of(carried, span_id), {"qserve.link": why})


def _note(span: Any, error: BaseException) -> None:
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, one_line(error)))
