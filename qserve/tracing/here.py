"""The trace context of the running code, for the spans of user code."""

from __future__ import annotations

from typing import Any

from qserve.base.context import request_context


def get_trace_context() -> Any:
    """Return OpenTelemetry's context of the running request, for spans of your own.

    In a deployment that is what OpenTelemetry takes by itself; a thread that you have started needs it.

    Returns:
      An ``opentelemetry.context.Context``; None outside of a trace, and where OpenTelemetry is not installed.

    Example:
      from opentelemetry import trace

      tracer = trace.get_tracer("shop")
      with tracer.start_as_current_span("tokenize", context=serve.get_trace_context()):
          words = "one two".split()
    """
    try:
        from opentelemetry import context, trace
    except ImportError:
        return None
    if trace.get_current_span().get_span_context().is_valid:
        return context.get_current()
    carried = request_context.get().carried
    if carried is None or not carried.traceparent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    given = {"traceparent": carried.traceparent, "tracestate": carried.tracestate}
    return TraceContextTextMapPropagator().extract(given)
