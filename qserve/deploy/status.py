"""The status of all that is deployed, in the words of Ray Serve, so that scripts written for it go on working."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum

from qserve.base.clock import clock
from qserve.broker.connection import if_permitted
from qserve.broker.load import BrokerStatus, QueueLoad, broker_status, loads_of
from qserve.broker.registry import ACTIVE, NEXT
from qserve.deploy.claim import STILL_S, UNDER_WAY
from qserve.deploy.installation import GIVEN_UP_AFTER, Installation, waiting_workers
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.fleet import Rollout, Scaled, Wish
from qserve.wire.status import FAILED, RUNNING, STARTING, ReplicaStatus

_RAYS_STATES = (STARTING, RUNNING)
_MORE_ROOM = "start a `qserve worker` that has room, or ask for fewer replicas"
_NO_SCALED, _NO_WISH = Scaled(-1), Wish()


class ApplicationStatus(StrEnum):
    """What an application is doing."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    RUNNING = "RUNNING"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"


class DeploymentStatus(StrEnum):
    """What a deployment is doing."""

    UPDATING = "UPDATING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    UPSCALING = "UPSCALING"
    DOWNSCALING = "DOWNSCALING"


class DeploymentStatusTrigger(StrEnum):
    """What has led to a deployment's status."""

    UNSPECIFIED = "UNSPECIFIED"
    CONFIG_UPDATE_STARTED = "CONFIG_UPDATE_STARTED"
    CONFIG_UPDATE_COMPLETED = "CONFIG_UPDATE_COMPLETED"
    UPSCALE_COMPLETED = "UPSCALE_COMPLETED"
    DOWNSCALE_COMPLETED = "DOWNSCALE_COMPLETED"
    AUTOSCALING = "AUTOSCALING"
    REPLICA_STARTUP_FAILED = "REPLICA_STARTUP_FAILED"
    HEALTH_CHECK_FAILED = "HEALTH_CHECK_FAILED"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    DELETING = "DELETING"


@dataclass(frozen=True)
class LastScaled:
    """When and why the number of replicas was changed last.

    Parameters:
      at: By the broker's clock, in seconds since 1970.
    """

    count: int
    reason: str
    at: float


@dataclass(frozen=True)
class DeploymentStatusOverview:
    """The status of a deployment.

    Parameters:
      status: HEALTHY if all its replicas run, UPDATING while they start, UPSCALING and DOWNSCALING while their number
        follows the load or `qserve scale`, UNHEALTHY if one has failed or no worker has any, DEPLOY_FAILED if the
        first version cannot be started.
      status_trigger: What has led to that.
      replica_states: The number of replicas that are STARTING and RUNNING.
      message: Why it is not healthy: the traceback of a constructor that failed, what is missing on the hosts, or which
        code the workers have that wait for another version. Also who has paused it, and why replicas are replaced.
      target_num_replicas: How many replicas it is to have.
      waiting_calls: How many calls no replica has fetched yet.
      running_calls: How many calls replicas hold.
      oldest_call_s: For how many seconds the oldest of those that wait has waited.
      failed_starts: How many starts in a row have failed.
      is_paused: Whether its replicas take no calls.
      last_scaled: When and why the number of replicas was changed last, if it was: ``count``, ``reason`` and ``at``.

    Example:
      deployment = serve.status().applications["default"].deployments["Greeter"]
      print(deployment.status.value, deployment.target_num_replicas, deployment.waiting_calls)  # HEALTHY 1 0
    """

    status: DeploymentStatus
    status_trigger: DeploymentStatusTrigger
    replica_states: dict[str, int]
    message: str
    target_num_replicas: int
    waiting_calls: int = 0
    running_calls: int = 0
    oldest_call_s: float = 0.0
    failed_starts: int = 0
    is_paused: bool = False
    last_scaled: LastScaled | None = None


@dataclass(frozen=True)
class ApplicationStatusOverview:
    """The status of an application.

    Parameters:
      status: RUNNING; DEPLOYING while a version is brought up; UNHEALTHY or DEPLOY_FAILED as one of its deployments is.
      message: That of the first deployment which has one, or why the last deploy has failed.
      last_deployed_time_s: When it was deployed, in seconds since 1970; 0 if that is not known.
      deployments: The status of each deployment, by name.
      route_prefix: Its path; None without HTTP.
      version: The version that serves.

    Example:
      application = serve.status().applications["default"]
      print(application.status.value, application.route_prefix, [*application.deployments])  # RUNNING / ['Greeter']
    """

    status: ApplicationStatus
    message: str
    last_deployed_time_s: float
    deployments: dict[str, DeploymentStatusOverview]
    route_prefix: str | None
    version: str


@dataclass(frozen=True)
class HostStatus:
    """A worker that offers places for replicas.

    Parameters:
      places: How many replicas it runs at most; 0 if it only runs those that it was started for.
      used: How many it runs.
      devices: Its GPUs.
      is_draining: Whether its host is to run nothing.
    """

    host: str
    places: int
    used: int
    devices: tuple[str, ...]
    is_draining: bool


@dataclass(frozen=True)
class ServeStatus:
    """The status of all applications on a broker, of its gateways and workers, and of the broker.

    Parameters:
      proxies: The processes of gateways, each with its state.
      applications: The status of each application, by name.
      target_capacity: The part of the replicas that is wanted, in percent; None for all.
      hosts: The workers by their ID.
      broker: What the broker stores, and what it may.

    Example:
      status = serve.status()
      print(len(status.proxies) > 0, status.applications["default"].status.value)  # True RUNNING
    """

    proxies: dict[str, str]
    applications: dict[str, ApplicationStatusOverview]
    target_capacity: float | None = None
    hosts: dict[str, HostStatus] = field(default_factory=dict)
    broker: BrokerStatus = field(default_factory=BrokerStatus)


def status_of(installation: Installation) -> ServeStatus:
    """Read the status of every application.

    What the broker's ACL forbids this user to read is left out: gateways, workers, and why deployments were scaled.

    Raises:
      BrokerUnavailable: The broker does not reply.
    """
    registry = installation.registry
    found = {name: registry.readable(name, ACTIVE, NEXT) for name in sorted(registry.names())}
    reports = {name: installation.reports(name).replicas() for name in found}
    applications = {
        name: _read_application(installation, versions, reports[name]) for name, versions in found.items() if versions
    }
    used = Counter(one.worker for reported in reports.values() for one in reported if one.state in _RAYS_STATES)
    drained = if_permitted(installation.fleet.drains)
    hosts = {
        worker: HostStatus(record.host, record.places, used[worker], record.devices, record.is_drained(drained))
        for worker, record in sorted(if_permitted(installation.fleet.hosts).items())
    }
    gateways = sorted(if_permitted(installation.gateways))
    broker = broker_status(installation.client, [installation.keys.pool(name) for name in found])
    capacities = [record.capacity for versions in found.values() for record in versions if record.capacity is not None]
    capacity = min(capacities, default=None)  # one file brings all, or an earlier one has brought some of them
    return ServeStatus(dict.fromkeys(gateways, "HEALTHY"), applications, capacity, hosts, broker)


def _read_application(
    installation: Installation,
    versions: Sequence[ApplicationRecord],
    reported: Sequence[ReplicaStatus],
) -> ApplicationStatusOverview:
    record = versions[0]
    names = [*record.replicated]
    loads = loads_of(installation.client, [record.stream(installation.keys, name) for name in names])
    return application_status(
        versions,
        reported,
        dict(zip(names, loads, strict=True)),
        if_permitted(lambda: installation.fleet.scaled(record.name)),
        if_permitted(lambda: installation.fleet.wishes(record.name)),
        clock.judge_ms(),
        if_permitted(lambda: {"": installation.fleet.rollout(record.name)[1]}).get(""),
    )


def application_status(
    versions: Sequence[ApplicationRecord],
    reported: Sequence[ReplicaStatus],
    loads: Mapping[str, QueueLoad],
    scaled: Mapping[str, Scaled],
    wishes: Mapping[str, Wish],
    now_ms: float,
    last: Rollout | None = None,
) -> ApplicationStatusOverview:
    """Return the status of an application.

    Parameters:
      versions: Its active version, and the one that is being deployed; one of them may be missing.
      reported: What its replicas report.
      loads, scaled, wishes: By deployment.
      last: The last deploy.
    """
    record, *newer = versions
    stuck = "" if last is None else _why_stuck(last, versions, now_ms)
    newer = [] if stuck else newer
    current = [replica for replica in reported if replica.version == record.version]
    deployments = {}
    for name, load in loads.items():
        found = deployment_status(
            record.deployments[name],
            [replica for replica in current if replica.deployment == name],
            is_first=record.place == NEXT,
            scaled=scaled.get(name, _NO_SCALED),
            wish=wishes.get(name, _NO_WISH),
            now_ms=now_ms,
        )
        deployments[name] = replace(
            found, waiting_calls=load.waiting, running_calls=load.running, oldest_call_s=load.oldest_s
        )
    status = _status_from({one.status for one in deployments.values()}, bool(newer))
    message = next((one.message for one in deployments.values() if one.message), "")
    if newer and not message:
        message = f"version {newer[0].version} is being deployed; version {record.version} serves"
        message += f", and {newer[0].share:.0%} of new requests go to the new one" if newer[0].share else ""
        added = {name: scaled[name].shortage for name in newer[0].replicated if name not in loads and name in scaled}
        message += "".join(f"\n{name}: {shortage}" for name, shortage in added.items() if shortage)
    if stuck and record.place == NEXT:
        status, message = ApplicationStatus.DEPLOY_FAILED, f"{stuck}; deploy it again"
    elif stuck and not message:
        message = f"{stuck}; version {record.version} serves"
    if last is not None and last.state == "failed" and last.version and not newer and not message:
        message = f"the last deploy, by {last.by}, failed; version {record.version} serves: {last.message}"
    return ApplicationStatusOverview(
        status, message, record.deployed_at, deployments, record.route_prefix, record.version
    )


def _why_stuck(last: Rollout, versions: Sequence[ApplicationRecord], now_ms: float) -> str:
    """Return that a deploy stands still whose version gets no requests; "" if it goes on, or there is none."""
    is_still = last.state == UNDER_WAY and 0 < last.beat_ms < now_ms - 1000 * STILL_S
    staged = {one.version for one in versions if one.place == NEXT and one.share_until_ms <= now_ms}
    if not is_still or last.version not in staged:
        return ""
    return f"the deploy of version {last.version}, by {last.by}, no longer responds and has no effect"


def _status_from(found: Set[DeploymentStatus], is_replaced: bool) -> ApplicationStatus:
    if DeploymentStatus.DEPLOY_FAILED in found:
        return ApplicationStatus.DEPLOY_FAILED
    if DeploymentStatus.UNHEALTHY in found:
        return ApplicationStatus.UNHEALTHY
    if DeploymentStatus.UPDATING in found or is_replaced:
        return ApplicationStatus.DEPLOYING
    return ApplicationStatus.RUNNING


def deployment_status(
    wanted: DeploymentRecord,
    replicas: Sequence[ReplicaStatus],
    *,
    is_first: bool = False,
    scaled: Scaled = _NO_SCALED,
    wish: Wish = _NO_WISH,
    now_ms: float = 0.0,
) -> DeploymentStatusOverview:
    """Return the status of a deployment, without its calls.

    Parameters:
      replicas: What the replicas of this version report.
      is_first: Whether no version serves yet.
      scaled: How many replicas were decided on; a count below 0 for the options' own.
    """
    if wanted.scaling is None and wish.holds_for(wanted.num_replicas):
        scaled = _scaled_by_hand(scaled, wish)
    states = Counter(replica.state for replica in replicas)
    failed = [replica for replica in replicas if replica.state == FAILED]
    target = scaled.count if scaled.count >= 0 else wanted.num_replicas
    running, failures = states[RUNNING], sum(replica.failures for replica in failed)
    status, trigger = _judge(running, target, failed, scaled, is_first, not replicas, wanted.scaling is not None)
    lines = []
    if failed or (running < target and replicas):
        lines.append(f"{running} of {target} run{_words_of(failed, target, now_ms)}")
    elif not replicas and target and not scaled.shortage:
        lines.append("no worker runs a replica of it: start `qserve worker`")
    lines += [scaled.shortage, _MORE_ROOM if scaled.shortage else "", waiting_workers(replicas)]
    leaving = Counter(replica.leaving for replica in replicas if replica.state == RUNNING and replica.leaving)
    lines += [f"{count} of its replicas is being replaced ({option})" for option, count in leaving.items()]
    if wish.is_paused:
        lines.append(f"paused by {wish.by}: its replicas take no calls until `qserve resume`")
    at_s = scaled.at_ms / 1000
    return DeploymentStatusOverview(
        status,
        trigger,
        {state: states[state] for state in _RAYS_STATES if states[state]},
        "\n".join(filter(None, lines)),
        target,
        failed_starts=failures,
        is_paused=wish.is_paused,
        last_scaled=LastScaled(scaled.count, scaled.reason, at_s) if scaled.reason else None,
    )


def _scaled_by_hand(scaled: Scaled, wish: Wish) -> Scaled:
    count = wish.count or 0
    trigger = "UPSCALE_COMPLETED" if count > wish.scaled_from else "DOWNSCALE_COMPLETED"
    return replace(scaled, count=count, reason=f"by {wish.scaled_by}", trigger=trigger, at_ms=wish.scaled_at_ms)


def _judge(
    running: int,
    target: int,
    failed: Sequence[ReplicaStatus],
    scaled: Scaled,
    is_first: bool,
    is_absent: bool,
    is_autoscaled: bool,
) -> tuple[DeploymentStatus, DeploymentStatusTrigger]:
    """Return a deployment's status, and what has led to it."""
    of = DeploymentStatusTrigger
    changing = of.AUTOSCALING if is_autoscaled else of.CONFIG_UPDATE_STARTED
    failures = sum(replica.failures for replica in failed)
    if failed:
        if is_first and failures >= GIVEN_UP_AFTER and not running:
            return DeploymentStatus.DEPLOY_FAILED, of.REPLICA_STARTUP_FAILED
        cannot_start = bool(failures) or not running
        return DeploymentStatus.UNHEALTHY, of.REPLICA_STARTUP_FAILED if cannot_start else of.HEALTH_CHECK_FAILED
    if is_absent and target and not is_first and not scaled.shortage:
        return DeploymentStatus.UNHEALTHY, of.HEALTH_CHECK_FAILED
    if running < target:
        return (DeploymentStatus.UPSCALING, changing) if scaled.trigger else (DeploymentStatus.UPDATING, changing)
    if running > target and scaled.trigger:
        return DeploymentStatus.DOWNSCALING, changing
    is_known = scaled.trigger in of.__members__
    return DeploymentStatus.HEALTHY, of(scaled.trigger) if is_known else of.CONFIG_UPDATE_COMPLETED


def _words_of(failed: Sequence[ReplicaStatus], target: int, now_ms: float) -> str:
    """Say how often starts have failed, when the next is tried, and why the last has failed."""
    if not failed:
        return ""
    failures = sum(replica.failures for replica in failed)
    left_s = (min(replica.next_try_ms for replica in failed) - now_ms) / 1000
    times = "1 time" if failures == 1 else f"{failures} times{' in all' if target > 1 else ''}"
    tried = f", tried {times}" if failures else ""
    return f"{tried}{f', next in {left_s:.0f} s' if left_s > 0 else ''}: {failed[0].message}"
