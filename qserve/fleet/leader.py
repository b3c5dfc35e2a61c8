"""One round of the leader: it reads what workers offer and what is wanted, and assigns replicas to workers."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

from qserve.base import failpoints
from qserve.base.clock import clock
from qserve.base.log import get_logger
from qserve.broker.registry import ACTIVE, NEXT
from qserve.fleet.lead import ALONE_RENEW_S, RENEW_S, Leadership
from qserve.fleet.place import Plan, Running, place, rebalance
from qserve.fleet.store import Fleet, FleetStore
from qserve.fleet.values import Key, Need, Placement
from qserve.fleet.wanted import needs_of, pins_of, wanted_count
from qserve.wire.application import ApplicationRecord
from qserve.wire.fleet import HostRecord, Rollout, Scaled, Slot

log: Final = get_logger(__name__)
GONE_S = 3.0
"""How long a worker's counter may stand still before its replicas are started elsewhere."""
_ROUND_S, _IDLE_ROUND_S, _ALONE_ROUND_S = 0.25, 1.0, 2.0
"""From one round to the next: while something changes, while nothing does, and where there is no other worker."""
_SETTLE_S = 1.5
"""How long a leader waits, once the broker has lost its data, until the others have said again what they offer and run:
each notices within half a second."""
_STEADY_S = 10.0
"""After this long without a change, rounds become rarer and deployments are spread evenly."""
_FORGOTTEN_S = 60.0
_LOOK_AGAIN_S = 5.0
"""How often replicas are looked for that no worker with a name runs."""
_STILL_S = 10.0
"""How long the claim of a deploy may stand still before its limits hold no more."""
_NOTICED_S = 5.0
"""By when each worker has noticed that a version which was being deployed gets no requests any more."""


@dataclass(frozen=True)
class Registered:
    """The applications that are registered.

    Parameters:
      records: The active and the staged version of each application.
      unread: Applications that cannot be read here: their plan stays as it is.
    """

    records: Sequence[ApplicationRecord]
    unread: Set[str] = frozenset()


Reports = Callable[[str], Running]
Decide = Callable[[Sequence[ApplicationRecord], Fleet], Mapping[tuple[str, str], Scaled]]
Observe = Callable[[Mapping[str, int | None]], Set[str]]


def keep_counts(records: Sequence[ApplicationRecord], fleet: Fleet) -> Mapping[tuple[str, str], Scaled]:
    """Change no counts of deployments that scale by load."""
    return {}


class Leader:
    """Assigns the replicas of all applications to workers while this worker leads.

    It keeps nothing that another leader cannot read again: counts and the plan are in the broker.

    Parameters:
      worker: The id of this worker.
      running: Returns for an application how many replicas of each deployment run at each worker.
      observe: Takes the counter of each worker, and returns those that are lost.
      decide_with: Returns new counts of deployments that scale by load.
      monotonic: Seconds; replaced in tests.
    """

    def __init__(
        self,
        store: FleetStore,
        leadership: Leadership,
        worker: str,
        running: Reports,
        observe: Observe,
        decide_with: Decide = keep_counts,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._leadership = leadership
        self._worker = worker
        self._running = running
        self._observe = observe
        self._decide_with = decide_with
        self._clock = monotonic
        self._next_at, self._settled_at = 0.0, -math.inf
        self.is_idle: bool = False
        """Whether nothing has changed for a while, so that rounds are rare."""
        self._forget()

    def _forget(self) -> None:
        """Start again without anything remembered."""
        self._hosts: dict[str, HostRecord] = {}
        self._plan: dict[str, tuple[Slot, ...]] = {}
        self._gone_since: dict[str, float] = {}
        self._apps: set[str] = set()
        self._older: Mapping[Key, int] = {}
        self._look_at = 0.0
        self._inputs: object = None
        self._placed: tuple[Plan, Placement] | None = None
        self._claims: dict[str, tuple[int, float]] = {}
        self._changed_at = self._clock()
        self._is_even = False

    @property
    def is_alone(self) -> bool:
        """Whether it leads, and knows of no other worker."""
        return self._hosts.keys() == {self._worker}

    def settle(self) -> None:
        """Plan nothing for a moment: the broker has lost its data, and the others put back what they offer and run.

        That happens once in ten seconds at most, so that whoever overwrites an offer again and again holds up little.
        """
        now = self._clock()
        if now >= self._settled_at + _STEADY_S:
            self._settled_at = now + _SETTLE_S

    def tick(
        self, registered: Callable[[], Registered], offer: HostRecord, is_eager: bool = False
    ) -> tuple[Slot, ...] | None:
        """Do a round if this worker leads and one is due, and return its own slots then.

        Parameters:
          offer: What this worker offers.
          is_eager: Whether something has changed that may lead to a new plan.

        Raises:
          BrokerError: The round is not finished; the next one does all of it again.
        """
        if failpoints.ARMED:
            failpoints.hit("lead.before_renew")
        if not self._leadership.renew(ALONE_RENEW_S if self.is_alone else RENEW_S):
            self._forget()
            return None
        now = self._clock()
        if now < self._next_at and not is_eager:
            return None
        found = registered()
        records = found.records
        apps = sorted({record.name for record in records})
        fleet = self._store.read(apps, self._hosts)
        if self._worker not in fleet.hosts:
            self._store.offer(offer)
            self.settle()
        self._hosts |= fleet.hosts | {self._worker: offer}  # a broker that has lost its data has them again soon
        if now < self._settled_at:
            return None
        hosts = self._present(fleet, now)
        self._note_counts(self._decide_with(records, fleet), fleet)
        pins = {**pins_of(hosts, records), **self._run_by_older(apps, now)}
        needs = [*needs_of(records, self._under_way(records, fleet, now), fleet.scaled, fleet.wishes, pins)]
        placement = self._place(needs, hosts, fleet, now, found.unread)
        own = self._assign(placement, fleet)
        self._note_shortages(records, placement, fleet)
        for app in self._apps - {*apps} - found.unread:  # it was noted after `delete` had removed it
            self._store.forget(app)
        self._apps = {*apps}
        is_scaled = any(one.scaling for record in records for one in record.replicated.values())
        self.is_idle = self._is_even and self._is_steady(now) and not is_scaled  # a burst is to be seen at once
        self._next_at = now + (_ROUND_S if not self.is_idle else _ALONE_ROUND_S if self.is_alone else _IDLE_ROUND_S)
        return own

    def _present(self, fleet: Fleet, now: float) -> list[HostRecord]:
        """Return the workers whose counters grow, and forget those that have been gone for a minute."""
        counters = {name: fleet.beats.get(name) for name in self._hosts if name != self._worker}
        gone = self._observe(counters)
        self._gone_since = {name: self._gone_since.get(name, now) for name in gone}
        for name in gone:
            if self._gone_since[name] == now:
                log.warning("worker %s is gone; what it was to run is placed elsewhere", name)
            if now - self._gone_since[name] > _FORGOTTEN_S:
                self._store.withdraw(name)
                del self._hosts[name]
                self._plan.pop(name, None)
        return [one for name, one in self._hosts.items() if name not in gone]

    def _run_by_older(self, apps: Sequence[str], now: float) -> Mapping[Key, int]:
        """Return the replicas of workers of an older qserve: these offer nothing, and run what they always ran."""
        if apps and now >= self._look_at:
            self._look_at = now + _LOOK_AGAIN_S
            running = (item for app in apps for item in self._running(app).items())
            self._older = {key: count for (key, worker), count in running if not worker}
        return self._older

    def _under_way(self, records: Sequence[ApplicationRecord], fleet: Fleet, now: float) -> dict[str, Rollout]:
        """Return the deploys whose claims grow.

        Where one that goes step by step stands still, its staged replicas end: they have the places of old ones. While
        they get a part of the requests, it goes on, but one old replica of each deployment takes a place again, which
        serves when that part ends. Then no staged ones start, and their workers let those that run finish what they
        have.
        """
        before, found = self._claims, fleet.rollouts
        same = {app: before[app] for app, one in found.items() if app in before and before[app][0] == one.number}
        self._claims = {app: same.get(app, (one.number, now)) for app, one in found.items()}
        until_ms = {(one.name, one.version): one.share_until_ms for one in records if one.place == NEXT}
        under_way = {app: one for app, one in found.items() if now - self._claims[app][1] <= _STILL_S}
        for app, one in found.items():
            if app in under_way or (app, one.version) not in until_ms:
                continue
            left_s = (until_ms[app, one.version] - clock.judge_ms()) / 1000
            back = {name: max(1, number - 1) for name, number in one.new.items() if one.keep.get(name) == 0}
            new = {**one.new, **back} if left_s >= -_NOTICED_S else dict.fromkeys(one.new, 0)
            under_way[app] = replace(one, new=new, keep={**one.keep, **dict.fromkeys(back, 1)} if left_s > 0 else {})
        return under_way

    def _note_counts(self, decided: Mapping[tuple[str, str], Scaled], fleet: Fleet) -> None:
        """Crash on the way: the next leader goes on from the counts that are noted."""
        for (app, deployment), scaled in decided.items():
            self._store.note(app, deployment, scaled)
            fleet.scaled.setdefault(app, {})[deployment] = scaled

    def _place(
        self, needs: list[Need], hosts: list[HostRecord], fleet: Fleet, now: float, unread: Set[str]
    ) -> Placement:
        before: Plan = {name: one.slots for name, one in fleet.plan.items()}
        before = {**self._plan, **before}
        leaving = frozenset(one.worker for one in hosts if one.is_leaving or one.is_drained(fleet.drains))
        running: dict[tuple[Key, str], int] = {}
        is_moving = any(slot.leaves for slots in before.values() for slot in slots)
        planned = Counter[Key]()
        for slot in (slot for slots in before.values() for slot in slots):
            planned[Key(slot.app, slot.version, slot.deployment)] += slot.count
        if leaving or is_moving or any(planned[need.key] > need.count for need in needs):
            for app in {need.key.app for need in needs}:
                running.update(self._running(app))
        inputs = needs, sorted((replace(one, number=0) for one in hosts), key=lambda one: one.worker), leaving
        if inputs != self._inputs:
            self._inputs, self._changed_at, self._is_even, self._placed = inputs, now, False, None
        elif not (self._is_even or is_moving) and self._is_steady(now):
            moved = rebalance(needs, [one for one in hosts if one.worker not in leaving], before)
            self._is_even = moved is None
            before = before if moved is None else moved
        if self._placed is not None and self._placed[0] == before and not (leaving or is_moving):
            made = self._placed[1]  # from the same: in most rounds nothing has changed
        else:
            made = place(needs, hosts, before, running, leaving)
            self._placed = before, made
        kept = {name: tuple(slot for slot in slots if slot.app in unread) for name, slots in before.items()}
        return Placement({name: slots + kept.get(name, ()) for name, slots in made.assignments.items()}, made.shortages)

    def _is_steady(self, now: float) -> bool:
        return now - self._changed_at >= _STEADY_S

    def _assign(self, placement: Placement, fleet: Fleet) -> tuple[Slot, ...] | None:
        """Write what has changed in the plan, in one act, unless another worker leads.

        Crash before it: workers go on with their plan, and the next leader computes the same. Crash after: the plan is
        whole.
        """
        gone = {name: () for name, one in fleet.plan.items() if name not in placement.assignments and one.slots}
        wanted: dict[str, tuple[Slot, ...]] = {**gone, **placement.assignments}
        stored = {name: one.slots for name, one in fleet.plan.items()}
        changed = {name: slots for name, slots in wanted.items() if slots != stored.get(name, ())}
        if changed:
            if failpoints.ARMED:
                failpoints.hit("lead.before_assign")
            is_done = self._store.assign(self._leadership.mine, changed)
            if failpoints.ARMED:
                failpoints.hit("lead.after_assign")
            if not is_done:
                self._leadership.lose()  # to another worker, or with all other data: the next renewal tells
                return None
        self._plan = wanted
        return wanted.get(self._worker, ())

    def _note_shortages(self, records: Sequence[ApplicationRecord], placement: Placement, fleet: Fleet) -> None:
        """Note what has no place, and counts that are not those of the options, for the status and for deploys.

        Crash on the way: the next round, or another leader, writes the rest.
        """
        short = {(one.key.app, one.key.deployment): one.why for one in placement.shortages}
        options: dict[tuple[str, str], ApplicationRecord] = {}
        for record in sorted(records, key=lambda record: record.place == ACTIVE):  # the active version counts
            options |= {(record.name, name): record for name in record.replicated}
        for (app, name), record in options.items():
            one, noted = record.deployments[name], fleet.scaled.get(app, {}).get(name)
            count = wanted_count(record, name, fleet.wishes.get(app, {}).get(name), noted)
            before = noted or Scaled(count if one.scaling else one.num_replicas, one.num_replicas)
            now = replace(before, count=count, configured=one.num_replicas, shortage=short.get((app, name), ""))
            if now != before:
                self._store.note(app, name, now)
