"""The one table of names: what each name of Ray Serve is in qserve, what has no counterpart, and advice for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from qserve.base import unused


class Names(NamedTuple):
    """Names that move from one module to another.

    Parameters:
      ray, qserve: The modules, without their packages; "" is the package itself.
      names: Those that are the same in both, and ``OLD=NEW`` for those that are not.
    """

    ray: str
    qserve: str
    names: str = ""


_SERVE = (
    "Application Deployment RunTarget batch build delete deployment get_app_handle get_deployment_handle"
    " get_multiplexed_model_id get_replica_context get_trace_context ingress multiplexed run run_many shutdown"
    " shutdown_async start status"
)
_HANDLES = (
    "DeploymentHandle DeploymentResponse DeploymentResponseGenerator HandleOptions RayServeDAGHandle"
    " RayServeDeploymentHandle RayServeHandle RayServeLazySyncHandle RayServeSyncHandle"
)
_NODES = "DAGNode InputAttributeNode InputNode"
_METRICS = "Counter Gauge Histogram"
TABLE: tuple[Names, ...] = (
    Names("serve", "", _SERVE),
    Names("", "", "ObjectRef cancel get init is_initialized put shutdown wait"),
    Names("serve.drivers", "drivers", "DAGDriver"),
    Names(
        "serve.http_adapters",
        "http_adapters",
        "NdArray image_to_ndarray json_request json_to_multi_ndarray json_to_ndarray pandas_read_json"
        " starlette_request",
    ),
    Names("dag", "dag", _NODES),
    Names("dag.input_node", "dag.input_node", "InputAttributeNode InputNode"),
    Names("dag.vis_utils", "dag", "_dag_to_dot=dag_to_dot plot"),
    Names(
        "serve.deployment_graph",
        "deployment_graph",
        "ClassMethodNode ClassNode DAGNode FunctionNode InputAttributeNode InputNode MethodNode RayServeDAGHandle",
    ),
    Names("dag", "deployment_graph", "ClassMethodNode ClassNode FunctionNode"),
    Names("serve.dag", "dag", _NODES),
    Names("serve.handle", "handle", _HANDLES),
    Names(
        "serve.exceptions",
        "exceptions",
        "BackPressureError DeploymentUnavailableError RayServeException RequestCancelledError",
    ),
    Names(
        "exceptions",
        "exceptions",
        "GetTimeoutError RayTaskError RayActorError=ReplicaLost RayError=QserveException"
        " TaskCancelledError=RequestCancelledError",
    ),
    Names(
        "serve.config",
        "config",
        "AggregationFunction AutoscalingConfig AutoscalingContext AutoscalingPolicy BackpressureConfig HTTPOptions"
        " ProxyLocation",
    ),
    Names(
        "serve.schema",
        "schema",
        "ApplicationStatus ApplicationStatusOverview CeleryAdapterConfig DeploymentStatus DeploymentStatusOverview"
        " DeploymentStatusTrigger LoggingConfig ServeStatus TaskProcessorConfig TaskResult",
    ),
    Names("serve.task_consumer", "task_consumer", "instantiate_adapter_from_config task_consumer task_handler"),
    Names(
        "serve.task_processor",
        "task_processor",
        "AsyncCapability CeleryTaskProcessorAdapter TaskProcessorAdapter",
    ),
    Names("serve.context", "context", "_serve_request_context"),
    Names("serve.metrics", "metrics", _METRICS),
    Names("util.metrics", "metrics", _METRICS),
    Names("serve.api", "", _SERVE),
    Names("serve.batching", "", "batch"),
    Names("serve.deployment", "", "Application Deployment"),
    Names("serve.drivers", "", "DAGDriver"),
    Names("serve", "config", "HTTPOptions"),
    Names("serve.schema", "task_processor", "TaskProcessorAdapter"),
    Names("dag", "dag", "plot"),
    Names("dag", "", "InputNode"),
)
"""Where a name has several counterparts, in either direction, the first is written."""
ALWAYS = {"ray.serve", "qserve"}
"""Modules that move as a whole: what they lack in the other package is listed, and they are not imported twice."""


class Advice(NamedTuple):
    """Why something cannot be moved: a code to search for, and what to write instead."""

    code: str
    text: str


_NO_TASKS = Advice("actors", unused.NAMES["remote"])
_NO_CLUSTER = Advice("cluster", unused.NAMES["nodes"])
_OLD = Advice("old-api", unused.NAMES["get_deployment"])
_PLACEMENT = Advice("placement", unused.DEPLOYMENT["placement_group_bundles"])
_PRIVATE = Advice("private", "it is a private part of Ray: do without it, or with a public name")
_GRPC = Advice("grpc", unused.START["grpc_options"])
_DATA = Advice(
    "library", "qserve only serves: keep this part on Ray, in a program of its own that calls the HTTP address"
)
_JAVA = Advice("java", "there are no languages but Python: call the other program over HTTP")
LEFT: Mapping[str, Advice] = {
    **dict.fromkeys(
        ("ray.remote", "ray.actor", "ray.method", "ray.kill", "ray.get_actor", "ray.util.queue"), _NO_TASKS
    ),
    **dict.fromkeys(("ray.util.ActorPool", "ray.util.actor_pool", "ray.util.multiprocessing"), _NO_TASKS),
    **dict.fromkeys(
        (
            *("ray.nodes", "ray.cluster_resources", "ray.available_resources", "ray.timeline", "ray.runtime_context"),
            *("ray.get_runtime_context", "ray.util.state", "ray.autoscaler", "ray.cluster_utils", "ray.job_submission"),
        ),
        _NO_CLUSTER,
    ),
    **dict.fromkeys(
        ("ray.get_gpu_ids", "ray.get_tpu_ids"),
        Advice("gpu", "a replica sees the GPUs that it was given: read CUDA_VISIBLE_DEVICES"),
    ),
    **dict.fromkeys(("ray.util.placement_group", "ray.util.scheduling_strategies"), _PLACEMENT),
    **dict.fromkeys(
        ("ray.data", "ray.train", "ray.tune", "ray.rllib", "ray.air", "ray.workflow", "ray.llm", "ray.serve.llm"), _DATA
    ),
    "ray.serve.air_integrations": _DATA,
    **dict.fromkeys(("ray.java_function", "ray.java_actor_class", "ray.cross_language", "ray.Language"), _JAVA),
    **dict.fromkeys(
        ("ray.dashboard", "ray.widgets"),
        Advice("dashboard", "the live page of `qserve run` is at /-/ui; see `qserve top`"),
    ),
    "ray.runtime_env": Advice("runtime-env", unused.RUNTIME_ENV["pip"]),
    **dict.fromkeys(("ray.client", "ray.util.connect"), Advice("address", unused.INIT)),
    "ray._raylet": Advice("private", "for ObjectRef write qserve.ObjectRef; the rest is a private part of Ray"),
    **dict.fromkeys(("ray._private", "ray.core", "ray.serve._private", "ray.serve.generated"), _PRIVATE),
    **dict.fromkeys(("ray.serve.multiplex", "ray.serve.api._private", "ray.serve.utils"), _PRIVATE),
    "ray.serve.context": Advice(
        "private", "of the context only _serve_request_context is there; for the replica call get_replica_context()"
    ),
    **dict.fromkeys(("ray.serve.get_deployment", "ray.serve.list_deployments", "ray.serve.connect"), _OLD),
    **dict.fromkeys(
        (
            *("ray.serve.drivers.DefaultgRPCDriver", "ray.serve.drivers.gRPCIngress", "ray.serve.config.gRPCOptions"),
            *("ray.serve.grpc_util", "ray.serve.schema.gRPCOptionsSchema"),
        ),
        _GRPC,
    ),
    **dict.fromkeys(
        ("ray.serve.gradio_integrations", "ray.serve.experimental"),
        Advice("gradio", "serve Gradio beside it: mount it in a FastAPI application, and give that to serve.ingress"),
    ),
    **dict.fromkeys(
        ("ray.serve.request_router", "ray.serve.config.RequestRouterConfig"),
        Advice("router", unused.FILE_DEPLOYMENT["request_router_config"]),
    ),
    "ray.serve.schema": Advice("schema", "`qserve config --schema` prints the format of config files"),
    **dict.fromkeys(
        ("ray.exceptions.ActorDiedError", "ray.exceptions.WorkerCrashedError", "ray.exceptions.ActorUnavailableError"),
        Advice("error", "qserve.exceptions.ReplicaLost is what a caller gets when replicas die"),
    ),
    **dict.fromkeys(
        ("ray.exceptions.ObjectLostError", "ray.exceptions.OwnerDiedError"),
        Advice("error", "qserve.exceptions.ValueLost is what a caller gets when a stored value is gone"),
    ),
}
"""What cannot be moved, with advice; it also holds for all that is below such a name."""
NO_ADVICE = Advice("", "")
UNKNOWN = Advice("unknown", "qserve has nothing of that name: see docs/ray-parity.md")
REBOUND = Advice("rebound", "the name is bound in another way too: move this by hand")
AS_VALUE = Advice(
    "as-value", "the module itself is passed on, and what is done with it cannot be seen: move this by hand"
)
IN_TEXT = Advice("in-text", "this text may name something that moves: look at it")
STAR = Advice("star", "name what you import: what a * brings in cannot be followed")

CALLS: Mapping[str, Mapping[str, Advice]] = {
    "qserve.init": {
        "address": Advice("address", unused.INIT),
        "namespace": Advice(
            "address", "an installation has a namespace: QSERVE_NAMESPACE, or serve.connect(namespace=...)"
        ),
        "runtime_env": Advice("runtime-env", unused.RUNTIME_ENV["pip"]),
    },
    "qserve.start": {
        "detached": Advice("detached", unused.START["detached"]),
        "grpc_options": _GRPC,
    },
    "qserve.deployment": {
        **dict.fromkeys(
            ("placement_group_bundles", "placement_group_strategy", "placement_group_bundle_label_selector"), _PLACEMENT
        ),
        "is_driver_deployment": _PLACEMENT,
        **{key: Advice("option", why) for key, why in unused.FILE_DEPLOYMENT.items()},
    },
}
"""Arguments that have no effect here although the call itself moves, by the function that is called."""
ACTOR_OPTIONS = {key: Advice("option", why) for key, why in unused.ACTOR.items()}
RUNTIME_ENV = {key: Advice("runtime-env", why) for key, why in unused.RUNTIME_ENV.items()}
QSERVE_ONLY = Advice("qserve-only", "Ray Serve has nothing like it")
OWN: Mapping[str, Advice] = {
    "qserve.Client": Advice("qserve-only", "Ray Serve has no clients: call its HTTP address"),
    "qserve.connect": Advice("qserve-only", "Ray Serve has no clients: ray.init(address=...) joins a cluster"),
    "qserve.get_ref": Advice("qserve-only", "in Ray a result is not fetched by its ID: keep the response"),
    "qserve.get_request_context": Advice("qserve-only", "use ray.serve.context._serve_request_context.get()"),
    "qserve.submit_many": Advice("qserve-only", "call the handle once for each"),
    **dict.fromkeys(
        (*("qserve.Event", "qserve.accepted", "qserve.call_context", "qserve.progress", "qserve.report_progress"),),
        QSERVE_ONLY,
    ),
}
"""What qserve alone has."""
_OPTIONS = dict.fromkeys(
    (
        *("cancel_on_disconnect", "max_execution_s", "max_memory_mb", "max_requests", "max_retries", "preload"),
        *("request_timeout_s", "retry_backoff_s", "retry_on"),
    ),
    QSERVE_ONLY,
)
OWN_CALLS: Mapping[str, Mapping[str, Advice | str]] = {
    "qserve.deployment": _OPTIONS,
    "qserve.run": {"request_timeout_s": QSERVE_ONLY, "local": "_local_testing_mode"},
}
"""Arguments that qserve alone has, and those that have another name in Ray Serve."""
DISTINCTIVE = {*CALLS["qserve.deployment"], *_OPTIONS, "ray_actor_options"} - {"request_timeout_s"}
"""Arguments that make a call of ``options`` one of a deployment, and not of a handle."""
