"""Whether a process makes spans, where they go, and that its end waits for them, but not for ever."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from qserve.base.settings import Settings
from qserve.tracing import start as tracing
from qserve.tracing.switch import switch

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a provider that another test has set, and leaving none."""
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", lambda provider: None)
    monkeypatch.setattr(tracing, "_users_provider", lambda: None)
    yield
    switch.spans = None


@pytest.mark.parametrize(
    ("setting", "env", "asked"),
    [
        ("auto", {}, False),
        ("auto", ENDPOINT, True),
        ("auto", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
        ("auto", {"OTEL_TRACES_EXPORTER": "console"}, True),
        ("auto", {"OTEL_TRACES_EXPORTER": "none", **ENDPOINT}, False),
        ("auto", {"OTEL_SDK_DISABLED": "true", **ENDPOINT}, False),
        ("auto", {"OTEL_SERVICE_NAME": "shop"}, False),
        ("on", {}, True),
        ("on", {"OTEL_SDK_DISABLED": "TRUE"}, False),
        ("off", ENDPOINT, False),
    ],
)
def test_spans_are_made_if_the_setting_or_the_standard_variables_ask_for_it(
    setting: str, env: dict[str, str], asked: bool
) -> None:
    assert tracing.is_asked_for(Settings(tracing=setting), env) is asked


@pytest.mark.slow
def test_a_process_that_is_not_asked_imports_nothing_of_opentelemetry() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "qserve_workers", "--help"]
    imports = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "qserve_workers.process.boot" in imports
    assert "opentelemetry" not in imports


class Kept(InMemorySpanExporter):  # type: ignore[misc]
    """Where the spans of this test go."""

    made: list[Any] = []

    def __init__(self) -> None:
        super().__init__()
        self.made.append(self)


def exporter() -> Any:
    return Kept()


def test_the_end_of_a_process_sends_what_is_left_and_names_the_process() -> None:
    tracing.start(Settings(tracing="on", tracing_exporter="test_span_export:exporter"), "Model-1")
    assert switch.spans is not None
    switch.spans.served(switch.spans.serve("GET", None, {}), False)
    kept = Kept.made[-1]
    assert not kept.get_finished_spans()  # they leave together, five seconds later
    tracing.close(timeout_s=60)
    (span,) = kept.get_finished_spans()
    about = span.resource.attributes
    assert (about["service.name"], about["service.instance.id"]) == ("qserve", "Model-1")
    assert switch.spans is None


class Stuck(SpanProcessor):  # type: ignore[misc]
    """Never comes back from its end."""

    def shutdown(self) -> None:
        threading.Event().wait()


def stuck() -> Any:
    return [Stuck()]


def test_a_collector_that_hangs_does_not_hold_up_the_end_of_a_process() -> None:
    tracing.start(Settings(tracing="on", tracing_exporter="test_span_export.stuck"), "Model-1")
    tracing.close(timeout_s=0.01)
    assert switch.spans is None


def test_the_ratio_is_the_share_of_the_traces_that_begin_here() -> None:
    settings = Settings(tracing="on", tracing_exporter="test_span_export:exporter", tracing_sampling_ratio=0.0)
    tracing.start(settings, "Model-1")
    assert switch.spans is not None
    assert not switch.spans.serve("GET", None, {}).get_span_context().trace_flags.sampled
    tracing.close(timeout_s=60)


@pytest.mark.parametrize(
    ("settings", "env", "told"),
    [
        (Settings(tracing="on", tracing_exporter="no_such_module:exporter"), {}, "no_such_module"),
        (Settings(tracing="on", tracing_exporter="test_span_export:nothing"), {}, "nothing"),
        (Settings(), {"OTEL_TRACES_EXPORTER": "jaeger"}, "jaeger"),
    ],
)
def test_what_cannot_be_started_is_told_and_the_process_goes_on_without_spans(
    settings: Settings,
    env: dict[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.ERROR, "qserve"):
        tracing.start(settings, "Model-1")
    assert switch.spans is None
    assert told in caplog.text


def test_without_opentelemetry_a_process_says_how_to_install_it() -> None:
    program = """
import logging, sys
sys.modules["opentelemetry"] = None
logging.basicConfig()
import qserve
from qserve.base.settings import Settings
from qserve.tracing.start import start
from qserve.tracing.switch import switch
start(Settings(tracing="on"), "Model-1")
assert switch.spans is None and qserve.get_trace_context() is None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'qserve-celery[otel]'" in done.stderr
