"""How the replicas of a new version come up beside those of the old one: all at once, or step by step."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from qserve.base.clock import Deadline, clock
from qserve.broker.connection import if_permitted
from qserve.deploy.claim import Claim
from qserve.deploy.installation import Installation
from qserve.deploy.removal import is_idle
from qserve.exceptions import DeployError
from qserve.fleet.place import could_run
from qserve.fleet.values import Key, Need
from qserve.fleet.wanted import wanted_count
from qserve.wire.application import ApplicationRecord
from qserve.wire.status import DIED, FAILED, RUNNING, ReplicaStatus

_READ_AGAIN_S = 0.5
_POLL_INTERVAL_S = 0.1
_NO_COUNTS: Mapping[str, int] = MappingProxyType({})
_FULL_AFTER_S = 2.0
"""How long replicas may have no place before old ones make room: others may be ending just now."""
SHARE_HOLDS_S, _SHARE_AGAIN_S = 15.0, 3.0
"""How long a version that is being deployed gets its part of the requests, and how often that is said again."""
_CALLERS_KNOW_S = 1.5
"""By when every caller knows the newest share: clients look once in a second."""
_ACL = "take the deployer's line of `qserve doctor --acl` into the broker's ACL"


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
    """The steps of one deployment: its new replicas come up as old ones end, and get their part of the requests.

    Parameters:
      wanted: How many replicas the new version is to have.
      old: How many the old one had at the beginning.
      room: How many there may be of both.
      size: How many are replaced in one step.
    """

    wanted: int
    old: int
    room: int
    size: int = 1

    @classmethod
    def within(cls, wanted: int, old: int, surge: int) -> Steps:
        """Return the steps where there may be ``surge`` replicas beyond those that are wanted."""
        return cls(wanted, old, max(1, max(wanted, old) + surge), max(1, surge))

    @property
    def goal(self) -> int:
        """How many new ones there may be beside an old one."""
        return min(self.wanted, self.room - (1 if self.old else 0))

    def limits(self, running: int, goal: int) -> tuple[int, int]:
        """Return how many new and old ones there may be in the step after ``running`` new ones."""
        new = min(goal, running + self.size)
        return new, max(0, min(self.old, self.room - new))

    def limits_back(self, running: int, is_last: bool) -> tuple[int, int]:
        """Return how many new and old ones there may be in the step after ``running`` old ones, when it goes back.

        Parameters:
          is_last: Whether no new one has to stay.
        """
        old = min(self.old if is_last else self.goal_back, running + self.size)
        return max(0, self.room - old), old

    @property
    def goal_back(self) -> int:
        """How many old ones there may be beside a new one."""
        return min(self.old, self.room - 1)


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

    def raise_if_full(self, old: ApplicationRecord) -> None:
        """Raise NoRoom when replicas have had no place for a while, and would have one if some of ``old`` ended."""
        self._read()
        if not self._shortages or time.monotonic() - self._full_since <= _FULL_AFTER_S:
            return
        record, offers = self._record, if_permitted(self._fleet.hosts)
        there = self._replicas(old.version)
        first, *others = (one.resources for one in (*record.replicated.values(), *old.replicated.values()))
        is_too_much = sum(self._wanted.values()) > len(there) + self.running(record.version).total()
        if is_too_much and all(one == first for one in others):  # old ones would end for nothing
            return
        hosts = [offers[one.worker] for one in there if one.worker in offers]
        needs = {
            name: Need(Key(record.name, record.version, name), 1, resources=one.resources)
            for name, one in record.replicated.items()
        }
        found = {name: why for name, why in self._shortages.items() if name in needs}
        if found and all(any(could_run(host, needs[name]) for host in hosts) for name in found):
            raise NoRoom("; ".join(f"{name}: {why}" for name, why in found.items()))

    def steps_in_place(self, before: Mapping[str, int], kept: Mapping[str, int], old: str) -> dict[str, Steps]:
        """Return the steps where new replicas only have the places of old ones, and those that some have found.

        Deployments with more places than the new version needs give them to those with fewer.

        Parameters:
          before: How many old ones there were at the beginning.
          kept: How many there may be now, of deployments for which that is limited.
        """
        wanted, running, pinned = Counter(self.wanted()), self.running(self._record.version), self.pinned(old)
        rooms = {name: kept.get(name, before[name]) + running[name] for name in {*wanted, *before} - pinned}
        lacking = {name: wanted[name] - room for name, room in rooms.items() if room < wanted[name]}
        for name in sorted(rooms.keys() - lacking.keys()):
            for other in lacking:
                given = max(0, min(lacking[other], rooms[name] - max(wanted[name], 2 if wanted[name] else 1)))
                rooms[name], rooms[other] = rooms[name] - given, rooms[other] + given
                lacking[other] -= given
        return {name: Steps(wanted[name], before[name], room) for name, room in rooms.items()}

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
        return f"this deploy's user may not read what workers offer ({{qserve}}:hosts): {_ACL}"

    def raise_if_dying(self, version: str) -> None:
        """Raise DeployError when the replicas of a version can start, but keep dying once they get requests."""
        for one in self._reports.replicas():
            if (one.version, one.state) == (version, FAILED) and one.message.startswith(DIED):
                raise DeployError(f"the replicas of deployment {one.deployment!r} {one.message}")

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
    """The start of a new version's replicas, until it takes the place of the version that serves.

    Where its replicas come up step by step, those that run get their part of the new requests, so that both versions
    together always have about as many replicas as the old one had. The same holds where workers that run what they were
    started for are replaced one by one from outside, as Kubernetes does it. The old version is registered as the active
    one until all of the new one run, and gets everything back if they do not.

    Crash on the way: the limits of this deploy end with its claim, the share of the new version ends soon after, and
    the version that serves has again as many replicas as are wanted of it.

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
        installation: Installation,
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
        self._installation = installation
        self._claim = claim
        self._record = record
        self._active = active
        self._old = "" if active is None else active.version
        self._counts = counts
        self._surge = surge
        self._wait = wait
        self._is_called_off = check
        self._say = say
        self._timeout_s = timeout_s
        self._steps: dict[str, Steps] = {}
        self._new: dict[str, int] = {}
        self._keep: dict[str, int] = {}
        """How many new replicas there may be now, and old ones; as many as are wanted of deployments without steps."""
        self._share: float | None = None
        """The part of new requests that goes to the new version; None until it gets some for the first time."""
        self._shared_at = 0.0
        self._is_going_back = False
        self._before = counts.running(self._old)
        self._pinned = counts.pinned(self._old) if self._before else set[str]()
        self._followed_at = -math.inf

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
        pinned = self._pinned & chosen.keys()
        if pinned:
            what, names = "max_surge_percent" if self._surge is None else "--max-surge", ", ".join(sorted(pinned))
            self._say(f"{what} has no effect on {names}: {self._counts.why_pinned}")
        wanted = self._counts.wanted()
        self._steps = {
            name: Steps.within(wanted[name], self._before[name], surge.of(wanted[name]))
            for name, surge in chosen.items()
            if wanted[name] and name not in pinned
        }
        if self._steps:
            self._limit(dict.fromkeys(self._steps, 0), {})

    def _limit(self, new: dict[str, int], keep: dict[str, int]) -> None:
        self._claim.update(old=self._old, new=new, keep=keep)
        self._new, self._keep = new, keep

    def run(self) -> None:
        """Start all of them; once it returns, they may take the place of the old ones.

        Raises:
          DeployError: As ``wait_until_running`` raises it.
        """
        if not self._before.total():
            return self._come_up(self._check)
        try:
            return self._come_up(self._check_and_look_for_room)
        except NoRoom as error:
            self._say(f"new replicas take the places of old ones, one by one, as there is no other place: {error}")
        self._steps, self._new = self._counts.steps_in_place(self._before, self._keep, self._old), {}
        return self._come_up(self._check)

    def _check(self) -> None:
        self._is_called_off()
        if self._pinned and not self._steps and time.monotonic() - self._followed_at > _READ_AGAIN_S:
            self._followed_at = time.monotonic()
            self._follow()
        if self._share is not None and time.monotonic() - self._shared_at > _SHARE_AGAIN_S:
            self._give(self._share)
            self._raise_if_dying()

    def _follow(self) -> None:
        """Give the new version the part of the old replicas that have ended and that nothing starts again."""
        old, new = (self._counts.running(version) for version in (self._old, self._record.version))
        if any(old[name] < self._before[name] for name in self._pinned):
            wanted = self._counts.wanted()
            mine = min((new[name] / count for name, count in wanted.items() if count), default=0.0)
            others = min(old[name] / count for name, count in self._before.items())
            self._give_parts(mine, others)

    def _raise_if_dying(self) -> None:
        if self._share and not self._is_going_back:
            self._counts.raise_if_dying(self._record.version)

    def _check_and_look_for_room(self) -> None:
        self._check()
        if self._active is not None:
            self._counts.raise_if_full(self._active)

    def _come_up(self, check: Callable[[], None]) -> None:
        goals = self._goals()
        while any(self._new.get(name, -1) < goal for name, goal in goals.items()):
            running = self._counts.running(self._record.version)
            limits = {
                name: one.limits(max(running[name], self._new.get(name, 0)), goals[name])
                for name, one in self._steps.items()
            }
            new, keep = ({name: one[part] for name, one in limits.items()} for part in (0, 1))
            self._give_part(running, keep)
            self._raise_if_dying()
            self._limit({name: min(count, running[name]) for name, count in new.items()}, keep)
            self._until(self._old, at_most=keep)
            self._limit(new, keep)
            self._wait(self._record, expected=self._expected, check=check)
        if not self._steps:
            self._wait(self._record, check=check)
        elif any(goals[name] < one.wanted for name, one in self._steps.items()):
            self._take_last_places()
        self._raise_if_dying()

    def _goals(self) -> dict[str, int]:
        """Return how many new ones of each deployment there are beside old ones.

        Where one deployment cannot have both, all requests go to the new version at once, and half of the replicas of
        the others are the most that both can have.
        """
        goals = {name: one.goal for name, one in self._steps.items()}
        single = [name for name, one in self._steps.items() if one.wanted and not one.goal]
        halved = {
            name: math.ceil(min(one.wanted, one.room) / 2)
            for name, one in self._steps.items()
            if single and one.old and goals[name] > 1
        }
        if halved:
            self._say(
                f"all requests go to the new version at once, because {', '.join(single)} has no room beside the old"
                f" one; at that moment, half of the replicas of {', '.join(halved)} serve"
            )
        return {name: min(goal, halved.get(name, goal)) for name, goal in goals.items()}

    def _take_last_places(self) -> None:
        """Let the last old ones end, once they have finished what they have, for the last new ones."""
        self._give(1.0)
        if self._active is not None:
            self._finish(self._active)
        nothing = {name: 0 for name, one in self._steps.items() if one.old}
        self._limit(self._new, {**self._keep, **nothing})
        self._until(self._old, at_most=nothing)
        self._limit({name: one.wanted for name, one in self._steps.items()}, self._keep)
        self._wait(self._record, expected=self._expected, check=self._check)

    def go_back(self) -> None:
        """Let the old version have its replicas again step by step, and then all of the requests."""
        if self._share is None or self._active is None:
            return
        self._is_going_back = True
        if not self._steps:
            self._pinned = set()
            self._give(0.0)
            self._finish(self._record)
            return
        deployments = self._active.replicated
        fixed = {name: one.old for name, one in self._steps.items() if one.old and not deployments[name].scaling}
        running = self._counts.running(self._record.version)
        self._limit({name: min(count, running[name]) for name, count in self._new.items()}, self._keep)
        while any((old := self._counts.running(self._old))[name] < count for name, count in fixed.items()):
            new = self._counts.running(self._record.version)
            is_last = all(old[name] >= self._steps[name].goal_back for name in fixed)
            limits = {name: one.limits_back(old[name], is_last) for name, one in self._steps.items()}
            less = {name: min(count, new[name]) for name, (count, _) in limits.items()}
            can_finish = all(new[name] for name, one in self._steps.items() if one.wanted)
            if can_finish and not is_last:
                self._give_part(less, old)
            else:
                self._give(0.0)
                if can_finish:
                    self._finish(self._record)
            self._limit(less, self._keep)
            self._until(self._record.version, at_most=less)
            keep = {name: count for name, (_, count) in limits.items()}
            self._limit(less, keep)
            self._until(self._old, at_least={name: keep[name] for name in fixed})

    def _expected(self) -> dict[str, int]:
        """Return how many new ones run soon: of a deployment that scales by load, there may be fewer again."""
        wanted = self._counts.wanted()
        return {name: min(count, wanted[name]) for name, count in self._new.items() if name in wanted}

    # -- requests ----------------------------------------------------------------------------------

    def _give_part(self, new: Mapping[str, int], old: Mapping[str, int]) -> None:
        """Give the new version the part of new requests that so many replicas of both can serve."""
        steps = self._steps.items()
        mine = min((new[name] / one.wanted for name, one in steps if one.wanted), default=0.0)
        others = min((old[name] / (one.wanted or one.old) for name, one in steps if one.old), default=0.0)
        self._give_parts(mine, others)

    def _give_parts(self, new: float, old: float) -> None:
        if new and new / (new + old) != self._share:
            self._give(new / (new + old))

    def _give(self, share: float) -> None:
        """Crash after it: callers and supervisors notice that the share is not given again."""
        now = time.monotonic()
        if self._share is not None and now - self._shared_at > SHARE_HOLDS_S:
            raise DeployError("this deploy stood still for so long that its new version got no requests any more")
        until_ms = clock.stamp_ms() + 1000 * SHARE_HOLDS_S
        self._installation.registry.share(self._record, share, until_ms)
        self._share, self._shared_at = share, now

    def _finish(self, record: ApplicationRecord) -> None:
        """Wait until a version that gets no new requests has finished those that it has, for its grace at most."""
        deadline = Deadline(_CALLERS_KNOW_S + max(one.grace_s for one in record.deployments.values()))
        earliest = Deadline(_CALLERS_KNOW_S)
        if is_idle(self._installation, record) is None:
            self._say(
                "replicas get their whole graceful_shutdown_timeout_s to finish what they have, because this deploy's"
                f" user may not ask for it with XLEN and ZCARD: {_ACL}"
            )
        while not deadline.has_passed() and not (earliest.has_passed() and is_idle(self._installation, record)):
            self._check()
            time.sleep(_POLL_INTERVAL_S)

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
