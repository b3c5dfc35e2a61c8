"""Autoscaling, which the leading worker runs: it reads loads, remembers them, and changes the number of replicas."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qserve.base.keys import Keys
from qserve.broker.connection import Client, broker_errors
from qserve.broker.registry import ACTIVE
from qserve.exceptions import BrokerError, BrokerUnavailable
from qserve.fleet.decide import decide, looked_back, remember
from qserve.fleet.load import read_loads
from qserve.fleet.stats import Stats
from qserve.fleet.store import Fleet
from qserve.fleet.values import Asked, Decision, Load
from qserve.fleet.wanted import scaling_of, wanted_count
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Scaling
from qserve.wire.fleet import FOR_ALL, HostRecord, Scaled
from qserve.wire.replies import warn_once
from qserve.wire.status import ReplicaStatus

AUTOSCALING = "AUTOSCALING"
"""What Ray Serve calls the cause of a change in the number of replicas."""
_NOTED_S = 10.0
"""If a delay is at least this long, its beginning is stored for the next leader."""

Place = tuple[str, str]
Ask = Callable[[ApplicationRecord, str, Mapping[str, Any]], Asked | None]
"""Gives a context to a deployment's policy, and returns its newest answer; None while there is no new one."""
Reports = Callable[[str], Sequence[ReplicaStatus]]
"""Returns the reports of an application's replicas."""


def ask_nobody(record: ApplicationRecord, deployment: str, told: Mapping[str, Any]) -> Asked | None:
    """Stand in for a policy where no process can run it."""
    return Asked(error="no worker can ask it")


@dataclass
class _Seen:
    """The loads of one deployment, its last decision, and the last answer of its policy; None before the first.

    Parameters:
      stats: What its replicas report for its policy.
      version: The active one; "" at first.
    """

    history: list[Load] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    decision: Decision | None = None
    asked: float | None = None
    up_s: float | None = None
    down_s: float | None = None
    version: str = ""


class Autoscaler:
    """Decides from the load how many replicas each deployment should have.

    Loads are kept in memory. Counts, and since when the load asks for another, are read from what is noted when another
    worker has led before.

    Parameters:
      client: A connection to the broker.
      keys: The installation's key names.
      monotonic: Seconds; replaced in tests.
      ask: Asks policies of the user's, and does not wait for them.
      reports: Replicas say there what their policies want to know.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        monotonic: Callable[[], float] = time.monotonic,
        ask: Ask = ask_nobody,
        reports: Reports = lambda app: (),
    ) -> None:
        self._client = client
        self._keys = keys
        self._clock = monotonic
        self._ask = ask
        self._reports = reports
        self._seen: dict[Place, _Seen] = {}

    def __call__(self, records: Sequence[ApplicationRecord], fleet: Fleet) -> Mapping[Place, Scaled]:
        """Return the new counts, for the deployments whose count or reason has changed.

        Parameters:
          records: The active and the staged version of each application; the load is that of both.

        Raises:
          BrokerUnavailable: Loads could not be read; no count changes.
        """
        scaled = _scaled_by_load(records, fleet)
        self._seen = {place: self._seen.get(place, _Seen()) for place in scaled}
        if not scaled:
            return {}
        queues = [
            (place, record.stream(self._keys, place[1]))
            for place in scaled
            for record in records
            if record.name == place[0] and place[1] in record.deployments
        ]
        now = self._clock()
        loads: dict[Place, Load] = {}
        try:
            read = read_loads(self._client, [queue for _, queue in queues], now)
        except BrokerUnavailable:
            raise
        except BrokerError as error:  # deployments that do not scale by load go on
            warn_once(f"the load of deployments cannot be read, and their numbers of replicas stay: {error}")
            return {}
        for (place, _), load in zip(queues, read, strict=True):
            loads[place] = _added(loads.get(place), load)
        found: dict[Place, Scaled] = {}
        for place, record in scaled.items():
            changed = self._decide(place, record, fleet.scaled.get(place[0], {}).get(place[1]), loads[place], now)
            if changed is not None:
                found[place] = changed
        return found

    def _decide(
        self, place: Place, record: ApplicationRecord, noted: Scaled | None, load: Load, now: float
    ) -> Scaled | None:
        seen, one = self._seen[place], record.deployments[place[1]]
        scaling = scaling_of(record, one.name) or Scaling()
        current = wanted_count(record, one.name, None, None) if noted is None else noted.count
        last = noted or Scaled(current, one.num_replicas)
        if seen.version not in ("", record.version) and current == 0 < scaling.max_replicas:
            # it has a replica already, as every new version; that goes as any other one does
            seen.version, at_ms = record.version, self._broker_ms()
            return Scaled(1, one.num_replicas, "a new version was deployed", AUTOSCALING, at_ms, last.shortage)
        seen.version = record.version
        before = seen.decision
        if before is None or before.count != current:
            before = self._noted_decision(scaling, noted, current, now)
        remember(seen.history, load, scaling)
        changed = self._ask_policy(seen, record, one, last, now) if scaling.policy else last
        asked = current if scaling.policy and seen.asked is None else seen.asked
        seen.decision = found = decide(seen.history, current, scaling, before, now, asked)
        above = found.above_since if scaling.upscale_delay_s >= _NOTED_S else None
        below = found.below_since if scaling.downscale_delay_s >= _NOTED_S else None
        is_same = (bool(last.above_ms), bool(last.below_ms)) == (above is not None, below is not None)
        if found.count == current and is_same:
            return None if changed == last else changed
        now_ms = self._broker_ms()
        above_ms, below_ms = (0.0 if since is None else now_ms - (now - since) * 1000 for since in (above, below))
        if found.count != current:
            seen.up_s, seen.down_s = (
                (now_ms / 1000, seen.down_s) if found.count > current else (seen.up_s, now_ms / 1000)
            )
            changed = replace(changed, count=found.count, reason=found.reason, trigger=AUTOSCALING, at_ms=now_ms)
        return replace(changed, configured=one.num_replicas, above_ms=above_ms, below_ms=below_ms)

    def _ask_policy(
        self, seen: _Seen, record: ApplicationRecord, one: DeploymentRecord, last: Scaled, now: float
    ) -> Scaled:
        """Ask the user's policy, and return the decision to store, with the policy's state or why it gave no answer."""
        scaling = scaling_of(record, one.name) or Scaling()
        waiting, running = looked_back(seen.history, scaling, now)
        name, version = one.name, record.version
        if seen.stats.is_due(now):
            mine = (one for one in self._reports(record.name) if one.deployment == name and one.version == version)
            seen.stats.add(mine, scaling, now, time.time())
        told = {
            **seen.stats.told(scaling),
            "deployment_name": one.name,
            "app_name": record.name,
            "current_num_replicas": last.count,
            "target_num_replicas": last.count,
            "total_num_requests": waiting + running,
            "total_queued_requests": waiting,
            "total_running_requests": running,
            "oldest_request_age_s": seen.history[-1].oldest_s,
            "policy_state": last.policy_state_value,
            "last_scale_up_time": seen.up_s,
            "last_scale_down_time": seen.down_s,
            "current_time": time.time(),
            "capacity_adjusted_min_replicas": scaling.min_replicas,
            "capacity_adjusted_max_replicas": scaling.max_replicas,
            "config": asdict(one.scaling or scaling),
        }
        asked = self._ask(record, one.name, told)
        if asked is None:
            return last
        if asked.error:
            seen.asked = None
            why = f"it stays as it is: its policy {scaling.policy} failed: {asked.error}"
            return last if why == last.reason else replace(last, reason=why, at_ms=self._broker_ms())
        seen.asked = asked.count
        return replace(last, policy_state=json.dumps(asked.state) if asked.state else "")

    def _noted_decision(self, scaling: Scaling, noted: Scaled | None, current: int, now: float) -> Decision:
        """Return the decision of the previous leader; a delay whose beginning it stored continues."""
        if noted is None or not (noted.above_ms or noted.below_ms):
            return Decision(current, "" if noted is None else noted.reason)
        now_ms = self._broker_ms()

        def since(then_ms: float, longest_s: float) -> float | None:
            # never longer than the delay: the broker's clock may have jumped
            return now - min(longest_s, max(0.0, (now_ms - then_ms) / 1000)) if then_ms else None

        return Decision(
            current,
            noted.reason,
            since(noted.above_ms, scaling.upscale_delay_s),
            since(noted.below_ms, max(scaling.downscale_delay_s, scaling.downscale_to_zero_delay_s or 0.0)),
        )

    def _broker_ms(self) -> float:
        with broker_errors():
            found: tuple[int, int] = self._client.time()
        return found[0] * 1000 + found[1] / 1000


def _scaled_by_load(records: Sequence[ApplicationRecord], fleet: Fleet) -> dict[Place, ApplicationRecord]:
    """Return the deployments that scale by load, without those that run only where an operator has pinned them."""
    found: dict[Place, ApplicationRecord] = {}
    for record in sorted(records, key=lambda record: record.place == ACTIVE):  # the active version's options count
        wishes = fleet.wishes.get(record.name, {})
        is_offered = _offered(fleet.hosts.values(), record)
        for name, one in record.deployments.items():
            is_paused = any(wishes[key].is_paused for key in (name, FOR_ALL) if key in wishes)
            if one.scaling is not None and one.replicated and is_offered and not is_paused:
                found[record.name, name] = record
    return found


def _offered(hosts: Iterable[HostRecord], record: ApplicationRecord) -> bool:
    """Return whether a worker offers places to an application."""
    return any((host.places or host.is_soft) and host.app in ("", record.name) for host in hosts)


def _added(before: Load | None, load: Load) -> Load:
    if before is None:
        return load
    return replace(
        load,
        waiting=before.waiting + load.waiting,
        running=before.running + load.running,
        oldest_s=max(before.oldest_s, load.oldest_s),
    )
