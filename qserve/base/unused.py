"""Options and names of Ray Serve that have no effect here: they are accepted, and one warning names them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from qserve.base.log import get_logger

log: Final = get_logger(__name__)
_RESERVED = "the gateway's processes use what is free on their host"
_PLACED = "each replica is placed by itself, on a host with the resources and labels of `ray_actor_options`"

DEPLOYMENT: Mapping[str, str] = {
    "autoscaling_config.metrics_interval_s": "the load is read from the broker, four times a second",
    "graceful_shutdown_wait_loop_s": "a replica ends as soon as its calls have ended",
    "placement_group_bundle_label_selector": _PLACED,
    "placement_group_bundles": _PLACED,
    "placement_group_strategy": _PLACED,
}
"""Options of a deployment, with the reason."""
ACTOR: Mapping[str, str] = {
    "fallback_strategy": "a replica waits for a host that matches its `label_selector`",
    "object_store_memory": "there is no object store: the broker holds what travels",
}
"""Keys of ``ray_actor_options``."""
ACTOR_OPTIONS = frozenset((
    "accelerator_type", "fallback_strategy", "label_selector", "memory", "num_cpus", "num_gpus", "object_store_memory",
    "resources", "runtime_env",
))  # fmt: skip
"""The keys of ``ray_actor_options``; another one is refused."""
RUNTIME_ENV: Mapping[str, str] = dict.fromkeys(
    (
        "conda", "config", "container", "excludes", "image_uri", "java_jars", "mpi", "nsight", "pip", "py_executable",
        "py_modules", "rocprof_sys", "uv", "worker_process_setup_hook", "working_dir",
    ),
    "replicas use the packages and the files of their worker",
)  # fmt: skip
"""The keys of a ``runtime_env`` but for ``env_vars``; another one is refused."""
_LATE = "it is read before: set it where the worker is started"
TOO_LATE = ("LD_", "MALLOC_", "PYTHON", "QSERVE_")
"""Begin the names of variables that are read before a replica has those of its ``env_vars``."""
START: Mapping[str, str] = {
    "dedicated_cpu": _RESERVED,
    "detached": "what a program has started ends with it: `qserve run module:node` goes on without it",
    "grpc_options": "there is no gRPC: call a deployment by a handle or over HTTP",
    "proxy_location": "there is one gateway: `qserve gateway` starts more of them, on any host",
}
"""Arguments of ``start``."""
OF_REPLICAS = "it is for the logs of replicas: give it to `run`"
INIT = (
    "`init` only says that Ray Serve's programs may go on: `serve.run` starts what is needed on this host, and"
    " `serve.connect(url)` calls what runs elsewhere"
)
HTTP: Mapping[str, str] = {
    "keep_alive_timeout_s": "a connection without requests ends after a few seconds",
    "location": START["proxy_location"],
    "num_cpus": _RESERVED,
    "root_path": "give `serve.run` a route_prefix",
    "root_url": "it is made from what the client sends",
    "ssl_ca_certs": "put a proxy that ends TLS in front of the gateway",
    "ssl_certfile": "put a proxy that ends TLS in front of the gateway",
    "ssl_keyfile": "put a proxy that ends TLS in front of the gateway",
    "ssl_keyfile_password": "put a proxy that ends TLS in front of the gateway",
}
"""Keys of ``http_options``."""
ADDRESS = "it is for `qserve run FILE`; `qserve gateway` has its own --host and --port"
TRACING = "it is for `qserve run FILE`; gateways and workers that run elsewhere have QSERVE_TRACING and OTEL_..."
FILE: Mapping[str, str] = {
    "controller_options": "there is no controller",
    "grpc_options": START["grpc_options"],
    "proxy_location": START["proxy_location"],
}
"""Keys of a config file."""
FILE_APPLICATION: Mapping[str, str] = {
    "autoscaling_policy": "each deployment has its own: `policy` of its autoscaling_config",
}
"""Keys of an application in such a file."""
FILE_DEPLOYMENT: Mapping[str, str] = {
    "deployment_actors": "there are no actors: make it a deployment",
    "gang_scheduling_config": _PLACED,
    "request_router_config": "all replicas of a deployment take calls from one queue",
    "rolling_update_percentage": "as many replicas are replaced at once as max_surge_percent says",
}
"""Keys of a deployment in such a file that are refused in code; the others are those of ``DEPLOYMENT``."""
TASKS: Mapping[str, str] = {
    "task_custom_config": "a task that raised is tried again as max_retries of TaskProcessorConfig says",
    "worker_concurrency": "tasks run as other calls do, max_ongoing_requests of the deployment in each replica",
}
"""Keys of a ``CeleryAdapterConfig``."""
LOCAL_HANDLES: Mapping[str, str] = {
    "trace": "there is no broker that keeps traces",
    "webhook": "there is no gateway that sends webhooks",
}
"""Options of handles in local mode."""
LOCAL = "in local mode user code runs in this process, which stays as it is"
_NO_TASKS = "there are no tasks and actors: make it a deployment, whose methods are called by a handle"
_NO_CLUSTER = "there is no cluster to ask: `qserve status` shows what runs"
_OLD = "it belongs to the API of Ray Serve 1: bind deployments, and pass the root to `run`"
NAMES: Mapping[str, str] = {
    **dict.fromkeys(("actor", "get_actor", "kill", "method", "remote"), _NO_TASKS),
    **dict.fromkeys(
        ("available_resources", "cluster_resources", "get_runtime_context", "nodes", "timeline"), _NO_CLUSTER
    ),
    **dict.fromkeys(("get_deployment", "list_deployments"), _OLD),
    "metrics": "import it, as in Ray Serve: `from qserve.metrics import Counter, Gauge, Histogram`",
    "util": "there is no `util`",
}
"""Names of Ray, and of Ray Serve, that the plain renaming reaches and that are not here, each with advice."""


def warn(owner: str, given: Iterable[str], reasons: Mapping[str, str] | str) -> None:
    """Log one warning that names all that was given without effect, each with the reason.

    Parameters:
      owner: Whose these are: "deployment 'Model'".
      given: Names; those without a reason are left out.
      reasons: By name, or one for all.
    """
    if isinstance(reasons, str):
        reasons = dict.fromkeys(given := list(given), reasons)
    named = [f"{name} ({reasons[name]})" for name in given if name in reasons]
    if named:
        log.warning("%s: these options have no effect: %s", owner, "; ".join(named))


def warn_of_runtime_env(owner: str, given: Mapping[str, Any]) -> None:
    """Name what a ``runtime_env`` says without effect."""
    late = {f"env_vars.{name}": _LATE for name in given.get("env_vars") or () if name.startswith(TOO_LATE)}
    warn(f"runtime_env of {owner}", [*filter(given.get, given), *late], {**RUNTIME_ENV, **late})


def warn_of_environment() -> None:
    """Name the variables of Ray Serve that are set."""
    warn("environment", sorted(name for name in os.environ if name.startswith("RAY_SERVE_")), "qserve's are QSERVE_...")
