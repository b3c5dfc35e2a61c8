"""What operators want of what runs: how many replicas, whether they take calls, and which hosts are to be emptied."""

from __future__ import annotations

import getpass
import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from qserve.base.clock import clock
from qserve.base.numbers import whole_number
from qserve.broker.registry import ACTIVE, NEXT
from qserve.deploy.installation import Installation
from qserve.deploy.named import deployments_named, not_found, versions_named
from qserve.exceptions import UsageProblem
from qserve.fleet.values import Key
from qserve.fleet.wanted import pins_of, wanted_count
from qserve.wire.application import ApplicationRecord
from qserve.wire.fleet import Drain, HostRecord, Wish
from qserve.wire.status import RUNNING, STARTING

MOST_REPLICAS = 10_000
"""The most replicas that `qserve scale` takes: a slip of the hand must not start more."""


def pause(
    installation: Installation, app: str | None, deployment: str | None, is_paused: bool, by: str = ""
) -> dict[str, Wish]:
    """Have the replicas of a deployment, or of all of an application, take no calls, or take them again.

    Crash on the way: some deployments have changed, and the same again changes the others. Replicas know it within
    seconds; one that starts later does as well.

    Parameters:
      app: The application; None for the only one.
      by: Who asks, for those who wonder why; "" for the user of this process.

    Returns:
      What was wanted of each of these deployments before.

    Raises:
      UsageProblem: There is no such application or deployment; nothing was changed.
      BrokerUnavailable: The broker does not reply.
    """
    record = versions_named(installation, app)[0]
    names = deployments_named(record, deployment)
    known = installation.fleet.wishes(record.name)
    before = {name: known.get(name, Wish()) for name in names}
    changed = [name for name in names if before[name].is_paused != is_paused]
    for name in changed:
        wish = replace(before[name], is_paused=is_paused, by=by or _who(), at_ms=clock.stamp_ms())
        installation.fleet.wish(record.name, name, wish)
    if changed:
        installation.registry.announce(record.name)
    return {f"{record.name}/{name}": wish for name, wish in before.items()}


def scale(installation: Installation, app: str, deployment: str, count: int | str, by: str = "") -> tuple[int, int]:
    """Have a deployment run so many replicas, until somebody deploys another ``num_replicas``.

    Crash after the wish is stored, before it is announced: the worker that leads reads it a second later.

    Parameters:
      count: From 0 to ``MOST_REPLICAS``.
      by: Who asks; "" for the user of this process.

    Returns:
      How many were wanted before, and now.

    Raises:
      UsageProblem: There is no such deployment, the load decides on its number, or workers that were started for it
        do; or the number is not possible. Nothing was changed.
      BrokerUnavailable: The broker does not reply.
    """
    wanted = _count(count)
    record = versions_named(installation, app)[0]
    (name,) = deployments_named(record, deployment)
    one, fleet = record.deployments[name], installation.fleet
    if one.scaling is not None:
        limits = f"between {one.scaling.min_replicas} and {one.scaling.max_replicas}"
        raise UsageProblem(
            f"deployment {name!r} scales by its load, {limits}: change its autoscaling_config, or give it num_replicas"
        )
    hosts = fleet.hosts().values()
    _refuse_pinned(hosts, record, name, wanted)
    known = fleet.wishes(record.name).get(name, Wish())
    before = wanted_count(record, name, known, fleet.scaled(record.name).get(name))
    if before != wanted:
        who, at_ms = by or f"{_who()} with `qserve scale`", clock.stamp_ms()
        wish = replace(known, count=wanted, configured=one.num_replicas, scaled_by=who, scaled_at_ms=at_ms)
        fleet.wish(record.name, name, replace(wish, scaled_from=before))
        installation.registry.announce(record.name)
    return before, wanted


def _count(given: int | str) -> int:
    try:
        count = whole_number(str(given))
    except ValueError:
        count = -1
    if not 0 <= count <= MOST_REPLICAS:
        raise UsageProblem(f"the number of replicas must be a whole number from 0 to {MOST_REPLICAS}; got {given}")
    return count


def _refuse_pinned(hosts: Iterable[HostRecord], record: ApplicationRecord, name: str, count: int) -> None:
    """Refuse a count that workers which run a fixed number of replicas do not let happen."""
    key = Key(record.name, record.version, name).text
    pinned = {host.worker: host.pins[key] for host in hosts if host.pins.get(key)}
    has_places = any(host.places and host.app in ("", record.name) for host in hosts)
    if pinned and (not has_places or count < sum(pinned.values())):
        where = ", ".join(f"{number} at {worker}" for worker, number in sorted(pinned.items()))
        raise UsageProblem(
            f"deployment {name!r} has replicas that workers were started for ({where}): start or stop such workers"
        )


# -- hosts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Emptied:
    """What still runs on a host, by ``application/deployment``.

    Parameters:
      moving: Replicas that are placed there; they end once they run elsewhere.
      pinned: Replicas that its workers were started for; they end with their worker.
    """

    moving: dict[str, int]
    pinned: dict[str, int]


def drain(installation: Installation, host: str, is_forced: bool = False) -> bool:
    """Have a host, or one worker, run nothing; return False if that was said before.

    What runs there starts elsewhere first. It holds until it is undone, also if the host is restarted.

    Parameters:
      host: The name of a host, or the id of a worker.
      is_forced: Also where no other worker offers places.

    Raises:
      UsageProblem: There is no such host, or nowhere else to run what it runs; nothing was changed.
      BrokerUnavailable: The broker does not reply.
    """
    hosts, drains = installation.fleet.hosts(), installation.fleet.drains()
    mine = _workers_named(hosts.values(), host)
    if host in drains:
        return False
    others = [one for one in hosts.values() if one not in mine and one.places and not one.is_drained(drains)]
    apps = {one.app for one in mine if one.places and not any(other.app in ("", one.app) for other in others)}
    if apps and not is_forced:
        of = "all applications" if "" in apps else f"application {', '.join(map(repr, sorted(apps)))}"
        raise UsageProblem(
            f"{host!r} is the last that offers places for {of}: start another worker first, or pass --force"
        )
    installation.fleet.drain(Drain(host, _who(), clock.stamp_ms()))
    return True


def undrain(installation: Installation, host: str) -> bool:
    """Let a host run what is placed there again; return False if it did already.

    Raises:
      UsageProblem: There is no such host; nothing was changed.
      BrokerUnavailable: The broker does not reply.
    """
    if host in installation.fleet.drains():
        installation.fleet.undrain(host)
        return True
    _workers_named(installation.fleet.hosts().values(), host)
    return False


def left_on(installation: Installation, host: str) -> Emptied:
    """Return what still runs on a host, or at one worker.

    Raises:
      BrokerUnavailable: The broker does not reply.
    """
    hosts = [one for one in installation.fleet.hosts().values() if host in (one.host, one.worker)]
    workers, registry = {one.worker for one in hosts}, installation.registry
    running: Counter[str] = Counter()
    pinned: Counter[str] = Counter()
    for app in registry.names():
        records = registry.readable(app, ACTIVE, NEXT)
        for key, number in pins_of(hosts, records).items():
            pinned[f"{app}/{key.deployment}"] += number
        for one in installation.reports(app).replicas():
            running[f"{app}/{one.deployment}"] += one.worker in workers and one.state in (RUNNING, STARTING)
    moving = {name: left for name in sorted(running) if (left := running[name] - pinned[name]) > 0}
    return Emptied(moving, {name: number for name, number in sorted(pinned.items()) if number and running[name]})


def _workers_named(hosts: Iterable[HostRecord], host: str) -> list[HostRecord]:
    found = [one for one in hosts if host in (one.host, one.worker)]
    if not found:
        raise not_found("host", host, "has no worker; there are:", sorted({one.host for one in hosts}))
    return found


def _who() -> str:
    """Return who asks, for those who wonder why."""
    with suppress(OSError, KeyError, ImportError):  # a container may have no name for its user
        return f"{getpass.getuser()} on {socket.gethostname()}"
    return socket.gethostname()
