"""How the replicas of a new version come up beside those of the old one: all at once, or step by step."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from qserve.base.clock import Deadline
from qserve.broker.connection import if_permitted
from qserve.deploy.claim import Claim
from qserve.deploy.installation import Installation
from qserve.exceptions import DeployError
from qserve.fleet.place import could_run
from qserve.fleet.values import Key, Need
from qserve.fleet.wanted import wanted_count
from qserve.wire.application import ApplicationRecord
from qserve.wire.status import RUNNING, ReplicaStatus

_READ_AGAIN_S = 0.5
_POLL_INTERVAL_S = 0.1
_NO_COUNTS: Mapping[str, int] = MappingProxyType({})
_FULL_AFTER_S = 2.0
"""How long replicas may have no place before old ones make room: others may be ending just now."""


class NoRoom(DeployError):
    """Raised when replicas have no place; the message says what is missing."""


@dataclass(frozen=True)
class Surge:
    """How many replicas of a deployment there may be beyond those that are wanted, while a new version comes up.

    Parameters:
      amount: A number of them, or a percentage.
    """

    amount: float
    is_percentage: bool = False

    def of(self, count: int) -> int:
        """Return how many that are for a deployment with so many replicas."""
        return math.ceil(count * self.amount / 100) if self.is_percentage else math.ceil(self.amount)


@dataclass(frozen=True)
class Steps:
    """The steps of one deployment. Half of the new replicas run before requests go to them; the others follow.

    Until then the old version does all of the work, and its replicas that are left have room for it.

    Parameters:
      wanted: How many replicas the new version is to have.
      old: How many the old one had at the beginning.
      surge: How many there may be beyond that.
      is_full: Whether new replicas only find a place where an old one ends.
    """

    wanted: int
    old: int
    surge: int
    is_full: bool = False

    @property
    def room(self) -> int:
        """How many replicas of both versions there may be."""
        return max(1, (self.old if self.is_full else max(self.wanted, self.old)) + self.surge)

    @property
    def goal(self) -> int:
        """How many new ones there are before requests go to them."""
        return min(self.wanted, self.room, max(self.surge, math.ceil(min(self.wanted, self.room) / 2)))

    def before(self, running: int) -> tuple[int, int]:
        """Return how many new and old ones there may be while the old version serves."""
        new = min(self.goal, running + max(1, self.surge))
        return new, max(0, min(self.old, self.room - new))

    def after(self, new: int, old: int) -> int:
        """Return how many new ones there may be, now that they serve and so many old ones finish their calls."""
        return min(self.wanted, max(new, self.room - old))


class Counts:
    """How many replicas of an application's versions are wanted, and run, as of a moment ago.

    Parameters:
      record: The version that is deployed.
    """

    def __init__(self, installation: Installation, record: ApplicationRecord) -> None:
        self._fleet = installation.fleet
        self._reports = installation.reports(record.name)
        self._record = record
        self._read_at = self._full_since = -math.inf
        self._wanted: dict[str, int] = {}
        self._shortages: dict[str, str] = {}
        self._may_read_offers = True

    def _note_refusal(self) -> None:
        self._may_read_offers = False

    def wanted(self) -> Mapping[str, int]:
        """Return how many replicas of each deployment the new version is to have."""
        self._read()
        return self._wanted

    def shortages(self) -> Mapping[str, str]:
        """Return why replicas have no place, by deployment, as the worker that leads has noted it."""
        self._read()
        return self._shortages

    def raise_if_full(self, old: str) -> None:
        """Raise NoRoom when replicas have had no place for a while, and would have one if some of ``old`` ended."""
        self._read()
        if not self._shortages or time.monotonic() - self._full_since <= _FULL_AFTER_S:
            return
        record, offers = self._record, if_permitted(self._fleet.hosts)
        hosts = [offers[one.worker] for one in self._replicas(old) if one.worker in offers]
        needs = {
            name: Need(Key(record.name, record.version, name), 1, resources=one.resources)
            for name, one in record.replicated.items()
        }
        found = {name: why for name, why in self._shortages.items() if name in needs}
        if found and all(any(could_run(host, needs[name]) for host in hosts) for name in found):
            raise NoRoom("; ".join(f"{name}: {why}" for name, why in found.items()))

    def _read(self) -> None:
        now, app = time.monotonic(), self._record.name
        if now - self._read_at < _READ_AGAIN_S:
            return
        scaled, wishes = if_permitted(partial(self._fleet.scaled, app)), if_permitted(partial(self._fleet.wishes, app))
        self._wanted = {
            name: wanted_count(self._record, name, wishes.get(name), scaled.get(name), at_least=1)
            for name in self._record.replicated
        }
        if not self._shortages:
            self._full_since = now
        self._shortages = {name: one.shortage for name, one in scaled.items() if one.shortage}
        self._read_at = now

    def running(self, version: str) -> Counter[str]:
        """Return how many replicas of each deployment of a version take calls."""
        return Counter(one.deployment for one in self._replicas(version))

    @property
    def why_pinned(self) -> str:
        """Why the number of replicas of deployments cannot be limited."""
        if self._may_read_offers:
            return "workers run what they were started for"
        return (
            "this deploy's user may not read what workers offer ({qserve}:hosts): take the line of"
            " docs/acl/deployer.acl into the broker's ACL"
        )

    def pinned(self, version: str) -> set[str]:
        """Return the deployments of a version that workers run which were started for that, whatever is planned.

        Where this user may not read what workers offer, it may be so for all of them.
        """
        offers = if_permitted(self._fleet.hosts, self._note_refusal)
        placed = {name for name, host in offers.items() if host.places}
        return {one.deployment for one in self._replicas(version) if one.worker not in placed}

    def _replicas(self, version: str) -> list[ReplicaStatus]:
        return [one for one in self._reports.replicas() if one.version == version and one.state == RUNNING]


class Start:
    """The start of a new version's replicas, before requests go to them and after that.

    Crash on the way: the limits of this deploy end with its claim, and the version that serves has again as many
    replicas as are wanted of it.

    Parameters:
      active: The version that serves; None for none.
      surge: How many replicas there may be beyond those that are wanted; None for what the deployments say, and
        otherwise as many as there is room for.
      wait: Waits until all run, of some as many as ``expected`` returns, and calls ``check`` meanwhile.
      check: Called while waiting; raises when waiting makes no sense any more.
      say: Called with what a user should know.
      timeout_s: How long each step may take.
    """

    def __init__(
        self,
        claim: Claim,
        record: ApplicationRecord,
        active: ApplicationRecord | None,
        counts: Counts,
        surge: Surge | None,
        wait: Callable[..., None],
        check: Callable[[], None],
        say: Callable[[str], None],
        timeout_s: float,
    ) -> None:
        self._claim = claim
        self._record = record
        self._active = active
        self._old = "" if active is None else active.version
        self._counts = counts
        self._surge = surge
        self._wait = wait
        self._check = check
        self._say = say
        self._timeout_s = timeout_s
        self._steps: dict[str, Steps] = {}
        self._new: dict[str, int] = {}
        """How many new replicas there may be now."""
        self._before = counts.running(self._old)

    def prepare(self) -> None:
        """Limit how many replicas there may be, before the new version is known to workers."""
        if not self._before.total():
            return
        surges = {name: one.surge for name, one in self._record.replicated.items()}
        chosen = {
            name: self._surge or Surge(own or 0.0, is_percentage=True)
            for name, own in surges.items()
            if self._surge is not None or own is not None
        }
        pinned = self._counts.pinned(self._old) & chosen.keys() if chosen else set()
        if pinned:
            what, names = "max_surge_percent" if self._surge is None else "--max-surge", ", ".join(sorted(pinned))
            self._say(f"{what} has no effect on {names}: {self._counts.why_pinned}")
        wanted = self._counts.wanted()
        self._steps = {
            name: Steps(wanted[name], self._before[name], surge.of(wanted[name]))
            for name, surge in chosen.items()
            if wanted[name] and name not in pinned
        }
        if self._steps:
            self._limit(dict.fromkeys(self._steps, 0), {})

    def _limit(self, new: dict[str, int], keep: dict[str, int]) -> None:
        self._claim.update(old=self._old, new=new, keep=keep)
        self._new = new

    def before(self) -> None:
        """Start those that run before requests go to them.

        Raises:
          DeployError: As ``wait_until_running`` raises it.
        """
        if not self._before.total():
            return self._come_up(self._check)
        try:
            return self._come_up(self._check_and_look_for_room)
        except NoRoom as error:
            self._say(f"new replicas take the places of old ones, one by one, as there is no other place: {error}")
        pinned = self._counts.pinned(self._old)
        self._steps = {
            name: Steps(count, self._before[name], 0, is_full=True)
            for name, count in self._counts.wanted().items()
            if count and name not in pinned
        }
        self._come_up(self._check)
        return None

    def _check_and_look_for_room(self) -> None:
        self._check()
        self._counts.raise_if_full(self._old)

    def _come_up(self, check: Callable[[], None]) -> None:
        new, keep = dict[str, int](), dict[str, int]()
        while any(new.get(name, -1) < one.goal for name, one in self._steps.items()):
            running = self._counts.running(self._record.version)
            limits = {name: one.before(max(running[name], new.get(name, 0))) for name, one in self._steps.items()}
            new, keep = ({name: one[part] for name, one in limits.items()} for part in (0, 1))
            self._limit({name: min(count, running[name]) for name, count in new.items()}, keep)
            self._until(self._old, at_most=keep)
            self._limit(new, keep)
            self._wait(self._record, expected=self._expected, check=check)
        if not self._steps:
            self._wait(self._record, check=check)
        without = [name for name, count in keep.items() if not count and self._before[name]]
        if without and self._active is not None and len(self._active.replicated) > 1:
            self._bring_back(without, new, keep)

    def _expected(self) -> dict[str, int]:
        """Return how many new ones run soon: of a deployment that scales by load, there may be fewer again."""
        wanted = self._counts.wanted()
        return {name: min(count, wanted[name]) for name, count in self._new.items()}

    def _bring_back(self, names: list[str], new: dict[str, int], keep: dict[str, int]) -> None:
        """Let old replicas run again where none was left: only they can finish requests that are half-way.

        The new ones have shown that they can start, and start again when the old ones have ended.
        """
        new = {**new, **dict.fromkeys(names, 0)}
        self._limit(new, keep)
        self._until(self._record.version, at_most=dict.fromkeys(names, 0))
        old = {name: self._before[name] for name in names}
        self._limit(new, {**keep, **old})
        self._until(self._old, at_least=old)

    def _until(
        self, version: str, at_most: Mapping[str, int] = _NO_COUNTS, at_least: Mapping[str, int] = _NO_COUNTS
    ) -> None:
        deadline = Deadline(self._timeout_s)
        while True:
            found = self._counts.running(version)
            is_reached = all(found[name] <= count for name, count in at_most.items())
            if is_reached and all(found[name] >= count for name, count in at_least.items()):
                return
            self._check()
            if deadline.has_passed():
                counts = ", ".join(f"{name}: {count}" for name, count in sorted(found.items()))
                raise DeployError(f"replicas did not make room within {self._timeout_s:.0f} s; there are {counts}")
            time.sleep(_POLL_INTERVAL_S)

    def after(self) -> None:
        """Let the others follow as old ones end.

        Raises:
          DeployError: They did not start; those that run serve.
        """
        if not self._steps:
            return
        deadline = Deadline(self._timeout_s)
        while (old := self._counts.running(self._old)).total() and not deadline.has_passed():
            new = {name: one.after(self._new[name], old[name]) for name, one in self._steps.items()}
            if new != self._new:
                self._limit(new, {})
            self._check()
            time.sleep(_POLL_INTERVAL_S)
        self._limit({}, {})
        scaled = {name: 0 for name, one in self._record.replicated.items() if one.scaling}  # as the load says
        self._wait(self._record, expected=lambda: scaled, check=self._check)
