"""The options of a deployment: validated once, frozen, changed only by ``merged``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FROZEN = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class AutoscalingConfig(BaseModel):
    """Limits and goals for scaling a deployment by load. Accepted and validated, and not used yet."""

    model_config = _FROZEN

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
    policy: Any = None

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


class BackpressureConfig(BaseModel):
    """The gateway's response when a deployment's queue is full. Accepted and validated, and not used yet."""

    model_config = _FROZEN

    status_code: Literal[503, 429] = 503
    retry_after_s: float | None = Field(default=None, ge=0)


class DeploymentOptions(BaseModel):
    """Every option of a deployment, with its default.

    Accepted and validated, and not used yet: ``autoscaling_config`` (and ``num_replicas="auto"``),
    ``backpressure_config``, ``ray_actor_options``, ``logging_config``, ``graceful_shutdown_wait_loop_s``,
    ``max_constructor_retry_count``, ``max_replicas_per_node`` and the three about placement groups.

    Parameters:
      name: The deployment's name; ``None`` takes the class's or function's own.
      num_replicas: Number of replicas over all hosts.
      user_config: JSON value that ``reconfigure`` is called with.
      max_concurrent_queries: Calls that one replica runs at a time; also ``max_ongoing_requests``.
      max_queued_requests: Calls that may wait in the queue; -1 sets no limit.
      graceful_shutdown_timeout_s: How long a stopping replica may finish its calls.
      health_check_period_s, health_check_timeout_s: Time between two ``check_health`` calls, and how long one may take.
      version: Replicas with the same version are kept when an application is run again.
      init_args, init_kwargs: Arguments for a ``bind()`` without any.
      route_prefix: Path of the ingress; ``route_prefix_is_set`` distinguishes ``None`` from unset.
      request_timeout_s: Seconds a request may take; ``None`` takes the application's default.
      max_execution_s: Seconds one call may run; a replica stuck in a longer one is replaced.
      max_retries: How often a call that raised is run again.
      retry_on: Exception classes (or their names) that are retried; ``None`` retries all.
      retry_backoff_s: Wait before the first retry; it doubles with each, and varies by half.

    Raises:
      TypeError: A value has the wrong type, or an option does not exist.
      ValueError: A value is out of range (``pydantic.ValidationError`` for malformed numbers).
    """

    model_config = _FROZEN

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
    max_execution_s: float | None = Field(default=None, gt=0)
    max_retries: int = Field(default=0, ge=0)
    retry_on: tuple[Any, ...] | None = None
    retry_backoff_s: float = Field(default=0.1, gt=0)
    max_constructor_retry_count: int = Field(default=20, ge=0)
    logging_config: dict[str, Any] | None = None
    backpressure_config: BackpressureConfig = BackpressureConfig()
    placement_group_bundles: list[dict[str, Any]] | None = None
    placement_group_strategy: str | None = None
    placement_group_bundle_label_selector: list[dict[str, Any]] | None = None
    max_replicas_per_node: int | None = Field(default=None, ge=1, le=100)

    def __init__(self, **given: Any) -> None:
        check_known(given, given.get("name"))
        super().__init__(**_prepared(given))
        self._check_ranges()

    @property
    def max_ongoing_requests(self) -> int:
        """The newer name of ``max_concurrent_queries``."""
        return self.max_concurrent_queries

    @property
    def route_prefix_is_set(self) -> bool:
        """True when a route prefix was given, even ``None``."""
        return "route_prefix" in self.model_fields_set

    def merged(self, **changes: Any) -> DeploymentOptions:
        """Return a copy with some options changed.

        A fixed ``num_replicas`` replaces autoscaling, and the other way round. ``None`` resets an option that cannot be
        ``None`` to its default.

        Raises:
          TypeError: As on construction.
          ValueError: As on construction.
        """
        check_known(changes, self.name)
        kept = {option: getattr(self, option) for option in self.model_fields_set}
        if changes.get("num_replicas") is not None:
            kept.pop("autoscaling_config", None)
        if changes.get("autoscaling_config") is not None:
            kept.pop("num_replicas", None)
        if "max_ongoing_requests" in changes:
            kept.pop("max_concurrent_queries", None)
        return DeploymentOptions(**{**kept, **changes})

    def _check_ranges(self) -> None:
        if self.num_replicas == 0:
            raise ValueError("num_replicas is expected to larger than 0")
        if self.max_concurrent_queries < 1:
            raise ValueError(
                "max_concurrent_queries (max_ongoing_requests) is expected to be larger than 0, "
                f"got {self.max_concurrent_queries}"
            )
        if self.max_queued_requests != -1 and self.max_queued_requests < 1:
            raise ValueError(f"max_queued_requests must be -1 (no limit) or at least 1, got {self.max_queued_requests}")
        if self.request_timeout_s is not None and self.request_timeout_s <= 0:
            raise ValueError(
                "request_timeout_s must be larger than 0, or None for the application's default, "
                f"got {self.request_timeout_s}"
            )
        if self.route_prefix is not None:
            check_route_prefix(self.route_prefix)


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
    max_execution_s: float | None
    max_retries: int | None
    retry_on: tuple[type[BaseException] | str, ...] | list[type[BaseException] | str] | None
    retry_backoff_s: float | None
    max_constructor_retry_count: int | None
    logging_config: dict[str, Any] | None
    backpressure_config: BackpressureConfig | Mapping[str, Any] | None
    placement_group_bundles: list[dict[str, Any]] | None
    placement_group_strategy: str | None
    placement_group_bundle_label_selector: list[dict[str, Any]] | None
    max_replicas_per_node: int | None


KNOWN_OPTIONS = frozenset(DeploymentOptions.model_fields) | {"max_ongoing_requests"}

_DEFAULT_BY_NONE = frozenset(
    option for option, field in DeploymentOptions.model_fields.items() if field.default is not None
)


def check_known(given: Iterable[str], owner: str | None) -> None:
    """Raise TypeError for an option that does not exist; the message suggests the closest known one.

    Parameters:
      owner: The deployment's name, for the message.
    """
    for option in given:
        if option in KNOWN_OPTIONS:
            continue
        close = difflib.get_close_matches(option, KNOWN_OPTIONS, n=1)
        advice = f" Did you mean {close[0]!r}?" if close else ""
        subject = f"deployment {owner!r}" if owner else "a deployment"
        raise TypeError(f"{option!r} is not an option of {subject}.{advice}")


def check_route_prefix(prefix: str) -> None:
    """Raise ValueError for a route prefix that does not start with a slash, ends with one, or holds wildcards."""
    if not prefix.startswith("/"):
        raise ValueError(f"route_prefix must start with '/'. Got {prefix!r}.")
    if prefix != "/" and prefix.endswith("/"):
        raise ValueError(f"route_prefix must not end with '/' unless it's the root. Got {prefix!r}.")
    if "{" in prefix or "}" in prefix:
        raise ValueError(f"route_prefix may not contain wildcards. Got {prefix!r}.")


def _prepared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Apply the rules that the type of a field cannot express."""
    options = {option: value for option, value in given.items() if value is not None or option not in _DEFAULT_BY_NONE}
    if "max_ongoing_requests" in options:
        _merge_alias(options)
    if options.get("autoscaling_config") is not None or options.get("num_replicas") == "auto":
        _settle_scaling(options)
    _check_kinds(options)
    if "user_config" in options:
        _check_json(options["user_config"])
    return options


def _merge_alias(options: dict[str, Any]) -> None:
    newer = options.pop("max_ongoing_requests")
    if newer is None:
        return
    if options.setdefault("max_concurrent_queries", newer) != newer:
        raise ValueError(
            "max_ongoing_requests and max_concurrent_queries are one option under two names; give only one of them"
        )


def _settle_scaling(options: dict[str, Any]) -> None:
    scaling = options.get("autoscaling_config")
    if options.get("num_replicas") == "auto":
        if isinstance(scaling, AutoscalingConfig):
            scaling = scaling.model_dump(exclude_unset=True)
        if scaling is None or isinstance(scaling, Mapping):
            options["autoscaling_config"] = {"max_replicas": 100, **(scaling or {})}
    elif options.get("num_replicas") is not None:
        raise ValueError(
            "num_replicas and autoscaling_config cannot be given together; "
            "leave num_replicas out, or write num_replicas='auto'"
        )
    options.pop("num_replicas", None)


def _check_kinds(options: Mapping[str, Any]) -> None:
    for option, kind, words in (
        ("name", str, "a string"),
        ("version", str, "a string"),
        ("init_args", (tuple, list), "a tuple"),
        ("init_kwargs", dict, "a dict"),
        ("ray_actor_options", dict, "a dict"),
        ("route_prefix", str, "a string"),
    ):
        value = options.get(option)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{option} must be {words}, got {type(value).__name__} {value!r}")
    if options.get("name") == "":
        raise ValueError("name must not be empty")


def _check_json(user_config: Any) -> None:
    try:
        json.dumps(user_config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"user_config is not JSON-serializable: {error}") from error
