"""Computes which worker runs how many replicas of which deployment, with the fewest changes. It does no I/O.

Amounts are counted in ten-thousandths, so that parts of a CPU or GPU add up exactly.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from qserve.fleet.values import Key, Need, Placement, Shortage
from qserve.wire.application import Resources, condition_of
from qserve.wire.fleet import HostRecord, Slot

_WHOLE = 10_000
_PLACE, _GPU = "place", "GPU"
_NAMED = 3
"""How many workers a shortage names at most."""
Plan = Mapping[str, tuple[Slot, ...]]
Running = Mapping[tuple[Key, str], int]


def place(
    needs: Sequence[Need], hosts: Sequence[HostRecord], before: Plan, running: Running, leaving: Set[str] = frozenset()
) -> Placement:
    """Return the plan that fulfils the needs with the fewest changes.

    What is assigned stays where it is, as long as it is wanted and possible there. The order of needs and hosts is
    of no consequence.

    Parameters:
      before: What was planned last. Slots that leave go on until as many replicas run elsewhere as are wanted.
      running: How many replicas of a deployment take calls at a worker.
      leaving: Workers that are to run nothing any more.
    """
    workers = [_Worker(host) for host in sorted(hosts, key=lambda host: host.worker)]
    desk = _Desk(workers, sorted(needs, key=_order), before, running, leaving)
    for need in sorted(desk.needs, key=_may_exceed):  # those that may not find what the others leave
        desk.keep(need)
        desk.stop_surplus(need)
        desk.let_leave(need)
    for need in desk.needs:  # each has what it needs least before another one has all that it wants
        desk.add(need, min(need.least, need.count), may_exceed=_may_exceed(need))
    for need in desk.needs:
        desk.add(need, need.count, may_exceed=False)
        desk.call_back(need)
    return Placement({one.name: one.slots() for one in workers}, tuple(desk.shortages()))


def devices_of_pins(devices: tuple[str, ...], needs: Sequence[Need]) -> dict[Key, Counter[tuple[str, ...]]]:
    """Return the GPUs of each replica that a worker runs whatever is planned; none where they are too few."""
    one, found = _Worker(HostRecord("", "", devices=devices)), dict[Key, Counter[tuple[str, ...]]]()
    for need in needs:
        found[need.key] = Counter()
        for _ in range(need.count):
            chosen = one.devices_for(need.resources.gpus) or ()
            one.take(need, chosen)
            found[need.key][chosen] += 1
    return found


def rebalance(needs: Sequence[Need], hosts: Sequence[HostRecord], before: Plan) -> Plan | None:
    """Return the plan with one replica marked to leave, so that ``place`` evens a deployment out; None when it is even.

    It leaves a worker that runs more than its places for one with a free place, or one that runs more replicas of its
    deployment, or as many and of all of them, so that a host that comes back has its share again. Each move leaves the
    hosts less uneven than before, so there is an end.
    """
    workers = [_Worker(host) for host in sorted(hosts, key=lambda host: host.worker)]
    desk = _Desk(workers, sorted(needs, key=_order), before, {}, frozenset())
    for need in sorted(desk.needs, key=_may_exceed):
        desk.keep(need)
    for need in desk.needs:
        free = [one for one in desk.able(need) if desk.room(one, need) is not None]
        if not free:
            continue
        best = min(free, key=lambda one: _rank(one, need))
        for one in sorted(
            desk.able(need), key=lambda one: (one.places >= 0, -one.counts[need.key], one.places, one.name)
        ):
            if one.counts[need.key] and (one.places < 0 or _is_more_even(one, best, need)):
                return {**before, one.name: _with_one_leaving(before[one.name], need.key)}
    return None


def _rank(one: _Worker, need: Need) -> tuple[int, int, str]:
    """Return by what the worker for one more replica is chosen: fewest of them, then most that is free."""
    return one.counts[need.key], -one.places, one.name


def _is_more_even(one: _Worker, best: _Worker, need: Need) -> bool:
    """Whether a replica should move from a worker to another one."""
    more, takes = one.counts[need.key] - best.counts[need.key], _places(need.resources)
    return more >= 2 or (more == 1 and takes > 0 and best.places - one.places >= 2 * takes)


def could_run(host: HostRecord, need: Need) -> bool:
    """Return whether a worker that runs nothing else has room for a replica of a deployment."""
    one = _Worker(host)
    return _is_able(host, need) and one.lack(need) is None and one.devices_for(need.resources.gpus) is not None


def _with_one_leaving(slots: tuple[Slot, ...], key: Key) -> tuple[Slot, ...]:
    found = Counter({(_key(slot), slot.devices, slot.leaves): slot.count for slot in slots})
    one = max(part for part in found if part[0] == key and not part[2])
    found[one] -= 1
    found[one[0], one[1], True] += 1
    return _slots(found)


def _order(need: Need) -> tuple[float, float, Key]:
    cpus = need.resources.cpus
    return -need.resources.gpus, -(1.0 if cpus is None else cpus), need.key


def _may_exceed(need: Need) -> bool:
    return need.resources.cpus is None


def _key(slot: Slot) -> Key:
    return Key(slot.app, slot.version, slot.deployment)


def _units(amount: float) -> int:
    return round(amount * _WHOLE)


def _places(resources: Resources) -> int:
    return _WHOLE if resources.cpus is None else _units(resources.cpus)


def _slots(found: Mapping[tuple[Key, tuple[str, ...], bool], int]) -> tuple[Slot, ...]:
    return tuple(Slot(*key, count, devices, leaves) for (key, devices, leaves), count in sorted(found.items()) if count)


class _Worker:
    """A worker's free resources, and the replicas assigned to it.

    Attributes:
      places, memory, other, devices: What is free; places may fall below 0.
      counts: How many replicas of each deployment stay.
      leaving: The deployments of which some leave.
    """

    def __init__(self, host: HostRecord) -> None:
        self.host, self.name = host, host.worker
        self.places = _units(host.places)
        self.memory = host.memory
        self.other = {name: _units(amount) for name, amount in host.resources.items()}
        self.devices = dict.fromkeys(host.devices, _WHOLE)
        self.counts: Counter[Key] = Counter()
        self.leaving: set[Key] = set()
        self._found: Counter[tuple[Key, tuple[str, ...], bool]] = Counter()

    def slots(self) -> tuple[Slot, ...]:
        return _slots(self._found)

    def take(self, need: Need, devices: tuple[str, ...], leaves: bool = False, count: int = 1) -> None:
        """Assign ``count`` more replicas to it, or free their resources if ``count`` is negative."""
        takes = need.resources
        self.places -= count * _places(takes)
        self.memory -= count * takes.memory
        for name, amount in takes.other.items():
            self.other[name] = self.other.get(name, 0) - count * _units(amount)
        for device in devices:
            self.devices[device] -= count * min(_WHOLE, _units(takes.gpus))
        self._found[need.key, devices, leaves] += count
        self.counts[need.key] += 0 if leaves else count
        if leaves:
            self.leaving.add(need.key)

    def devices_for(self, gpus: float) -> tuple[str, ...] | None:
        """Return free devices: whole ones, or for a part of one the fullest that has room; None when there are none."""
        wanted = _units(gpus)
        if wanted < _WHOLE:
            free = [device for device, part in self.devices.items() if part >= wanted]
            best = min(free, key=self.devices.__getitem__, default=None)
            return () if not wanted else None if best is None else (best,)
        whole = [device for device, part in self.devices.items() if part == _WHOLE]
        return tuple(whole[: wanted // _WHOLE]) if len(whole) >= wanted // _WHOLE else None

    def has_devices(self, gpus: float, devices: tuple[str, ...]) -> bool:
        """Return whether these devices are free, and as many as a replica needs."""
        wanted = _units(gpus)
        part, count = (wanted, int(wanted > 0)) if wanted < _WHOLE else (_WHOLE, wanted // _WHOLE)
        return len(devices) == count and all(self.devices.get(device, 0) >= part for device in devices)

    def lack(self, need: Need) -> _Lack | None:
        """Return which resource it has too little of, apart from devices; None if it has enough."""
        takes = need.resources
        if self.host.memory and self.memory < takes.memory:
            return _Lack("MiB of memory", takes.memory / 2**20, self.memory / 2**20, self.host.memory / 2**20)
        for name, amount in sorted(takes.other.items()):
            if self.other.get(name, 0) < _units(amount):
                return _Lack(name, amount, self.other.get(name, 0) / _WHOLE, self.host.resources.get(name, 0.0))
        if self.places < _places(takes):
            return _Lack(_PLACE, _places(takes) / _WHOLE, max(0, self.places) / _WHOLE, self.host.places)
        return None


class _Lack(NamedTuple):
    what: str
    takes: float
    free: float
    total: float


class _Desk:
    """The state of one placement while it is computed."""

    def __init__(
        self, workers: list[_Worker], needs: list[Need], before: Plan, running: Running, leaving: Set[str]
    ) -> None:
        self._workers = workers
        self._before: defaultdict[tuple[str, Key], list[Slot]] = defaultdict(list)
        """The slots of a worker before, by deployment."""
        for name, slots in before.items():
            for slot in slots:
                self._before[name, _key(slot)].append(slot)
        self.needs = needs
        self._running = running
        self._leaving = leaving
        self._placed: Counter[Key] = Counter()
        self._spread: Counter[tuple[Key, str]] = Counter()
        """How many replicas of a deployment a host runs: it may have several workers."""

    def able(self, need: Need) -> Iterator[_Worker]:
        """Return the workers that may run replicas of a deployment, regardless of free resources."""
        return (one for one in self._workers if one.name not in self._leaving and _is_able(one.host, need))

    def room(self, one: _Worker, need: Need, may_exceed: bool = False) -> tuple[str, ...] | None:
        """Return the devices for one more replica; None where there is no room."""
        return one.devices_for(need.resources.gpus) if self._fits(one, need, may_exceed) else None

    def _fits(self, one: _Worker, need: Need, may_exceed: bool) -> bool:
        limit, lack = need.resources.per_host, one.lack(need)
        if limit is not None and self._spread[need.key, one.host.host] >= limit:
            return False
        return lack is None or (may_exceed and one.host.is_soft and lack.what == _PLACE)

    def _take(self, one: _Worker, need: Need, devices: tuple[str, ...], leaves: bool = False, count: int = 1) -> None:
        one.take(need, devices, leaves, count)
        self._spread[need.key, one.host.host] += count
        self._placed[need.key] += 0 if leaves else count

    def keep(self, need: Need) -> None:
        """Leave replicas where they are assigned, as far as possible."""
        takes = need.resources
        for one in self.able(need):
            for slot in self._before[one.name, need.key]:
                for _ in range(0 if slot.leaves else slot.count):
                    if one.has_devices(takes.gpus, slot.devices) and self._fits(one, need, _may_exceed(need)):
                        self._take(one, need, slot.devices)

    def stop_surplus(self, need: Need) -> None:
        """Stop those that do not run yet, then some on the workers with most of them, where least is free."""

        def order(one: _Worker) -> tuple[bool, int, int, str]:
            count = one.counts[need.key]
            return self._running.get((need.key, one.name), 0) < count, count, -one.places, one.name

        while self._placed[need.key] > need.count:
            one = max((one for one in self._workers if one.counts[need.key]), key=order)
            devices = max(slot.devices for slot in one.slots() if _key(slot) == need.key and not slot.leaves)
            self._take(one, need, devices, count=-1)

    def let_leave(self, need: Need) -> None:
        """Let replicas that leave go on until enough others run."""
        settled = sum(min(self._running.get((need.key, one.name), 0), one.counts[need.key]) for one in self._workers)
        wanted = need.count - settled
        for one in self._workers:
            for slot in self._before[one.name, need.key]:
                if slot.leaves or one.name in self._leaving:
                    for _ in range(min(slot.count, max(0, wanted))):
                        if one.has_devices(need.resources.gpus, slot.devices):
                            self._take(one, need, slot.devices, leaves=True)
                            wanted -= 1

    def add(self, need: Need, count: int, may_exceed: bool) -> None:
        """Start replicas on the workers with fewest of them, and among those where most is free."""
        for exceeds in (False, True)[: 1 + may_exceed]:
            if self._placed[need.key] >= count:
                return
            heap = [(*_rank(one, need), one) for one in self.able(need)]
            heapq.heapify(heap)
            while heap and self._placed[need.key] < count:
                *_, one = heapq.heappop(heap)
                devices = self.room(one, need, exceeds)
                if devices is not None:
                    self._take(one, need, devices)
                    heapq.heappush(heap, (*_rank(one, need), one))

    def call_back(self, need: Need) -> None:
        """Let replicas that should leave stay if there is no place for others."""
        for one in self.able(need):
            for slot in one.slots() if need.key in one.leaving else ():
                if _key(slot) == need.key and slot.leaves:
                    count = min(slot.count, need.count - self._placed[need.key])
                    self._take(one, need, slot.devices, leaves=True, count=-count)
                    self._take(one, need, slot.devices, count=count)

    # -- what is missing ---------------------------------------------------------------------------

    def shortages(self) -> Iterator[Shortage]:
        """Return the replicas that no worker has room for; none if no worker offers places at all."""
        for need in self.needs:
            missing = need.count - self._placed[need.key]
            offering = [one for one in self._workers if _offers(one.host) and one.host.app in ("", need.key.app)]
            if missing > 0 and offering:
                words = f"{missing} of {need.count} replicas have no place"
                yield Shortage(need.key, missing, f"{words}: {self._why(need, offering)}")

    def _why(self, need: Need, offering: Iterable[_Worker]) -> str:
        takes, staying = need.resources, [one for one in offering if one.name not in self._leaving]
        having = [one for one in staying if _has(one.host, need.key)]
        if not having:
            return "no worker has the code of this version" if staying else "all workers are drained"
        able = [one for one in having if _is_able(one.host, need)]
        if not able:
            labels = ", ".join(f"{name}={value}" for name, value in sorted(takes.labels.items()))
            return f"no worker has the labels {labels}"
        lacks = [(one, one.lack(need) or self._lack_of_devices(one, need)) for one in able]
        found = [(one, lack) for one, lack in lacks if lack is not None]
        if not found:
            return f"one host may run {takes.per_host} of them (max_replicas_per_node)"
        what = Counter(lack.what for _, lack in found).most_common(1)[0][0]
        named = [(one, lack) for one, lack in found if lack.what == what]
        free = ", ".join(f"{lack.free:g} of {lack.total:g} on {one.name}" for one, lack in named[:_NAMED])
        more = f" and {len(named) - _NAMED} more workers" if len(named) > _NAMED else ""
        takes_s = f"{named[0][1].takes:g} {what}{'s' * (what in (_PLACE, _GPU) and named[0][1].takes != 1)}"
        return f"each takes {takes_s}; free: {free}{more}"

    def _lack_of_devices(self, one: _Worker, need: Need) -> _Lack | None:
        gpus, parts = need.resources.gpus, one.devices.values()
        if one.devices_for(gpus) is not None:
            return None
        free = max(parts, default=0) / _WHOLE if gpus < 1 else [*parts].count(_WHOLE)  # what one replica could take
        return _Lack(_GPU, gpus, free, len(one.devices))


def _offers(host: HostRecord) -> bool:
    return host.places > 0


def _has(host: HostRecord, key: Key) -> bool:
    return _offers(host) and host.app in ("", key.app) and f"{key.app}:{key.version}" in host.has


def _is_able(host: HostRecord, need: Need) -> bool:
    labels = need.resources.labels
    return _has(host, need.key) and all(_matches(wanted, host.labels.get(name)) for name, wanted in labels.items())


def _matches(wanted: str, label: str | None) -> bool:
    values, is_one_of_them = condition_of(wanted)
    return (label in values) is is_one_of_them
