"""What workers offer, what they are to run, and why: the values that workers and operators leave for one another.

Each is sealed for its place in the broker, and carries a number that only grows: a reader refuses an older one.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from qserve.exceptions import PayloadError

FOR_ALL = "*"
"""In the place of a deployment: all of the application."""


class _Value:
    """A dataclass that travels as JSON; fields that only a newer version knows are left out."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False)

    def encode(self) -> bytes:
        """Return it as JSON."""
        return to_json(asdict(self))  # type: ignore[call-overload]

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` wrote; raise PayloadError for anything else."""
        try:
            found: Self = _reader(cls).validate_json(data)  # type: ignore[arg-type]
            return found
        except (ValidationError, TypeError) as error:
            raise PayloadError(f"{len(data)} bytes are not a {cls.__name__}") from error


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # it takes milliseconds: when one is read, and not when this is imported


@dataclass(frozen=True)
class Lead(_Value):
    """Which worker decides what runs where.

    Parameters:
      number: Grows as long as that worker leads; others watch it as they watch a heartbeat.
    """

    worker: str
    number: int = 0


@dataclass(frozen=True)
class HostRecord(_Value):
    """What a worker offers.

    Parameters:
      worker: Its id; the same after a restart.
      host: The machine's name.
      places: How many places it has, each for one CPU of a replica; 0 for one that only runs its ``pins``.
      is_soft: Whether it runs more than that when a deployment would be without a replica otherwise.
      devices: Its GPUs.
      memory: In bytes; 0 when it is not known.
      resources, labels: What its operator says that it has, and is.
      has: The versions whose code it has, each as ``application:version``.
      pins: Replicas that it runs whatever is planned, by ``application:version:deployment``.
      app: The only application that it runs; "" for all.
      is_leaving: Whether it ends as soon as what it runs has a place elsewhere.
      values_in: The token of the memory in which its replicas store large values; "" if they store them elsewhere.
    """

    worker: str
    host: str
    places: int = 0
    is_soft: bool = False
    devices: tuple[str, ...] = ()
    memory: int = 0
    resources: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    has: tuple[str, ...] = ()
    pins: dict[str, int] = field(default_factory=dict)
    app: str = ""
    number: int = 0
    is_leaving: bool = False
    values_in: str = ""

    def is_drained(self, drains: Container[str]) -> bool:
        """Return whether its host, or this worker alone, is among those that are drained."""
        return self.host in drains or self.worker in drains


@dataclass(frozen=True)
class Slot:
    """Replicas of one deployment that a worker is to run.

    Parameters:
      devices: The GPUs of each of them.
      leaves: Whether they go on only until they run elsewhere.
    """

    app: str
    version: str
    deployment: str
    count: int = 1
    devices: tuple[str, ...] = ()
    leaves: bool = False


@dataclass(frozen=True)
class Assignment(_Value):
    """What one worker is to run."""

    slots: tuple[Slot, ...] = ()
    number: int = 0


@dataclass(frozen=True)
class Scaled(_Value):
    """How many replicas a deployment is to have, and why.

    Parameters:
      count: As many as are wanted now.
      configured: The ``num_replicas`` that this was decided for.
      reason, trigger: Why it was changed last, for people and in Ray Serve's word for it.
      at_ms: When that was, by the broker's clock.
      shortage: What is missing for all of them to be placed; "" for nothing.
      above_ms, below_ms: Since when the load asks for more, or for fewer; 0 when it does not.
      policy_state: What a policy of the user's wants to have again, as JSON.
    """

    count: int
    configured: int = 0
    reason: str = ""
    trigger: str = ""
    at_ms: float = 0.0
    shortage: str = ""
    above_ms: float = 0.0
    below_ms: float = 0.0
    policy_state: str = ""
    number: int = 0

    @property
    def policy_state_value(self) -> dict[str, Any]:
        """The state of the policy; empty when there is none."""
        try:
            found = from_json(self.policy_state) if self.policy_state else {}
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Wish(_Value):
    """What an operator wants of a deployment.

    Parameters:
      count: So many replicas; None for what its options say.
      configured: The ``num_replicas`` that the count was given for; another one ends it.
      is_paused: Whether its replicas take no calls.
      by, at_ms: Who said that, and when by the broker's clock.
      scaled_by, scaled_at_ms: Who gave the count, and when.
      scaled_from: How many were wanted before.
    """

    count: int | None = None
    configured: int = 0
    is_paused: bool = False
    by: str = ""
    at_ms: float = 0.0
    scaled_by: str = ""
    scaled_at_ms: float = 0.0
    scaled_from: int = 0
    number: int = 0

    def holds_for(self, num_replicas: int) -> bool:
        """Return whether there is a count that was given for these ``num_replicas``."""
        return self.count is not None and self.configured == num_replicas


@dataclass(frozen=True)
class Drain(_Value):
    """That a host is to run nothing, who said so, and when by the broker's clock."""

    host: str
    by: str = ""
    at_ms: float = 0.0
    number: int = 0


@dataclass(frozen=True)
class LogLine(_Value):
    """An event in the log of a process, with its traceback.

    Parameters:
      at_ms: When it was logged, by the clock of its host.
      source: The replica, or the host of the supervisor that logged it.
      request_id: The request that it belongs to, as people see it; "" for none.
    """

    at_ms: float
    level: str
    source: str
    deployment: str
    request_id: str
    text: str


@dataclass(frozen=True)
class Rollout(_Value):
    """A deploy or deletion that is under way, or the last one.

    Parameters:
      version, old: The version that is deployed, "" for a deletion, and the one that it replaces, "" for none.
      by: Who deploys, and where.
      state: ``under way``, ``done`` or ``failed``.
      message: Why it failed.
      new, keep: How many replicas of each deployment the new version and the old one are to have; all that are not
        named have as many as they want.
      beat: Grows as long as the deployer lives.
      started_ms, beat_ms: When it began, and when it grew last, by the broker's clock.
    """

    version: str
    old: str = ""
    by: str = ""
    state: str = "under way"
    message: str = ""
    new: dict[str, int] = field(default_factory=dict)
    keep: dict[str, int] = field(default_factory=dict)
    beat: int = 0
    started_ms: float = 0.0
    beat_ms: float = 0.0
    number: int = 0
