"""The table of the metrics that qserve has itself; code, documentation, dashboard and alert rules are held to it."""

from __future__ import annotations

from collections.abc import Iterator

from qserve.wire.totals import Description, Kind

LATENCY_MS = (
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0),
    *(60_000.0, 120_000.0, 300_000.0, 600_000.0),
)
"""Ray Serve's buckets, in milliseconds."""
FINE_MS = (0.1, 0.2, 0.5, *LATENCY_MS)
"""For what usually takes less than a millisecond."""
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
PERCENT = (5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 100.0)

GATEWAY, REPLICA, SUPERVISOR, BROKER = "gateway", "replica", "supervisor", "broker"
SOURCES = {
    GATEWAY: "counted by the processes of a gateway, and added up by the first of them",
    REPLICA: "counted by replicas, and added up by their supervisor",
    SUPERVISOR: "counted by the supervisor of a host",
    BROKER: "read from the broker when a gateway is scraped, at most once a second",
}
_DEPLOYMENT = ("application", "deployment")
_CALL = (*_DEPLOYMENT, "route")
_EACH_REPLICA = (*_DEPLOYMENT, "replica")
_HTTP = ("route", "method", "application", "status_code")
_HTTP_ERROR = ("route", "method", "application", "error_code")
_STORE = ("store",)
_FUNCTION = (*_DEPLOYMENT, "function_name")
C, G, H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
_MS = LATENCY_MS

SERVE = "serve_"
"""Names that begin so are Ray Serve's."""

_ROWS: dict[str, list[Description]] = {
    GATEWAY: [
        Description("serve_num_http_requests", C, "HTTP requests", _HTTP),
        Description("serve_num_http_error_requests", C, "HTTP requests with status 400 or higher", _HTTP_ERROR),
        Description(
            "serve_http_request_latency_ms", H, "from the head of a request to the end of its response, in ms",
            _HTTP, LATENCY_MS,
        ),
        Description("webhook_tries", C, "webhooks that were delivered, are tried again or are given up", ("outcome",)),
        Description("serve_num_ongoing_http_requests", G, "HTTP requests in flight", ("route",)),
    ],
    REPLICA: [
        Description("serve_deployment_request_counter", C, "calls that user code has returned from", _CALL),
        Description("serve_deployment_error_counter", C, "calls whose code raised", (*_CALL, "exception_type")),
        Description("serve_deployment_processing_latency_ms", H, "time in user code, in ms", _CALL, _MS),
        Description("serve_replica_processing_queries", G, "calls that a replica runs", _EACH_REPLICA),
        Description("serve_replica_startup_latency_ms", H, "time until it takes calls, in ms", _DEPLOYMENT, _MS),
        Description("serve_replica_initialization_latency_ms", H, "time in constructors, in ms", _DEPLOYMENT, _MS),
        Description("serve_replica_reconfigure_latency_ms", H, "time in `reconfigure`, in ms", _DEPLOYMENT, _MS),
        Description("serve_health_check_latency_ms", H, "time in `check_health`, in ms", _DEPLOYMENT, _MS),
        Description("serve_health_check_failures", C, "health checks that failed", _DEPLOYMENT),
        Description("serve_batch_wait_time_ms", H, "time until a batch began, in ms", _FUNCTION, _MS),
        Description("serve_batch_execution_time_ms", H, "time of batches, in ms", _FUNCTION, _MS),
        Description("serve_actual_batch_size", H, "items of a batch", _FUNCTION, SIZES),
        Description("serve_batch_utilization_percent", H, "items in % of max_batch_size", _FUNCTION, PERCENT),
        Description("serve_batches_processed", C, "batches", _FUNCTION),
        Description("serve_multiplexed_model_load_latency_ms", H, "time of loading a model, in ms", _FUNCTION, _MS),
        Description("serve_multiplexed_models_load_counter", C, "models that were loaded", _FUNCTION),
        Description("serve_multiplexed_models_unload_counter", C, "models that were evicted", _FUNCTION),
        Description("serve_multiplexed_get_model_requests_counter", C, "calls that asked for a model", _FUNCTION),
        Description("serve_num_multiplexed_models", G, "models in a replica", _EACH_REPLICA),
        Description(
            "serve_registered_multiplexed_model_id", G, "1 for each model in a replica", (*_EACH_REPLICA, "model_id")
        ),
        Description(
            "serve_event_loop_scheduling_latency_ms", H, "how late a replica's event loop is, in ms; sampled",
            _DEPLOYMENT, FINE_MS,
        ),
        Description("queue_wait_ms", H, "time in the queue until a call began, in ms", _DEPLOYMENT, _MS),
        Description("broker_commit_latency_ms", H, "time of commits by the broker, in ms", _DEPLOYMENT, FINE_MS),
        Description("requests_final", C, "requests that have ended", ("application", "state")),
        Description("deadline_exceeded", C, "requests that ended at their deadline", ("application",)),
        Description("retries", C, "calls that are tried again, because their code raised", _DEPLOYMENT),
        Description("calls_dead_lettered", C, "calls that became dead letters", (*_DEPLOYMENT, "reason")),
        Description("payload_fallbacks", C, "large values that a store had no room for", ("store",)),
        Description("stream_backlog", G, "items that a replica has sent and no reader has taken", _EACH_REPLICA),
    ],
    SUPERVISOR: [
        Description("serve_deployment_replica_starts", C, "replicas that were started", _DEPLOYMENT),
        Description("replica_deaths", C, "replicas that ended without being stopped", _DEPLOYMENT),
        Description("replica_recycles", C, "replicas that were replaced, by the option", (*_DEPLOYMENT, "reason")),
        Description("takeovers", C, "calls of dead or lost replicas that were handed over", _DEPLOYMENT),
        Description("worker_replicas", G, "replicas that run on the host", _DEPLOYMENT),
        Description("payload_values", G, "large values that are stored, as one worker of a host sees them", _STORE),
        Description("payload_bytes", G, "memory or space that they take, with what is kept for the next ones", _STORE),
        Description("payload_oldest_seconds", G, "since when the oldest of them has been there", _STORE),
    ],
    BROKER: [
        Description("broker_up", G, "1 if the broker answers within a second"),
        Description("broker_used_bytes", G, "memory that the broker uses"),
        Description("broker_limit_bytes", G, "memory that the broker may use; 0 without a limit"),
        Description("broker_clients", G, "connections of the broker"),
        Description("queue_depth", G, "calls that wait in the queue", _DEPLOYMENT),
        Description("serve_deployment_queued_queries", G, "the same, by Ray Serve's name", _DEPLOYMENT),
        Description("queue_oldest_age_seconds", G, "for how long the oldest of them has waited", _DEPLOYMENT),
        Description("calls_running", G, "calls that replicas hold", _DEPLOYMENT),
        Description("delayed_calls", G, "calls that wait for another try or for a result", _DEPLOYMENT),
        Description("dead_letters", G, "dead letters that are kept"),
        Description("serve_deployment_replica_healthy", G, "1 for each replica that runs", _EACH_REPLICA),
        Description("serve_autoscaling_target_replicas", G, "replicas that it is to have", _DEPLOYMENT),
        Description("serve_autoscaling_total_requests", G, "calls that wait or run", _DEPLOYMENT),
        Description("replicas_running", G, "replicas that run", _DEPLOYMENT),
    ],
}  # fmt: skip

SOURCE = {about.name: source for source, rows in _ROWS.items() for about in rows}
"""The source of each metric."""
TABLE = {about.name: about for rows in _ROWS.values() for about in rows}
"""Each metric by its name."""


def lines() -> Iterator[str]:
    """Yield the table as the documentation has it, in Markdown."""
    yield "| metric | kind | labels | what it tells |"
    yield "| --- | --- | --- | --- |"
    for source, rows in _ROWS.items():
        yield f"| **{source}** | | | {SOURCES[source]} |"
        for about in rows:
            suffix = "_total" if about.kind is C else ""
            labels = ", ".join(f"`{label}`" for label in about.labels)
            yield f"| `{about.name}{suffix}` | {about.kind} | {labels} | {about.help} |"
