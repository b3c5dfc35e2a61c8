"""What the broker knows of an installation, as metrics: queues, replicas, dead letters and the broker itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from qserve.base.clock import clock
from qserve.base.keys import Keys
from qserve.broker.connection import Client, broker_errors, if_permitted
from qserve.broker.load import broker_status, delayed_in, loads_of
from qserve.broker.registry import ACTIVE, NEXT, Registry
from qserve.exceptions import PayloadError
from qserve.fleet.store import FleetStore
from qserve.metrics.table import TABLE
from qserve.wire.application import ApplicationRecord
from qserve.wire.fleet import Scaled, Wish
from qserve.wire.replies import each, number, text
from qserve.wire.sealing import Seal
from qserve.wire.status import RUNNING, ReplicaStatus, report_place
from qserve.wire.totals import Family, Labels, Snapshot

_Found = defaultdict[str, dict[Labels, float]]


def broker_facts(client: Client, keys: Keys, seal: Seal, registry: Registry) -> Snapshot:
    """Read them all; what the broker's ACL forbids this user to read is left out.

    Raises:
      BrokerError: The broker does not reply.
    """
    found: _Found = defaultdict(dict)
    broker, store = broker_status(client), FleetStore(client, keys, seal)
    found["broker_up"][()] = 1
    found["broker_used_bytes"][()] = broker.used_bytes
    found["broker_limit_bytes"][()] = broker.limit_bytes
    found["broker_clients"][()] = broker.clients
    found["dead_letters"].update(((), count) for count in if_permitted(lambda: _dead_letters(client, keys)).values())
    for app in sorted(registry.names()):
        versions = registry.readable(app, ACTIVE, NEXT)
        if versions:
            _add_queues(client, keys, [*versions, *registry.old(app)], found)
            _add_replicas(client, keys, seal, versions[0], store, found)
    return {name: Family(TABLE[name], {**values}) for name, values in found.items()}


@broker_errors()
def _dead_letters(client: Client, keys: Keys) -> dict[str, int]:
    return {"": number(client.zcard(keys.dead_letters))}


def _add_queues(client: Client, keys: Keys, versions: Sequence[ApplicationRecord], found: _Found) -> None:
    """Add what is in the queues, of all versions of a deployment together."""
    places = [(record, deployment) for record in versions for deployment in record.replicated]
    streams = [record.stream(keys, deployment) for record, deployment in places]
    delays = delayed_in(client, [keys.delayed_of(stream) for stream in streams])
    for (record, deployment), load, delayed in zip(places, loads_of(client, streams), delays, strict=True):
        place = record.name, deployment
        for name, amount in (
            ("queue_depth", load.waiting),
            ("calls_running", load.running),
            ("serve_autoscaling_total_requests", load.waiting + load.running),
            ("delayed_calls", delayed),
        ):
            found[name][place] = found[name].get(place, 0) + amount
        ages = found["queue_oldest_age_seconds"]
        ages[place] = max(ages.get(place, 0.0), load.oldest_s)


def _add_replicas(
    client: Client, keys: Keys, seal: Seal, record: ApplicationRecord, store: FleetStore, found: _Found
) -> None:
    """Add how many replicas the active version has, and is to have."""
    app, now_ms = record.name, clock.judge_ms()
    with broker_errors():
        reports: Any = client.hgetall(keys.pool(app))

    def read(item: tuple[bytes, bytes]) -> ReplicaStatus:
        name = text(item[0], "the name of a replica")
        status = ReplicaStatus.decode(seal.open(report_place(app, name), item[1]))
        if status.name != name:
            raise PayloadError(f"the report of replica {name!r} belongs to another replica")
        return status

    running: Counter[str] = Counter()
    for replica in each(reports.items(), read):
        is_current = replica.version == record.version and (not replica.until_ms or replica.until_ms > now_ms)
        if replica.state == RUNNING and is_current:
            running[replica.deployment] += 1
            found["serve_deployment_replica_healthy"][app, replica.deployment, replica.name] = 1
    scaled, wishes = if_permitted(lambda: store.scaled(app)), if_permitted(lambda: store.wishes(app))
    for name in record.replicated:
        options, wish = record.deployments[name], wishes.get(name, Wish())
        target = scaled.get(name, Scaled(-1)).count
        if options.scaling is None and wish.holds_for(options.num_replicas) and wish.count is not None:
            target = wish.count
        found["serve_autoscaling_target_replicas"][app, name] = target if target >= 0 else options.num_replicas
        found["replicas_running"][app, name] = running[name]
