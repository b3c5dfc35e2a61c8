"""Start and end the tracing of a process, as the settings and the standard ``OTEL_*`` variables say."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.tracing.switch import switch

log: Final = get_logger(__name__)
FLUSH_FOR_S = 2.0
"""How long a process that ends may take to send its last spans."""
_ASKING = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_GROUP = "opentelemetry_traces_exporter"
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_SPANS = "qserve.tracing.spans"
_INSTALL = "install it with `pip install 'qserve-celery[otel]'`"


def is_asked_for(settings: Settings, env: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is to make spans."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or settings.tracing == "off":
        return False
    if settings.tracing == "on" or _users_provider() is not None:
        return True
    exporters = env.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporters not in ("", "none") if exporters else any(map(env.get, _ASKING))


def start(settings: Settings, source: str) -> None:
    """Begin to make spans if that is asked for; after a fork, since exporters have threads.

    Parameters:
      source: The name of this process, for ``service.instance.id``.
    """
    if switch.spans is not None or not is_asked_for(settings):
        return
    try:
        given, spans = _users_provider(), importlib.import_module(_SPANS)
        switch.spans = spans.Spans(given or _provider(settings, source), is_own=given is None)
        atexit.register(close)
    except ImportError as error:
        log.error("tracing is asked for, but OpenTelemetry cannot be imported (%s): %s", error, _INSTALL)
    except Exception as error:
        log.error("tracing could not be started, and no spans are made: %s", error, exc_info=error)


def preload(settings: Settings) -> None:
    """Import what replicas need to make spans before they are forked: a copy of their own would cost each 2 MB."""
    if is_asked_for(settings):
        with contextlib.suppress(Exception):  # each replica says what is wrong
            importlib.import_module(_SPANS)
            if not settings.tracing_exporter:
                for name in _names():
                    _found(name)


def close(timeout_s: float = FLUSH_FOR_S) -> None:
    """Make no more spans, and send those that are left; what takes longer than ``timeout_s`` is lost."""
    spans, switch.spans = switch.spans, None
    if spans is None or not spans.is_own:
        return
    ending = threading.Thread(target=spans.provider.shutdown, name="qserve-spans", daemon=True)
    try:
        ending.start()
    except RuntimeError:  # the interpreter is ending, and starts no more threads
        spans.provider.shutdown()
    else:
        ending.join(timeout_s)


def _users_provider() -> Any:
    """Return the provider of a program that has one of its own."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    return provider if hasattr(provider, "add_span_processor") else None


def _provider(settings: Settings, source: str) -> Any:
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    ratio = settings.tracing_sampling_ratio
    sampler = None if ratio is None else ParentBased(TraceIdRatioBased(ratio))
    about = {"service.instance.id": source}
    if not (os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")):
        about["service.name"] = "qserve"
    provider = TracerProvider(sampler, Resource.create(about), shutdown_on_exit=False)
    for processor in _processors(settings):
        provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)  # for the spans of user code
    return provider


def _processors(settings: Settings) -> list[Any]:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    if settings.tracing_exporter:
        module, _, name = settings.tracing_exporter.replace(":", ".").rpartition(".")
        made = getattr(importlib.import_module(module), name)()
        found = made if isinstance(made, list | tuple) else [made]
    else:
        found = [_found(name)() for name in _names()]
    return [BatchSpanProcessor(one) if isinstance(one, SpanExporter) else one for one in found]


def _names() -> list[str]:
    names = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    return [name.strip() for name in names.split(",") if name.strip().lower() not in ("", "none")]


def _found(name: str) -> Any:
    """Return the class of an exporter by its standard name."""
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        name = _PROTOCOLS.get(protocol or "http/protobuf", protocol or "")
    for found in entry_points(group=_GROUP, name=name):
        return found.load()
    known = ", ".join(sorted(found.name for found in entry_points(group=_GROUP)))
    raise LookupError(f"OTEL_TRACES_EXPORTER names {name!r}, and there are only: {known}")
