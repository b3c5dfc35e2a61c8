"""The values that the modules of this room exchange: needs, placements, loads and decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qserve.wire.application import Resources
from qserve.wire.fleet import Slot


class Key(NamedTuple):
    """A deployment in one version of its application."""

    app: str
    version: str
    deployment: str

    @property
    def text(self) -> str:
        """The deployment as workers name it in what they offer."""
        return ":".join(self)


@dataclass(frozen=True)
class Need:
    """How many replicas of a deployment are wanted.

    Parameters:
      count: How many replicas workers that offer places should run.
      least: How many of them must run even if no place is free.
    """

    key: Key
    count: int
    least: int = 0
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class Shortage:
    """Replicas without a place, and what is missing for them."""

    key: Key
    missing: int
    why: str


@dataclass(frozen=True)
class Placement:
    """The assignments of each worker, and the replicas that no worker has room for."""

    assignments: Mapping[str, tuple[Slot, ...]]
    shortages: tuple[Shortage, ...] = ()


@dataclass(frozen=True)
class Load:
    """The load of a deployment at one moment.

    Parameters:
      at: By a monotonic clock, in seconds.
      waiting, running: Calls that no replica has fetched, and those that replicas hold.
      oldest_s: How long the oldest waiting call has waited.
      replicas: How many run.
      stats: What they report for a policy of the user's.
    """

    at: float
    waiting: int
    running: int
    oldest_s: float = 0.0
    replicas: int = 0
    stats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """How many replicas the load asks for.

    Parameters:
      above_since, below_since: Since when it asks for more, or for fewer, by the clock of ``Load.at``.
    """

    count: int
    reason: str = ""
    above_since: float | None = None
    below_since: float | None = None


@dataclass(frozen=True)
class Asked:
    """The answer of a user's scaling policy: a number and its state, or why there is none."""

    count: float = 0.0
    state: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
