"""What is registered of an application: routes, plans and options, and no user code."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import msgpack

from qserve.base.keys import Keys
from qserve.exceptions import PayloadError
from qserve.graph.plan import Plan
from qserve.wire.plan import Template, load_plan


@dataclass(frozen=True)
class DeploymentRecord:
    """What callers and supervisors must know of one deployment.

    Parameters:
      num_replicas: Wanted replicas over all hosts.
      max_ongoing: Calls that run in one replica at the same time.
      max_queued: Calls that may wait; -1 for no limit.
      grace_s: How long a stopping replica may finish what it runs.
      health_period_s, health_timeout_s: When ``check_health`` is called, and how long it may take.
      user_config: Passed to ``reconfigure``, as JSON; "" when there is none.
      max_execution_s: How long one call may run; None for as long as its deadline.
      max_retries, retry_on, retry_backoff_s: Which errors are worth another try, how often, and after what wait.
      replicated: False for a driver whose work the gateway does.
    """

    name: str
    num_replicas: int = 1
    max_ongoing: int = 100
    max_queued: int = -1
    grace_s: float = 20.0
    health_period_s: float = 10.0
    health_timeout_s: float = 30.0
    user_config: str = ""
    max_execution_s: float | None = None
    max_retries: int = 0
    retry_on: list[str] | None = None
    retry_backoff_s: float = 0.1
    replicated: bool = True

    @property
    def config(self) -> str:
        """Names the user_config: replicas report which one they have taken."""
        return hashlib.sha256(self.user_config.encode()).hexdigest()[:12] if self.user_config else ""


@dataclass(frozen=True)
class DriverRecord:
    """How the gateway acts as the application's DAGDriver.

    Parameters:
      adapter: Name of a built-in adapter, or "" when user code adapts on a replica of the driver.
      routes: The graphs' names in their order; None when there is a single graph.
      direct: Graphs that are one deployment, with its name: a call by handle passes all its arguments on.
    """

    adapter: str = ""
    routes: tuple[str, ...] | None = None
    direct: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ApplicationRecord:
    """One application: routes, plans and options; no user code.

    Parameters:
      version: Changes with every deploy.
      target: ``module:node`` that replicas import; "" when code travels by value.
      code_digest: Of all that a change of ``user_config`` or ``num_replicas`` leaves as it is.
      route_prefix: None when it has no HTTP.
      graphs: Plans by name, as ``wire.plan`` writes them.
    """

    name: str
    version: str
    ingress: str
    route_prefix: str | None = "/"
    target: str = ""
    code_digest: str = ""
    timeout_s: float | None = None
    deployments: dict[str, DeploymentRecord] = field(default_factory=dict)
    graphs: dict[str, Any] = field(default_factory=dict)
    driver: DriverRecord | None = None

    def stream(self, keys: Keys, deployment: str) -> str:
        """The queue of one deployment; each version has its own, so that versions never mix."""
        return keys.stream(self.name, self.version, deployment)

    def encode(self) -> bytes:
        """The record as msgpack."""
        return msgpack.packb(asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> ApplicationRecord:
        """Read what ``encode`` wrote; raises PayloadError for anything else."""
        try:
            parts = msgpack.unpackb(data)
            driver = parts.pop("driver")
            deployments = {name: DeploymentRecord(**one) for name, one in parts.pop("deployments").items()}
            if driver:
                routes = driver.pop("routes")
                driver = DriverRecord(**driver, routes=None if routes is None else tuple(routes))
            graphs = dict(parts.pop("graphs"))
            return cls(**parts, graphs=graphs, deployments=deployments, driver=driver or None)
        except Exception as error:
            raise PayloadError(f"an application's record cannot be read: {type(error).__name__}: {error}") from error

    @cached_property
    def plans(self) -> dict[str, tuple[Plan, tuple[Template, ...]]]:
        """The graphs, ready to run: plan and argument templates by name."""
        return {name: load_plan(parts) for name, parts in self.graphs.items()}
