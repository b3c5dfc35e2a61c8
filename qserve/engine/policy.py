"""The user's scaling policy: it is made and asked here, in a process that may hang or end with it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

from qserve.base.entry import own_context
from qserve.base.forks import end_if_child
from qserve.base.tracebacks import one_line
from qserve.wire.application import Scaling

STATE_LIMIT = 64 * 1024
"""How long the state of a policy may be, as JSON: it is stored for each deployment and read in each round."""


class TimeStampedValue(NamedTuple):
    """A number that a replica has reported, and when: in seconds since 1970."""

    timestamp: float
    value: float


class DeploymentID(NamedTuple):
    """A deployment, as Ray Serve's policies have it."""

    name: str
    app_name: str


@dataclass(frozen=True)
class AutoscalingContext:
    """What a scaling policy is told of its deployment; the names are Ray Serve's.

    Parameters:
      deployment_name, app_name: The deployment, and its application.
      current_num_replicas, target_num_replicas: How many are wanted now; those that start are among them.
      running_replicas: The names of those that run.
      total_num_requests: Waiting and running calls, aggregated over the look-back.
      total_queued_requests, total_running_requests: Those that wait, and those that run.
      oldest_request_age_s: For how long the oldest of those that wait has waited now.
      aggregated_metrics: What each replica's ``record_autoscaling_stats`` has returned, aggregated over the look-back:
        ``{"queued": {"Model-a-1": 3.0}}``.
      raw_metrics: The same as a list of ``TimeStampedValue``; empty if there are over 2,000 of them.
      policy_state: What the policy returned last; it survives the process.
      last_scale_up_time, last_scale_down_time, current_time: In seconds since 1970; None when this leader has done
        neither.
      capacity_adjusted_min_replicas, capacity_adjusted_max_replicas: Between these the count will be.
      config: The deployment's ``autoscaling_config``, with all defaults.

    Example:
      from typing import Any

      from qserve.config import AutoscalingContext

      def by_age(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
          more = context.oldest_request_age_s > 5
          return context.target_num_replicas + more, context.policy_state

      print(by_age(AutoscalingContext("Model", "default", 1, 2, oldest_request_age_s=6.0))[0])  # 3
    """

    deployment_name: str
    app_name: str
    current_num_replicas: int
    target_num_replicas: int
    running_replicas: Sequence[str] = ()
    total_num_requests: float = 0.0
    total_queued_requests: float = 0.0
    total_running_requests: float = 0.0
    oldest_request_age_s: float = 0.0
    aggregated_metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    raw_metrics: Mapping[str, Mapping[str, Sequence[TimeStampedValue]]] = field(default_factory=dict)
    policy_state: dict[str, Any] = field(default_factory=dict)
    last_scale_up_time: float | None = None
    last_scale_down_time: float | None = None
    current_time: float = 0.0
    capacity_adjusted_min_replicas: int = 0
    capacity_adjusted_max_replicas: int = 0
    config: Scaling = field(default_factory=Scaling)

    @property
    def deployment_id(self) -> DeploymentID:
        """The names of the deployment and of its application."""
        return DeploymentID(self.deployment_name, self.app_name)


class Policy:
    """A scaling policy of the user's: a function, or an object of a class whose constructor takes the arguments.

    Parameters:
      code: What ``policy_function`` leads to.
      arguments: Its ``policy_kwargs``.

    Raises:
      TypeError: It cannot be called.
      BaseException: What the constructor raises.
    """

    def __init__(self, code: Any, arguments: Mapping[str, Any]) -> None:
        if not callable(code):
            raise TypeError(f"a scaling policy must be a function or a class, not {type(code).__name__}")
        found = _entered(partial(code, **arguments)) if inspect.isclass(code) else partial(code, **arguments)
        if not callable(found):
            raise TypeError(f"the scaling policy {code.__qualname__} needs a method __call__(self, context)")
        self._call: Callable[[AutoscalingContext], Any] = found

    def ask(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Return how many replicas it asks for, and its state for the next time.

        Raises:
          TypeError: It returns something else.
          ValueError: The number is not finite, or the state is longer than ``STATE_LIMIT`` as JSON.
          BaseException: What it raises.
        """
        found = _entered(partial(self._call, context))
        if inspect.iscoroutine(found):
            found.close()
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict | None)):
            raise TypeError(f"a scaling policy must return (number, dict), not {type(found).__name__}")
        if isinstance(found[0], bool | str | bytes) or not hasattr(found[0], "__float__"):
            raise TypeError(f"the number of replicas must be a number, not {type(found[0]).__name__}")
        count, state = float(found[0]), found[1] or {}
        if not isfinite(count):
            raise ValueError(f"the number of replicas must be finite, not {count}")
        size = len(json.dumps(state, allow_nan=False))
        if size > STATE_LIMIT:
            raise ValueError(
                f"the state of the scaling policy has {size:,} bytes as JSON; the limit is {STATE_LIMIT:,}"
            )
        return count, state

    def answer(self, told: bytes) -> bytes:
        """Do what ``ask`` does, with JSON: return ``{"count", "state"}``, or ``{"error"}`` with one line."""
        try:
            fields = json.loads(told)
            fields["raw_metrics"] = {
                metric: {replica: [TimeStampedValue(*one) for one in values] for replica, values in of.items()}
                for metric, of in fields.get("raw_metrics", {}).items()
            }
            count, state = self.ask(AutoscalingContext(**{**fields, "config": Scaling(**fields.get("config", {}))}))
        except BaseException as error:
            return json.dumps({"error": one_line(error)}).encode()
        return json.dumps({"count": count, "state": state}).encode()


def _entered(call: Callable[[], Any]) -> Any:
    """Call user code in its own context."""
    try:
        found = own_context().run(call)
    except BaseException as error:
        end_if_child(error)
        raise
    end_if_child(None)
    return found
