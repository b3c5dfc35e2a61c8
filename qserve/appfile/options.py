"""Reads the options of a deployment from its record, and tells where each one was set."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from qserve.wire.application import DeploymentRecord, Scaling

_OTHER_NAMES = {"max_ongoing_requests": "max_concurrent_queries"}


def options_of(record: DeploymentRecord) -> dict[str, Any]:
    """Return a deployment's options by their names in code; nested options are called ``part.name``."""
    resources, scaling = record.resources, record.scaling
    return {
        "version": record.version or None,
        "num_replicas": record.num_replicas if scaling is None else None,
        "max_ongoing_requests": record.max_ongoing,
        "max_queued_requests": record.max_queued,
        "user_config": record.user_config_value,
        **({} if scaling is None else _of_scaling(scaling)),
        "backpressure_config.status_code": record.full_status,
        "backpressure_config.retry_after_s": record.full_retry_after_s,
        "graceful_shutdown_timeout_s": record.grace_s,
        "health_check_period_s": record.health_period_s,
        "health_check_timeout_s": record.health_timeout_s,
        "max_execution_s": record.max_execution_s,
        "max_constructor_retry_count": record.constructor_retries,
        "max_retries": record.max_retries,
        "retry_on": record.retry_on,
        "retry_backoff_s": record.retry_backoff_s,
        "max_replicas_per_node": resources.per_host,
        "max_surge_percent": record.surge,
        "preload": record.preload or None,
        "max_requests": record.max_requests,
        "max_memory_mb": None if record.max_memory is None else record.max_memory / (1 << 20),
        "ray_actor_options.num_cpus": resources.cpus,
        "ray_actor_options.num_gpus": resources.gpus,
        "ray_actor_options.memory": resources.memory,
        "ray_actor_options.resources": resources.other,
        "ray_actor_options.label_selector": resources.labels,
        "ray_actor_options.runtime_env.env_vars": record.env,
        **{f"logging_config.{name}": value for name, value in record.logging.items()},
    }


def _of_scaling(scaling: Scaling) -> dict[str, Any]:
    policy = {"policy.policy_function": scaling.policy, "policy.policy_kwargs": scaling.policy_arguments}
    plain = {name: value for name, value in vars(scaling).items() if not name.startswith("policy")}
    return {f"autoscaling_config.{name}": value for name, value in {**plain, **policy}.items()}


_DEFAULTS = options_of(DeploymentRecord("", scaling=Scaling())) | options_of(DeploymentRecord(""))


def is_default(option: str, value: Any) -> bool:
    """Return whether an option has its default value."""
    return bool(_DEFAULTS.get(option) == value)


def options_to_write(record: DeploymentRecord) -> dict[str, Any]:
    """Return the number of replicas, and all options that differ from their defaults, as a file has them."""
    found: dict[str, Any] = {}
    for option, value in options_of(record).items():
        if value is not None and option not in _ONLY_IN_CODE and (not is_default(option, value) or option in _ALWAYS):
            *parts, name = option.split(".")
            inside = found
            for part in parts:
                inside = inside.setdefault(part, {})
            inside[name] = value
    return found


_ALWAYS = ("num_replicas", "autoscaling_config.max_replicas")
_ONLY_IN_CODE = ("version",)


def origins(
    record: DeploymentRecord, in_file: Mapping[str, Any], in_code: Collection[str], where: Mapping[str, str]
) -> Iterator[tuple[str, Any, str]]:
    """Yield each option with its value and its origin: the place in the file, ``code`` or ``default``.

    Parameters:
      in_file: The options that the file gives.
      in_code: The names of those that the code sets.
      where: The place of each of ``in_file``.
    """
    for option, value in options_of(record).items():
        names = [name for name in _names(option, in_file) if name in in_file]
        if names:
            inside = in_file[names[0]]
            _, _, rest = option.partition(".")
            is_given = not rest or not isinstance(inside, dict) or rest.partition(".")[0] in inside
            yield option, value, where[names[0]] if is_given else "default"
        else:
            is_of_code = any(name in in_code for name in _names(option, in_file))
            yield option, value, "code" if is_of_code else "default"


def _names(option: str, in_file: Mapping[str, Any]) -> list[str]:
    """Return the names under which an option may be set."""
    name = option.partition(".")[0]
    by_auto = ["num_replicas"] if name == "autoscaling_config" and in_file.get("num_replicas") == "auto" else []
    return [name, *filter(None, [_OTHER_NAMES.get(name)]), *by_auto]
