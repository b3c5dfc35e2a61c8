"""What a stack consists of: the services of its deployments, and what all of them share."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from qserve.wire.application import ApplicationRecord, DeploymentRecord

BROKER, GATEWAY, DEPLOY = "broker", "gateway", "deploy"
_LONGEST_NAME = 30
_MARGIN_BYTES = 128 << 20
"""What a container takes beside its replicas: the supervisor."""
_STOP_MARGIN_S = 10
_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Service:
    """The containers of one deployment.

    Parameters:
      name: Lower-case letters, digits and hyphens.
      containers: How many there are at first.
      replicas: How many replicas each has.
      is_scaled: Whether somebody else says how many there are: ``external_scaler_enabled``.
    """

    name: str
    app: str
    deployment: DeploymentRecord
    containers: int
    replicas: int = 1
    is_scaled: bool = False

    @property
    def stop_s(self) -> int:
        """How many seconds a container may take to stop: longer than its calls may take to finish."""
        return math.ceil(self.deployment.grace_s) + _STOP_MARGIN_S

    @property
    def gpus(self) -> int:
        """How many GPUs a container needs."""
        return math.ceil(self.deployment.resources.gpus * self.replicas)

    @property
    def memory_mib(self) -> int:
        """The memory limit of a container in MiB; 0 when the code does not say."""
        memory = self.deployment.resources.memory
        return math.ceil((memory * self.replicas + _MARGIN_BYTES) / (1 << 20)) if memory else 0

    @property
    def cpus(self) -> float:
        """How many processors a container may use; 0 when the code does not say."""
        return (self.deployment.resources.cpus or 0.0) * self.replicas

    @property
    def is_spread(self) -> bool:
        """Whether no two of its containers may be on one host."""
        return self.deployment.resources.per_host == 1

    def ignored(self, *, in_cluster: bool) -> list[str]:
        """Return the options that nothing obeys in a stack.

        Parameters:
          in_cluster: Whether the stack is for Kubernetes, and not for docker compose, which has one host.
        """
        takes, count = self.deployment.resources, self.containers * self.replicas
        is_over = takes.per_host is not None and count > takes.per_host and not (in_cluster and self.is_spread)
        plain = sorted(takes.other.keys() - (self.devices if in_cluster else {}).keys())
        return [
            *(["label_selector or accelerator_type"] if takes.labels and not in_cluster else []),
            *([f"resources ({', '.join(plain)})"] if plain else []),
            *(["max_replicas_per_node"] if is_over else []),
        ]

    @property
    def devices(self) -> dict[str, int]:
        """The custom resources that Kubernetes knows as well, because their names have a domain, for one container."""
        other = self.deployment.resources.other.items()
        return {name: math.ceil(count * self.replicas) for name, count in other if "/" in name and count}

    @property
    def command(self) -> tuple[str, ...]:
        """The arguments of ``qserve``."""
        which = "--name", self.app, "--deployment", self.deployment.name
        return "worker", *which, "--replicas", str(self.replicas)


@dataclass(frozen=True)
class Plan:
    """A stack.

    Parameters:
      name: Names its images.
      target: The arguments of ``qserve deploy``.
      services: Of the deployments.
      app_dir: The folder of the code, below the one that the images are built from.
      environment: Variables of all containers but the broker's.
      own_environment: Variables of the containers that run user code.
      port: Where the gateway is published: a port, or an address with a port.
      has_token: Whether the gateway asks for a token.
      written_by: The command that writes the files.
    """

    name: str
    target: tuple[str, ...]
    services: tuple[Service, ...]
    app_dir: str = "."
    environment: Mapping[str, str] = field(default_factory=dict)
    own_environment: Mapping[str, str | None] = field(default_factory=dict)
    port: str = "8000"
    has_token: bool = False
    written_by: str = "qserve compose"

    @property
    def deploy(self) -> tuple[str, ...]:
        """The arguments of ``qserve`` that deploy it."""
        return DEPLOY, *self.target, *self.from_folder

    @property
    def from_folder(self) -> tuple[str, ...]:
        """The option that names the folder of the code."""
        return ("--app-dir", self.app_dir) if self.app_dir != "." else ()


def services_of(
    records: Iterable[ApplicationRecord], scaled: Collection[str] = (), *, spreads_gpus: bool = False
) -> tuple[Service, ...]:
    """Return a service for each deployment that has replicas.

    Parameters:
      scaled: The applications whose number of replicas somebody else says.
      spreads_gpus: Whether each container gets GPUs that no other one has, as on Kubernetes. Elsewhere an engine gives
        all of them the first ones, so one container has all replicas of a deployment.
    """
    found: list[Service] = []
    applications = [*records]
    for record in applications:
        for one in record.replicated.values():
            words = one.name if len(applications) == 1 else f"{record.name}-{one.name}"
            name = _unique(slug(words), {BROKER, GATEWAY, DEPLOY, *(service.name for service in found)})
            count, replicas, gpus = first_count(one), 1, one.resources.gpus
            if gpus and not spreads_gpus:
                count, replicas = 1, count
            elif 0 < gpus < 1:  # as many as one GPU has room for
                replicas = min(count, int(1 / gpus))
                count = math.ceil(count / replicas)
            found.append(Service(name, record.name, one, count, replicas, record.name in scaled))
    return tuple(found)


def first_count(deployment: DeploymentRecord) -> int:
    """Return how many replicas a deployment has when it starts."""
    scaling = deployment.scaling
    if scaling is None:
        return deployment.num_replicas
    return max(1, scaling.min_replicas if scaling.initial_replicas is None else scaling.initial_replicas)


def slug(words: str) -> str:
    """Return words as a name for services: lower-case letters, digits and hyphens, with a letter first."""
    parts = re.sub(r"[^a-z0-9]+", "-", _BOUNDARY.sub("-", words).lower()).strip("-")[:_LONGEST_NAME].strip("-")
    return parts if parts[:1].isalpha() else f"app-{parts}".rstrip("-")


def _unique(name: str, taken: Collection[str]) -> str:
    number = 1
    while (found := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return found
