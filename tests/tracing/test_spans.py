"""The spans of requests in local mode, which replicas make by the same code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from processes import wait_until

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.local.run import shutdown_local
from qserve.tracing.spans import Spans
from qserve.tracing.switch import switch

TRACE, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{PARENT_ID}-01"


class Recorder:
    """The spans that were made, by their names."""

    def __init__(self, provider: Any) -> None:
        self.provider, self._exporter = provider, InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def spans(self, count: int) -> list[Any]:
        """Wait until there are so many, and return them in the order of their names."""
        wait_until(lambda: len(self._exporter.get_finished_spans()) >= count, description=f"{count} spans have ended")
        found = list(self._exporter.get_finished_spans())
        assert len(found) == count, [span.name for span in found]
        return sorted(found, key=lambda span: span.name)

    def tree(self, count: int) -> dict[str, str]:
        """Return by its name the name of what each span is below."""
        found = self.spans(count)
        names = {span.context.span_id: span.name for span in found} | {int(PARENT_ID, 16): "caller"}
        return {span.name: "" if span.parent is None else names[span.parent.span_id] for span in found}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    provider = TracerProvider(ParentBased(ALWAYS_ON), shutdown_on_exit=False)
    monkeypatch.setattr(switch, "spans", Spans(provider, is_own=True))
    yield Recorder(provider)
    shutdown_local()


def run(node: Any) -> Any:
    return serve.run(node, local=True)


def test_a_graph_has_a_span_for_each_send_and_each_step_below_what_caused_it(recorder: Recorder) -> None:
    @serve.deployment
    def left(x: int) -> int:
        return x

    @serve.deployment
    def right(x: int) -> int:
        return x

    @serve.deployment
    class Sum:
        def add(self, one: int, other: int) -> list[Any]:
            context = serve.get_request_context()
            return [one + other, context.traceparent, context.tracestate, context.tenant]

    with InputNode() as x:
        handle = run(DAGDriver.bind(Sum.bind().add.bind(left.bind(x), right.bind(x)))).predict
    with serve.call_context(tenant="acme", traceparent=PARENT, tracestate="a=1"):
        total, seen, state, tenant = serve.get(handle.remote(2), timeout=60)
    assert (total, state, tenant) == (4, "a=1", "acme")

    spans = recorder.spans(6)
    tree = {(span.name, span.kind.name): span for span in spans}
    ids = {span.context.span_id: span.name for span in spans}
    assert {span.context.trace_id for span in spans} == {int(TRACE, 16)}
    sent = tree["send DAGDriver", "PRODUCER"]
    assert sent.parent.span_id == int(PARENT_ID, 16)
    for name in ("left", "right"):
        assert tree[f"process {name}.__call__", "CONSUMER"].parent.span_id == sent.context.span_id
    added = tree["process Sum.add", "CONSUMER"]
    sends = [span for span in spans if span.name == "send Sum"]
    assert added.parent.span_id in {span.context.span_id for span in sends}
    assert {link.context.span_id for link in added.links} | {added.parent.span_id} == {
        span.context.span_id for span in sends
    }
    assert sorted(ids[span.parent.span_id] for span in sends) == ["process left.__call__", "process right.__call__"]
    assert seen == f"00-{TRACE}-{added.context.span_id:016x}-01"
    told = added.attributes
    assert (told["qserve.outcome"], told["qserve.committed"], told["qserve.attempt"]) == ("done", True, 1)
    assert (told["messaging.system"], told["messaging.destination.name"]) == ("qserve", "Sum")
    assert told["messaging.message.id"] == sent.attributes["messaging.message.id"]
    assert tree["process left.__call__", "CONSUMER"].attributes["qserve.outcome"] == "forwarded"


def test_calls_streams_and_spans_of_user_code_are_below_the_step_that_makes_them(recorder: Recorder) -> None:
    tracer = recorder.provider.get_tracer("user")

    @serve.deployment
    class Inner:
        def look(self) -> str:
            with tracer.start_as_current_span("in a thread", context=serve.get_trace_context()):
                return "seen"

        async def items(self) -> AsyncIterator[int]:
            with tracer.start_as_current_span("in a stream"):
                yield 1
            yield 2

    @serve.deployment
    class Outer:
        def __init__(self, inner: Any) -> None:
            self.inner = inner.options(use_new_handle_api=True)

        async def __call__(self) -> Any:
            with tracer.start_as_current_span("own"):
                found = await self.inner.look.remote()
            return found, [item async for item in self.inner.options(stream=True).items.remote()]

    handle = run(Outer.bind(Inner.bind()))
    with tracer.start_as_current_span("program"):
        assert serve.get(handle.remote(), timeout=60) == ("seen", [1, 2])
    spans = recorder.spans(10)
    ids = {span.context.span_id: span.name for span in spans}
    assert sorted((span.name, ids[span.parent.span_id] if span.parent else "") for span in spans) == [
        ("in a stream", "process Inner.items"),
        ("in a thread", "process Inner.look"),
        ("own", "process Outer.__call__"),
        ("process Inner.items", "send Inner"),
        ("process Inner.look", "send Inner"),
        ("process Outer.__call__", "send Outer"),
        ("program", ""),
        ("send Inner", "own"),
        ("send Inner", "process Outer.__call__"),
        ("send Outer", "program"),
    ]


def test_a_batch_has_a_span_with_links_to_its_calls(recorder: Recorder) -> None:
    tracer = recorder.provider.get_tracer("user")

    @serve.deployment
    class Batched:
        @serve.batch(max_batch_size=3, batch_wait_timeout_s=60)
        async def __call__(self, numbers: list[int]) -> list[int]:
            with tracer.start_as_current_span("own"):
                if 13 in numbers:
                    raise LookupError("no such number")
                return numbers

    handle = run(Batched.bind())
    assert serve.get([handle.remote(number) for number in range(3)], timeout=60) == [0, 1, 2]
    spans = recorder.spans(8)
    (batch,) = (span for span in spans if span.name.startswith("batch "))
    (own,) = (span for span in spans if span.name == "own")
    calls = {span.context.span_id for span in spans if span.name == "process Batched.__call__"}
    assert {link.context.span_id for link in batch.links} == calls
    assert batch.parent.span_id in calls
    assert own.parent.span_id == batch.context.span_id
    assert batch.attributes["messaging.batch.message_count"] == 3

    for ref in [handle.remote(13) for _ in range(3)]:
        with pytest.raises(LookupError):
            serve.get(ref, timeout=60)
    failed = [span for span in recorder.spans(16) if span.status.status_code is trace.StatusCode.ERROR]
    assert sorted({span.name.partition(" ")[0] for span in failed}) == ["batch", "own", "process"]


def test_an_error_is_in_the_span_of_its_step(recorder: Recorder) -> None:
    @serve.deployment
    def fail(x: int) -> int:
        raise LookupError("no such number")

    with pytest.raises(LookupError):
        serve.get(run(fail.bind()).remote(1), timeout=60)
    step, sent = recorder.spans(2)
    assert (step.status.status_code, sent.status.status_code) == (trace.StatusCode.ERROR, trace.StatusCode.UNSET)
    assert step.attributes["qserve.outcome"] == "failed"
    (event,) = step.events
    assert event.attributes["exception.message"] == "no such number"


def test_a_call_that_cannot_be_sent_has_a_span_with_the_error(recorder: Recorder) -> None:
    @serve.deployment
    def work(x: Any) -> Any:
        return x

    handle = run(work.bind())
    with pytest.raises(Exception, match="lock"):
        handle.remote(__import__("threading").Lock())
    (sent,) = recorder.spans(1)
    assert sent.status.status_code is trace.StatusCode.ERROR


def test_a_trace_that_is_not_recorded_goes_on_and_makes_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = TracerProvider(ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    recorder = Recorder(provider)
    monkeypatch.setattr(switch, "spans", Spans(provider, is_own=True))

    @serve.deployment
    def work(x: Any) -> str:
        return serve.get_request_context().traceparent

    handle = run(work.bind())
    begun_here = serve.get(handle.remote(1), timeout=60)
    with serve.call_context(traceparent=PARENT[:-1] + "0"):
        begun_there = serve.get(handle.remote(1), timeout=60)
    shutdown_local()
    assert (begun_there[3:35], begun_there[-2:]) == (TRACE, "00")
    assert len(begun_here) == len(PARENT) and not int(begun_here[-2:], 16) & 1
    assert recorder.spans(0) == []


def test_without_spans_the_context_of_opentelemetry_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    @serve.deployment
    def work(x: Any) -> Any:
        found = trace.get_current_span(serve.get_trace_context()).get_span_context()
        return [f"{found.trace_id:032x}", f"{found.span_id:016x}", found.is_remote]

    handle = run(work.bind())
    with serve.call_context(traceparent=PARENT):
        assert serve.get(handle.remote(1), timeout=60) == [TRACE, PARENT_ID, True]
    assert serve.get_trace_context() is None
    shutdown_local()
