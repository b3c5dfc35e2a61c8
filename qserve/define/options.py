"""The options of a deployment: validated once, frozen, changed only by ``merged``."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, Field, field_validator, model_validator

from qserve.base import unused
from qserve.base.log import STANDARD_ATTRIBUTES
from qserve.base.nearest import did_you_mean
from qserve.graph.containers import DEPTH_LIMIT, is_deep

_BY_LOAD = tuple(
    f"{package}.autoscaling_policy:{name}"
    for package in ("ray.serve", "qserve")
    for name in ("default_autoscaling_policy", "replica_queue_length_autoscaling_policy")
)
"""The paths of Ray Serve's own policy, which scales by load."""


def _path_of(given: Any, option: str, what: str) -> str:
    """Return ``module:function`` for code that is given itself, or by its path."""
    path = f"{given.__module__}:{given.__qualname__}" if hasattr(given, "__qualname__") else given
    if not isinstance(path, str) or (path and not re.fullmatch(r"[\w.]*\w[:.]\w[\w.]*", path)):
        raise ValueError(f'{option} must be "module:function", or {what} that a module defines, not {path!r}')
    return path if ":" in path or not path else ":".join(path.rpartition(".")[::2])


class AutoscalingPolicy(BaseModel, frozen=True, extra="forbid"):
    """Code of yours that decides how many replicas are wanted, in the place of the load.

    Parameters:
      policy_function: ``"module:function"``, or a function or class that a module defines; "" for the load.
      policy_kwargs: Arguments for the function, or for the constructor of the class.

    Example:
      from qserve.config import AutoscalingPolicy

      policy = AutoscalingPolicy(policy_function="rules:by_hour", policy_kwargs={"peak": 8})
    """

    policy_function: str = ""
    policy_kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("policy_function", mode="before")
    @classmethod
    def _path(cls, given: Any) -> Any:
        path = _path_of(given, "policy_function", "a function or class")
        return "" if path.startswith(_BY_LOAD) else path

    @field_validator("policy_kwargs")
    @classmethod
    def _sendable(cls, given: dict[str, Any]) -> dict[str, Any]:
        _check_json(given, "policy_kwargs")
        return given


class AutoscalingConfig(BaseModel, frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False):
    """How the number of replicas follows the load.

    Parameters:
      min_replicas: The fewest replicas, which run without load; with 0, the first call starts one.
      initial_replicas: The number at first; None for ``min_replicas``, and at least one.
      max_replicas: The most replicas.
      target_ongoing_requests: How many waiting and running calls each replica is wanted for; its older name is
        ``target_num_ongoing_requests_per_replica``.
      look_back_period_s: The load of so many seconds counts before a replica is taken away.
      upscale_delay_s, downscale_delay_s: For so many seconds the load must ask for more, or for fewer.
      downscale_to_zero_delay_s: The same for the last replica; None for ``downscale_delay_s``.
      upscaling_factor, downscaling_factor: The part of the way that one step takes to what the load asks for; None
        for what the older names say.
      smoothing_factor, upscale_smoothing_factor, downscale_smoothing_factor: Older names of these; the first is for
        both directions.
      aggregation_function: The load of some time is the mean, the highest or the lowest one.
      policy: Code that decides instead of the load.
      metrics_interval_s: Without effect: the load is read from the broker when it is needed.

    Raises:
      ValueError: A number is out of range, or two contradict each other (``pydantic.ValidationError``).

    Example:
      from qserve.config import AutoscalingConfig

      config = AutoscalingConfig(min_replicas=0, max_replicas=8, upscale_delay_s=0)
      Scaled = Greeter.options(autoscaling_config=config)
    """

    min_replicas: int = Field(default=1, ge=0)
    initial_replicas: int | None = Field(default=None, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=2.0, gt=0, alias="target_num_ongoing_requests_per_replica")
    metrics_interval_s: float = Field(default=10.0, gt=0)
    look_back_period_s: float = Field(default=30.0, gt=0)
    upscale_delay_s: float = Field(default=30.0, ge=0)
    downscale_delay_s: float = Field(default=600.0, ge=0)
    downscale_to_zero_delay_s: float | None = Field(default=None, ge=0)
    smoothing_factor: float = Field(default=1.0, gt=0)
    upscale_smoothing_factor: float | None = Field(default=None, gt=0)
    downscale_smoothing_factor: float | None = Field(default=None, gt=0)
    upscaling_factor: float | None = Field(default=None, gt=0)
    downscaling_factor: float | None = Field(default=None, gt=0)
    aggregation_function: Literal["mean", "max", "min"] = "mean"
    policy: AutoscalingPolicy | None = None

    @field_validator("policy", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"policy_function": given} if callable(given) or isinstance(given, str) else given

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) must be at least min_replicas ({self.min_replicas})")
        start = self.initial_replicas
        if start is not None and not self.min_replicas <= start <= self.max_replicas:
            raise ValueError(
                f"initial_replicas ({start}) must lie between min_replicas "
                f"({self.min_replicas}) and max_replicas ({self.max_replicas})"
            )
        return self


class BackpressureConfig(BaseModel, frozen=True, extra="forbid"):
    """How a call is refused when a deployment's queue is full.

    Parameters:
      status_code: The status of the response, when nothing handles the error.
      retry_after_s: The seconds of its ``Retry-After``, rounded up; None for as long as the oldest call has waited.

    Example:
      from qserve.config import BackpressureConfig

      Busy = Greeter.options(max_queued_requests=10, backpressure_config=BackpressureConfig(status_code=429))
    """

    status_code: Literal[503, 429] = 503
    retry_after_s: float | None = Field(default=None, ge=0)


class LoggingConfig(BaseModel, frozen=True, extra="forbid"):
    """The logs of replicas; what is not given is as ``QSERVE_LOG_LEVEL`` and ``QSERVE_LOG_FORMAT`` of the worker say.

    Parameters:
      encoding: ``JSON`` for one object a line.
      log_level: The lowest level that is logged: a name or a number of Python's ``logging``.
      logs_dir: A folder on each worker's host for files beside the standard error. Each is renamed when it has 16 MiB.
      enable_access_log: Whether a line is logged for each call; without this only if it is asked for.
      additional_log_standard_attrs: Attributes of Python's ``LogRecord`` that each JSON object has besides.

    Raises:
      ValueError: There is no such level, or no such attribute (``pydantic.ValidationError``).

    Example:
      from qserve.schema import LoggingConfig

      Logged = Greeter.options(logging_config=LoggingConfig(encoding="JSON", log_level="DEBUG"))
    """

    encoding: Literal["TEXT", "JSON"] = "TEXT"
    log_level: int | str = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: list[str] = Field(default_factory=list)

    @field_validator("log_level")
    @classmethod
    def _level(cls, given: int | str) -> int | str:
        if isinstance(given, str) and given.upper() not in logging.getLevelNamesMapping():
            raise ValueError(f"{given!r} is not a level, such as INFO")
        return given

    @field_validator("additional_log_standard_attrs")
    @classmethod
    def _known(cls, given: list[str]) -> list[str]:
        for name in given:
            if name not in STANDARD_ATTRIBUTES:
                hint = did_you_mean(name, STANDARD_ATTRIBUTES)
                raise ValueError(f"{name!r} is not an attribute of logging.LogRecord. {hint}".rstrip())
        return given

    @classmethod
    def of(cls, given: Any) -> LoggingConfig | None:
        """Return the same from a dict, from an object with these attributes, or from None."""
        if given is None or isinstance(given, cls):
            return given
        return cls(**(given if isinstance(given, Mapping) else vars(given)))

    @property
    def given(self) -> dict[str, Any]:
        """What was set."""
        return self.model_dump(exclude_unset=True)

    @property
    def variables(self) -> dict[str, str]:
        """The variables that say the same to the processes of qserve, by what was set."""
        number = logging.getLevelNamesMapping().get(str(self.log_level).upper(), self.log_level)
        level = next((name for least, name in _LEVELS if isinstance(number, int) and number >= least), "debug")
        found = {
            "log_level": ("QSERVE_LOG_LEVEL", level),
            "encoding": ("QSERVE_LOG_FORMAT", self.encoding.lower()),
            "enable_access_log": ("QSERVE_ACCESS_LOG", str(int(self.enable_access_log))),
        }
        return dict(variable for key, variable in found.items() if key in self.model_fields_set)


_LEVELS = ((40, "error"), (30, "warning"), (20, "info"))


class ActorOptions(BaseModel, frozen=True, extra="allow"):
    """The keys of ``ray_actor_options`` that say what a replica takes of its host, and how it is started."""

    num_cpus: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    num_gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    memory: int = Field(default=0, ge=0)
    resources: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    accelerator_type: str | None = None
    label_selector: dict[str, str] = Field(default_factory=dict)
    runtime_env: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _checked(self) -> ActorOptions:
        gpus = self.num_gpus
        if gpus > 1 and gpus % 1:
            raise ValueError(f"num_gpus ({gpus:g}) must be a whole number, or a part of one GPU")
        if 0 < gpus < 0.01:
            raise ValueError(f"num_gpus ({gpus:g}) must be 0, or at least 0.01")
        check_runtime_env(self.runtime_env)
        return self


def check_runtime_env(given: Mapping[str, Any]) -> None:
    """Raise ValueError for a ``runtime_env`` with a key that there is not, or variables that cannot be set."""
    known = {*unused.RUNTIME_ENV, "env_vars"}
    for key in given:
        if key not in known:
            raise ValueError(f"{key!r} is not a key of runtime_env. {did_you_mean(str(key), known)}".rstrip())
    variables = given.get("env_vars") or {}
    if not isinstance(variables, dict) or not all(isinstance(part, str) for one in variables.items() for part in one):
        raise ValueError('env_vars of runtime_env must be a dict of text by text, such as {"MODE": "fast"}')
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"env_vars of runtime_env: {name!r} cannot be set to {value!r}")


class DeploymentOptions(BaseModel, frozen=True, extra="forbid"):
    """Every option of a deployment, with its default.

    Those in ``qserve.base.unused`` are accepted and validated, and have no effect: a warning names them.

    Parameters:
      name: The deployment's name; None takes the class's or function's own.
      num_replicas: Number of replicas over all hosts; ``"auto"`` for an ``AutoscalingConfig`` with up to 100.
      autoscaling_config: How the number of replicas follows the load; None for a fixed number.
      max_concurrent_queries, max_ongoing_requests: Calls that one replica runs at a time, under two names. A ``def``
        runs one at a time.
      max_queued_requests: Calls that may wait in the queue; -1 sets no limit.
      backpressure_config: How a call is refused when the queue is full.
      user_config: JSON value that ``reconfigure`` is called with, at the start and when it changes.
      route_prefix: URL path of the ingress, such as ``"/shop"``.
      request_timeout_s: Seconds that a request may take; None takes ``QSERVE_REQUEST_TIMEOUT_S``.
      cancel_on_disconnect: Whether a request is cancelled when its HTTP client closes the connection.
      use_new_handle_api: Set on the ingress: the handles that constructors of its application get take one await.
      max_retries: How often a call that raised is run again.
      retry_on: Exception classes (or their names) that are retried; None retries all.
      retry_backoff_s: Seconds before the first retry; they double with each, and vary by half.
      max_execution_s: Seconds that one call may run; a replica stuck in a longer one is replaced. None for any time.
      preload: ``"module:function"``, or a function that a module defines: it is run once on each host before the
        replicas there are forked, which share what it returns, as ``get_replica_context().preloaded``.
      max_requests: After so many calls a replica is replaced, or after up to a quarter more, so that not all are
        replaced together; None for never.
      max_memory_mb: A replica that uses more than so many MiB is replaced; None for no limit.
      graceful_shutdown_timeout_s: Seconds that a stopping replica may take to finish its calls.
      health_check_period_s, health_check_timeout_s: Seconds between two ``check_health`` calls, and that one may take.
      logging_config: The logs of the replicas, a ``LoggingConfig`` or a dict.
      ray_actor_options: What a replica takes of its host (``num_cpus``, ``num_gpus``, ``memory``, ``resources``), where
        it may run (``label_selector``, ``accelerator_type``), and its variables (``runtime_env``).
      max_replicas_per_node: Replicas that one host may run; None for any number.
      max_surge_percent: How many replicas there may be beyond those that are wanted while a new version comes up, in
        percent; None for as many as there is room for.
      max_constructor_retry_count: A deploy fails after so many failed starts, or after three for each replica.
      version: Replicas with the same version are kept when an application is run again.
      init_args, init_kwargs: Arguments for a ``bind()`` without any.

    Raises:
      TypeError: A value has the wrong type, or an option does not exist.
      ValueError: A value is out of range (``pydantic.ValidationError`` for malformed numbers).
    """

    name: str | None = None
    num_replicas: int = Field(default=1, ge=0)
    user_config: Any = None
    max_concurrent_queries: int = 100
    max_queued_requests: int = -1
    ray_actor_options: dict[str, Any] | None = None
    autoscaling_config: AutoscalingConfig | None = None
    graceful_shutdown_timeout_s: float = Field(default=20.0, ge=0)
    graceful_shutdown_wait_loop_s: float = Field(default=2.0, ge=0)
    health_check_period_s: float = Field(default=10.0, gt=0)
    health_check_timeout_s: float = Field(default=30.0, gt=0)
    version: str | None = None
    init_args: tuple[Any, ...] = ()
    init_kwargs: dict[str, Any] = Field(default_factory=dict)
    route_prefix: str | None = None
    request_timeout_s: float | None = None
    cancel_on_disconnect: bool = True
    max_execution_s: float | None = Field(default=None, gt=0)
    max_retries: int = Field(default=0, ge=0)
    retry_on: tuple[Any, ...] | None = None
    retry_backoff_s: float = Field(default=0.1, gt=0)
    max_constructor_retry_count: int = Field(default=20, ge=0)
    logging_config: LoggingConfig | None = None
    backpressure_config: BackpressureConfig = BackpressureConfig()
    placement_group_bundles: list[dict[str, Any]] | None = None
    placement_group_strategy: str | None = None
    placement_group_bundle_label_selector: list[dict[str, Any]] | None = None
    max_replicas_per_node: int | None = Field(default=None, ge=1, le=100)
    max_surge_percent: float | None = Field(default=None, ge=0, le=100)
    preload: str | None = None
    max_requests: int | None = Field(default=None, ge=1)
    max_memory_mb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    use_new_handle_api: bool = False

    @field_validator("preload", mode="before")
    @classmethod
    def _path(cls, given: Any) -> Any:
        return _path_of(given, "preload", "a function") or None if given is not None else None

    def __init__(self, /, **given: Any) -> None:
        check_known(given, given.get("name"))
        super().__init__(**_prepared(given))
        self._check_ranges()
        for key in self.ray_actor_options or ():
            check_key(key, unused.ACTOR_OPTIONS, "a key of ray_actor_options")
        self.actor_options  # noqa: B018 - it is checked when it is made

    @cached_property
    def actor_options(self) -> ActorOptions:
        """The ``ray_actor_options`` with their defaults."""
        given = {key: value for key, value in (self.ray_actor_options or {}).items() if value is not None}
        return ActorOptions.model_validate(given)

    @property
    def max_ongoing_requests(self) -> int:
        """The newer name of ``max_concurrent_queries``."""
        return self.max_concurrent_queries

    def merged(self, /, **changes: Any) -> DeploymentOptions:
        """Return a copy with some options changed.

        A fixed ``num_replicas`` replaces autoscaling, and the other way round. ``None`` resets an option that cannot be
        ``None`` to its default.

        Raises:
          TypeError: As on construction.
          ValueError: As on construction.
        """
        kept = {option: getattr(self, option) for option in self.model_fields_set}
        if changes.get("num_replicas") is not None:
            kept.pop("autoscaling_config", None)
        if changes.get("autoscaling_config") is not None:
            kept.pop("num_replicas", None)
        if "max_ongoing_requests" in changes:
            kept.pop("max_concurrent_queries", None)
        return DeploymentOptions(**{**kept, **changes})

    def _check_ranges(self) -> None:
        calls, queued, timeout_s = self.max_concurrent_queries, self.max_queued_requests, self.request_timeout_s
        prefix = "/" if self.route_prefix is None else self.route_prefix
        for is_wrong, message in (
            (self.num_replicas == 0, "num_replicas is expected to larger than 0"),
            (calls < 1, f"max_concurrent_queries (max_ongoing_requests) is expected to be larger than 0, got {calls}"),
            (queued < 1 and queued != -1, f"max_queued_requests must be -1 (no limit) or at least 1, got {queued}"),
            (
                timeout_s is not None and timeout_s <= 0,
                f"request_timeout_s must be larger than 0, or None for the application's default, got {timeout_s}",
            ),
            (not prefix.startswith("/"), f"route_prefix must start with '/'. Got {prefix!r}."),
            (
                prefix != "/" and prefix.endswith("/"),
                f"route_prefix must not end with '/' unless it's the root. Got {prefix!r}.",
            ),
            ("{" in prefix or "}" in prefix, f"route_prefix may not contain wildcards. Got {prefix!r}."),
            (
                prefix.startswith("/-/"),
                f"route_prefix must not be below /-/, where the gateway has its own pages. Got {prefix!r}.",
            ),
            (
                not {*"?#%"}.isdisjoint(prefix),
                f"route_prefix is a path without a query, and without escapes such as %20. Got {prefix!r}.",
            ),
        ):
            if is_wrong:
                raise ValueError(message)


class Options(TypedDict, total=False):
    """The same options as keyword arguments, for type checkers; ``DeploymentOptions`` describes them."""

    name: str | None
    num_replicas: int | Literal["auto"] | None
    user_config: Any
    max_concurrent_queries: int | None
    max_ongoing_requests: int | None
    max_queued_requests: int | None
    ray_actor_options: dict[str, Any] | None
    autoscaling_config: AutoscalingConfig | Mapping[str, Any] | None
    graceful_shutdown_timeout_s: float | None
    graceful_shutdown_wait_loop_s: float | None
    health_check_period_s: float | None
    health_check_timeout_s: float | None
    version: str | None
    init_args: tuple[Any, ...] | list[Any]
    init_kwargs: dict[str, Any] | None
    route_prefix: str | None
    request_timeout_s: float | None
    cancel_on_disconnect: bool | None
    max_execution_s: float | None
    max_retries: int | None
    retry_on: tuple[type[BaseException] | str, ...] | list[type[BaseException] | str] | None
    retry_backoff_s: float | None
    max_constructor_retry_count: int | None
    logging_config: LoggingConfig | Mapping[str, Any] | None
    backpressure_config: BackpressureConfig | Mapping[str, Any] | None
    placement_group_bundles: list[dict[str, Any]] | None
    placement_group_strategy: str | None
    placement_group_bundle_label_selector: list[dict[str, Any]] | None
    max_replicas_per_node: int | None
    max_surge_percent: float | None
    preload: str | Callable[[], Any] | None
    max_requests: int | None
    max_memory_mb: float | None
    use_new_handle_api: bool | None


_DEFAULT_BY_NONE = frozenset(
    option for option, field in DeploymentOptions.model_fields.items() if field.default is not None
)


def check_known(given: Iterable[str], owner: str | None) -> None:
    """Raise TypeError for an option of a deployment that does not exist, and suggest the closest one that does.

    For one of Ray Serve's it says why there is none.
    """
    what = f"an option of deployment {owner!r}" if owner else "an option of a deployment"
    for option in given:
        if option in unused.FILE_DEPLOYMENT:
            raise TypeError(f"{option!r} is not {what}: {unused.FILE_DEPLOYMENT[option]}")
        check_key(option, Options.__annotations__, what)


def check_key(key: Any, known: Iterable[str], what: str) -> None:
    """Raise TypeError for a key that does not exist, and suggest the closest one that does."""
    if key not in known:
        raise TypeError(f"{key!r} is not {what}. {did_you_mean(str(key), known)}".rstrip())


_KINDS: tuple[tuple[str, type | tuple[type, ...], str], ...] = (
    ("name", str, "a string"),
    ("version", str, "a string"),
    ("init_args", (tuple, list), "a tuple"),
    ("init_kwargs", dict, "a dict"),
    ("ray_actor_options", dict, "a dict"),
    ("route_prefix", str, "a string"),
)


def _prepared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Apply the rules that the type of a field cannot express."""
    options = {option: value for option, value in given.items() if value is not None or option not in _DEFAULT_BY_NONE}
    newer = options.pop("max_ongoing_requests", None)
    if newer is not None and options.setdefault("max_concurrent_queries", newer) != newer:
        raise ValueError(
            "max_ongoing_requests and max_concurrent_queries are one option under two names; give only one of them"
        )
    scaling = options.get("autoscaling_config")
    if options.get("num_replicas") == "auto":
        del options["num_replicas"]
        if isinstance(scaling, AutoscalingConfig):
            scaling = scaling.model_dump(exclude_unset=True)
        if scaling is None or isinstance(scaling, Mapping):
            options["autoscaling_config"] = {"max_replicas": 100, **(scaling or {})}
    elif scaling is not None and "num_replicas" in options:
        raise ValueError(
            "num_replicas and autoscaling_config cannot be given together; "
            "leave num_replicas out, or write num_replicas='auto'"
        )
    for option, kind, words in _KINDS:
        value = options.get(option)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{option} must be {words}, got {type(value).__name__} {value!r}")
    if options.get("name") == "":
        raise ValueError("name must not be empty")
    _check_json(options.get("user_config"), "user_config")
    return options


def _check_json(value: Any, what: str) -> None:
    try:
        if is_deep([value]):
            raise ValueError(f"it is nested too deeply; the limit is {DEPTH_LIMIT} lists and dicts inside one another")
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is not JSON-serializable: {error}") from error
