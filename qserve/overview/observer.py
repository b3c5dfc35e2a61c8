"""Looks at an installation again and again, and makes a picture of it each time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from qserve.base.clock import clock
from qserve.broker.connection import broker_errors, if_permitted
from qserve.broker.load import QueueLoad, broker_status, delayed_in, loads_of
from qserve.broker.registry import ACTIVE, NEXT
from qserve.deploy.claim import UNDER_WAY
from qserve.deploy.installation import Installation
from qserve.deploy.status import DeploymentStatusOverview, application_status
from qserve.exceptions import BrokerError
from qserve.fleet.totals import STALE_S, worker_totals
from qserve.overview.bottleneck import bottleneck_of
from qserve.overview.graphs import graphs_of
from qserve.overview.picture import Application, Broker, Change, Deployment, Graph, Host, Picture, Replica, Stored
from qserve.overview.rates import Rates
from qserve.wire import replies
from qserve.wire.application import ApplicationRecord
from qserve.wire.fleet import Drain, HostRecord, Rollout, Scaled, Wish
from qserve.wire.status import RUNNING, STARTING, ReplicaStatus
from qserve.wire.totals import Snapshot

_TOTALS_S = 1.0
"""How often what workers have counted is read; they publish it every two seconds."""
_STORES = 8
"""Of how many stores the large values are shown, for each worker."""
_REGISTRY_S = 10.0
"""How often versions are read that nobody has announced: old ones expire."""


@dataclass(frozen=True)
class _Versions:
    """The versions of an application: the active one first, or if there is none the staged one; and its graphs."""

    current: list[ApplicationRecord]
    old: list[ApplicationRecord]
    graphs: tuple[Graph, ...]


@dataclass(frozen=True)
class _Fleet:
    hosts: Mapping[str, HostRecord]
    drains: Mapping[str, Drain]
    scaled: Mapping[str, Mapping[str, Scaled]]
    wishes: Mapping[str, Mapping[str, Wish]]
    rollouts: Mapping[str, Rollout | None]


class Observer:
    """Makes pictures of an installation; one thread at a time may use it.

    What the broker's ACL forbids this user to read is left out.

    Parameters:
      installation: Its client needs the rights of the role ``operator`` to see everything.

    Example:
      >>> observer = Observer(Installation(Settings(broker_url="redis://localhost:6379")))
      >>> picture = observer.look()  # its rates are known once workers have published twice, after four seconds
    """

    def __init__(self, installation: Installation, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._installation = installation
        self._monotonic = monotonic
        self._rates = Rates()
        self._read_totals_at = self._read_registry_at = 0.0
        self._change = ""
        self._stored: dict[str, tuple[Stored, ...]] = {}
        self._versions: dict[str, _Versions] = {}
        self._last = Picture()

    def look(self) -> Picture:
        """Return what the installation looks like now; of a broker that does not reply, what was known last."""
        try:
            self._last = self._read()
        except BrokerError:
            self._last = replace(self._last, broker=replace(self._last.broker, is_up=False))
        return self._last

    def _read(self) -> Picture:
        one = self._installation
        status = broker_status(one.client)
        self._read_registry()
        self._read_totals()
        fleet = self._read_fleet([*self._versions])
        reports = {app: one.reports(app).replicas() for app in self._versions}
        loads = self._read_loads()
        applications = tuple(
            self._application(app, versions, reports[app], loads, fleet) for app, versions in self._versions.items()
        )
        replicas = tuple(_replica(app, report) for app, found in reports.items() for report in found)
        commits = self._rates.commits_ms
        broker = Broker(True, status.used_bytes, status.limit_bytes, status.clients, status.refuses, *commits)
        hosts = _hosts(fleet, [report for found in reports.values() for report in found], self._stored)
        dead_letters = if_permitted(self._dead_letters).get("", 0)
        return Picture(clock.now_ms() / 1000, broker, applications, replicas, hosts, dead_letters)

    @broker_errors()
    def _dead_letters(self) -> dict[str, int]:
        found: Any = self._installation.client.zcard(self._installation.keys.dead_letters)
        return {"": replies.number(found)}

    def _read_registry(self) -> None:
        """Read the versions again where a change was announced: records of large graphs are long."""
        registry, now = self._installation.registry, self._monotonic()
        change = registry.last_change()
        if change == self._change and now < self._read_registry_at:
            return
        found = {}
        for app in sorted(registry.names()):
            current = registry.readable(app, ACTIVE, NEXT)
            if current:
                known = {record.version for record in current}
                old = [record for record in registry.old(app) if record.version not in known]
                found[app] = _Versions(current, old, graphs_of(current[0]))
        self._versions, self._change, self._read_registry_at = found, change, now + _REGISTRY_S

    def _read_totals(self) -> None:
        one, now = self._installation, self._monotonic()
        if now >= self._read_totals_at:
            published = if_permitted(lambda: worker_totals(one.client, one.keys, one.seal))
            self._rates.take(published, STALE_S, clock.now_ms())
            self._stored = {worker: _stored(said.snapshot) for worker, said in published.items()}
            self._read_totals_at = now + _TOTALS_S

    def _read_fleet(self, apps: Sequence[str]) -> _Fleet:
        store = self._installation.fleet
        scaled = {app: if_permitted(partial(store.scaled, app)) for app in apps}
        wishes = {app: if_permitted(partial(store.wishes, app)) for app in apps}
        rollouts = {
            app: if_permitted(lambda app=app: {"": store.rollout(app)[1]}).get("")  # type: ignore[misc]
            for app in apps
        }
        return _Fleet(if_permitted(store.hosts), if_permitted(store.drains), scaled, wishes, rollouts)

    def _read_loads(self) -> dict[tuple[str, str, str], tuple[QueueLoad, int]]:
        """Return what is in each queue, and how many of its calls are delayed, by application, version, deployment."""
        one = self._installation
        places = {
            (app, record.version, name): record.stream(one.keys, name)
            for app, versions in self._versions.items()
            for record in (*versions.current, *versions.old)
            for name in record.replicated
        }
        streams = [*places.values()]
        loads = loads_of(one.client, streams) if streams else []
        delays = delayed_in(one.client, [one.keys.delayed_of(stream) for stream in streams])
        return dict(zip(places, zip(loads, delays, strict=True), strict=True))

    def _application(
        self,
        app: str,
        versions: _Versions,
        reported: Sequence[ReplicaStatus],
        loads: Mapping[tuple[str, str, str], tuple[QueueLoad, int]],
        fleet: _Fleet,
    ) -> Application:
        record, *newer = versions.current
        rollout = fleet.rollouts[app]
        status = application_status(
            versions.current,
            reported,
            {name: loads[app, record.version, name][0] for name in record.replicated},
            fleet.scaled[app],
            fleet.wishes[app],
            clock.judge_ms(),
            rollout,
        )
        deployments = tuple(
            self._deployment(
                record,
                name,
                found,
                [load for (of, _, other), load in loads.items() if (of, other) == (app, name)],
                fleet.wishes[app].get(name, Wish()),
            )
            for name, found in status.deployments.items()
        )
        return Application(
            app,
            record.route_prefix,
            status.status,
            record.version,
            status.message,
            record.deployed_at,
            deployments,
            versions.graphs,
            _change(rollout, newer[0] if newer else None, reported),
            bottleneck_of(deployments),
        )

    def _deployment(
        self,
        record: ApplicationRecord,
        name: str,
        status: DeploymentStatusOverview,
        loads: Sequence[tuple[QueueLoad, int]],
        wish: Wish,
    ) -> Deployment:
        options, rate = record.deployments[name], self._rates.of(record.name, name)
        running = sum(load.running for load, _ in loads)
        places = status.replica_states.get(RUNNING, 0) * options.max_ongoing
        return Deployment(
            name,
            status.status,
            sum(load.waiting for load, _ in loads),
            running,
            sum(delayed for _, delayed in loads),
            round(max((load.oldest_s for load, _ in loads), default=0.0), 3),
            *rate,
            status.replica_states,
            status.target_num_replicas,
            options.max_ongoing,
            round(min(1.0, running / places), 3) if places else 0.0,
            wish.by if wish.is_paused else "",
            options.scaling is not None,
            status.message,
        )


def _change(
    rollout: Rollout | None, staged: ApplicationRecord | None, reported: Sequence[ReplicaStatus]
) -> Change | None:
    if rollout is None or rollout.state != UNDER_WAY:
        if staged is None:
            return None
        rollout = Rollout(staged.version)
    running = Counter(one.deployment for one in reported if (one.version, one.state) == (rollout.version, RUNNING))
    share = staged.share if staged is not None else 0.0
    return Change(rollout.version, share, rollout.by, rollout.started_ms / 1000, dict(running))


def _replica(app: str, one: ReplicaStatus) -> Replica:
    return Replica(one.name, app, one.deployment, one.version, one.state, one.host, one.worker, one.pid, one.message)


def _hosts(
    fleet: _Fleet, reported: Sequence[ReplicaStatus], stored: Mapping[str, tuple[Stored, ...]]
) -> tuple[Host, ...]:
    used = Counter(one.worker for one in reported if one.state in (RUNNING, STARTING))
    return tuple(
        Host(
            worker,
            one.host,
            one.places,
            used[worker],
            one.devices,
            one.is_drained(fleet.drains),
            stored.get(worker, ()),
        )
        for worker, one in sorted(fleet.hosts.items())
    )


def _stored(said: Snapshot) -> tuple[Stored, ...]:
    """Return what a worker says of the large values in each store, or of the first few where there are many."""
    values, taken, oldest, fallbacks = (
        {labels[0]: value for labels, value in said[name].values.items() if labels and not isinstance(value, tuple)}
        if name in said
        else {}
        for name in ("payload_values", "payload_bytes", "payload_oldest_seconds", "payload_fallbacks")
    )
    return tuple(
        Stored(
            store,
            round(values.get(store, 0)),
            round(taken.get(store, 0)),
            oldest.get(store, 0.0),
            round(fallbacks.get(store, 0)),
        )
        for store in sorted({*values, *fallbacks})[:_STORES]
    )
