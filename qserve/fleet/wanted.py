"""Computes how many replicas of each deployment are wanted now. It does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import floor

from qserve.broker.registry import NEXT
from qserve.fleet.values import Key, Need
from qserve.wire.application import ApplicationRecord, Scaling
from qserve.wire.fleet import HostRecord, Rollout, Scaled, Wish


def needs_of(
    records: Sequence[ApplicationRecord],
    rollouts: Mapping[str, Rollout],
    scaled: Mapping[str, Mapping[str, Scaled]],
    wishes: Mapping[str, Mapping[str, Wish]],
    pins: Mapping[Key, int],
) -> Iterator[Need]:
    """Yield how many replicas of each deployment need a place, without those that workers run in any case.

    Parameters:
      records: The active version of each application, and the one that is being deployed.
      rollouts, scaled, wishes: What is stored of them, by application.
      pins: Replicas that workers run regardless of the plan; see ``pins_of``.
    """
    for record in records:
        limits = _limits(record, rollouts.get(record.name))
        for name, one in record.replicated.items():
            key = Key(record.name, record.version, name)
            at_least = 1 if record.place == NEXT else 0
            wish, decided = wishes.get(record.name, {}).get(name), scaled.get(record.name, {}).get(name)
            count = wanted_count(record, name, wish, decided, at_least)
            count = min(count, limits.get(name, count))
            scaling = scaling_of(record, name)
            least = count if scaling is None else max(scaling.min_replicas, at_least)
            others = pins.get(key, 0)
            yield Need(key, max(0, count - others), max(0, min(least, count) - others), one.resources)


def wanted_count(
    record: ApplicationRecord, name: str, wish: Wish | None, decided: Scaled | None, at_least: int = 0
) -> int:
    """Return how many replicas are wanted of a deployment, before a deploy or pinned replicas take their share.

    A wish holds as long as ``num_replicas`` is what it was when the wish was made. Where the load decides, a new
    version has ``at_least`` one replica, so that a broken one shows.
    """
    one, scaling = record.deployments[name], scaling_of(record, name)
    if scaling is None:
        if wish is None or wish.count is None or wish.configured != one.num_replicas:
            return _part(one.num_replicas, record.capacity)
        return wish.count
    if decided is not None:
        return min(scaling.max_replicas, max(scaling.min_replicas, decided.count, at_least))
    first = scaling.min_replicas if scaling.initial_replicas is None else scaling.initial_replicas
    return min(scaling.max_replicas, max(1, first))


def started_count(record: ApplicationRecord, name: str, wish: Wish | None, is_kept: bool) -> int:
    """Return how many replicas must run before a version serves.

    Parameters:
      is_kept: Whether it is a version that served before: then load may have taken all replicas away.
    """
    scaling = scaling_of(record, name)
    if scaling is None:
        return wanted_count(record, name, wish, None)
    return min(scaling.max_replicas, max(0 if is_kept else 1, scaling.min_replicas))


def scaling_of(record: ApplicationRecord, name: str) -> Scaling | None:
    """Return how the load decides on a deployment, with limits for the application's part of its capacity."""
    scaling = record.deployments[name].scaling
    if scaling is None or record.capacity is None:
        return scaling
    least, most = (_part(number, record.capacity) for number in (scaling.min_replicas, scaling.max_replicas))
    first = None if scaling.initial_replicas is None else _part(scaling.initial_replicas, record.capacity)
    return replace(scaling, min_replicas=least, max_replicas=most, initial_replicas=first)


def _part(count: int, percent: float | None) -> int:
    """Return a part of so many replicas, by Ray Serve's rule: rounded, and at least one where there are any."""
    if percent is None or not count * percent:
        return count if percent is None else 0
    return max(1, floor(count * percent / 100 + 0.5))


def _limits(record: ApplicationRecord, rollout: Rollout | None) -> Mapping[str, int]:
    """Return how many replicas of this version a deploy in progress leaves room for.

    For the old version its limits hold after its end as well, as long as it still looks active: who plans reads the end
    of a deploy and the version that is active now one after the other.
    """
    if rollout is None or rollout.state == "failed":
        return {}
    new = rollout.new if rollout.state == "under way" else {}
    return {rollout.version: new, rollout.old: rollout.keep}.get(record.version, {})


def pins_of(hosts: Iterable[HostRecord], records: Iterable[ApplicationRecord]) -> dict[Key, int]:
    """Return how many replicas of each deployment workers run regardless of the plan."""
    found: dict[Key, int] = {}
    pins = [host.pins for host in hosts if host.pins]
    for record in records if pins else ():
        for name in record.deployments:
            key = Key(record.name, record.version, name)
            found[key] = sum(one.get(key.text, 0) for one in pins)
    return found
