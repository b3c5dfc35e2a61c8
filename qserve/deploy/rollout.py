"""Deploy an application: register a version, wait until its replicas run, and make it the active one."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from qserve.base import failpoints
from qserve.base.clock import Deadline
from qserve.base.log import get_logger
from qserve.broker.connection import if_permitted
from qserve.broker.registry import ACTIVE, Registry
from qserve.deploy.claim import Claim
from qserve.deploy.installation import GIVEN_UP_AFTER, Installation, ReplicaReports, waiting_workers
from qserve.deploy.registration import Release
from qserve.deploy.steps import Counts, Start, Surge
from qserve.exceptions import DeployError, QserveException, UsageProblem
from qserve.fleet.wanted import started_count
from qserve.wire.application import DIFFERING, ApplicationRecord
from qserve.wire.fleet import Wish
from qserve.wire.replies import order_of
from qserve.wire.status import FAILED, RUNNING, ReplicaStatus

log: Final = get_logger(__name__)
READY_TIMEOUT_S = 60.0
GATEWAY_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.01
_SHORT_AFTER_S = 1.0
"""What has no place is told after so long, and looked at again after so long: at first nothing has a place."""


def roll_out(
    installation: Installation,
    release: Release,
    *,
    restart: bool = False,
    surge: Surge | None = None,
    gateways: int = 0,
    ready_timeout_s: float = READY_TIMEOUT_S,
    on_progress: Callable[[str, int, int], None] = lambda *counts: None,
    on_wait: Callable[[str], None] = log.info,
    check: Callable[[], None] = lambda: None,
) -> ApplicationRecord:
    """Serve a version of an application: return once its replicas take calls and the gateways know it.

    The version that was active serves until then, and goes on if the new one fails. Its replicas go on with other
    options if only such have changed that need no new ones, see ``ApplicationRecord.keeps_replicas_of``.

    Parameters:
      release: The version.
      restart: Replace its replicas in any case.
      surge: How many replicas there may be beyond those that are wanted; see ``Start``.
      gateways: How many gateway processes to wait for.
      ready_timeout_s: How long its replicas may take to start.
      on_progress: Called with a deployment, how many of its replicas run and how many are expected, at each change.
      on_wait: Called if another deploy of the application is under way, with words that say so.
      check: Called while waiting; raises if there is no point in waiting any longer.

    Raises:
      DeployError: Another application is served at its path, a constructor failed, or replicas, gateways or another
        deploy of the application took too long.
      BrokerUnavailable: The broker does not reply.
    """
    registry, record = installation.registry, release.record
    reports = installation.reports(record.name)
    registry.check_prefix(record)  # before anything is started
    counts = Counts(installation, record)
    wait = partial(
        wait_until_running,
        reports=reports,
        wishes=if_permitted(partial(installation.fleet.wishes, record.name)),
        timeout_s=ready_timeout_s,
        on_progress=on_progress,
        check=check,
        shortages=counts.shortages,
    )

    def is_failing(active: ApplicationRecord) -> bool:  # new replicas may be the remedy
        return any(one.state == FAILED and one.version == active.version for one in reports.replicas())

    with Claim(installation, record.name, record.version, ready_timeout_s, on_wait, check) as claim:
        if failpoints.ARMED:
            failpoints.hit("rollout.after_claim")
        active = next(iter(registry.readable(record.name, ACTIVE)), None)
        if active is not None and not restart and not is_failing(active) and release.only_reconfigures(active):
            record = replace(record, version=active.version, sent_for=active.sent_for)
            change = _reconfigure(claim, record, active, wait)
        else:
            start = Start(installation, claim, record, active, counts, surge, wait, check, on_wait, ready_timeout_s)
            change = _replace(claim, registry, release, start)
    wait_for_gateways(installation, change, gateways, check)
    return record


Wait = Callable[..., None]


def _reconfigure(claim: Claim, record: ApplicationRecord, active: ApplicationRecord, wait: Wait) -> str:
    """Have the replicas of the active version go on with other options; return the change.

    Crash before the first command: nothing has changed. Crash after it: the options are registered, and replicas that
    do not refuse them take them.
    """
    change = claim.promote(record, keeps_before=True)
    try:
        wait(record, is_kept=True)
    except BaseException:
        claim.promote(active)
        raise
    return change


def _replace(claim: Claim, registry: Registry, release: Release, start: Start) -> str:
    """Start replicas beside those of the active version, and make theirs the active one; return the change.

    Crash while they start: the active version serves, workers end the new ones when the claim has stood still for a
    while, and the next deploy removes what is left. Crash after the promotion: it is deployed.
    """
    record = release.record
    start.prepare()
    registry.stage(record, release.code)
    try:
        if failpoints.ARMED:
            failpoints.hit("rollout.after_stage")
        start.run()
        if failpoints.ARMED:
            failpoints.hit("rollout.before_promote")
    except BaseException as error:
        try:
            if isinstance(error, QserveException):
                with suppress(QserveException):
                    start.go_back()
        finally:
            registry.withdraw(record)
        raise
    try:
        change = claim.promote(record)
    except DeployError:  # another deploy was faster; after any other error it may be the active one
        registry.withdraw(record)
        raise
    if failpoints.ARMED:
        failpoints.hit("rollout.after_promote")
    return change


def roll_back(installation: Installation, app: str, to: str = "", **options: Any) -> ApplicationRecord:
    """Deploy a version again that was replaced, with its code, its options and its path.

    Its replicas are those of a new version, because the queues of the old one are gone.

    Parameters:
      to: The version, or how it begins; "" for the one that was replaced last.
      options: As ``roll_out`` takes them.

    Raises:
      UsageProblem: There is no such version, or its code is not kept any more.
      QserveException: As ``roll_out`` raises it.
    """
    registry = installation.registry
    former = registry.former(registry.get(app).name)
    found = [record for record in former if record.version.startswith(to)]
    if not found or (to and len(found) > 1):
        kept = ", ".join(record.version for record in former)
        what = f"{len(found) or 'no'} versions that begin with {to!r}" if to else "no version that was replaced"
        raise UsageProblem(f"application {app!r} has {what}" + (f"; kept are: {kept}" if kept else ""))
    record = found[0]
    code = registry.code(app, record.version)
    if not (code or record.target):
        raise UsageProblem(f"the code of version {record.version} of application {app!r} is not kept any more")
    sent_for = DIFFERING if code and record.target else ""
    new = replace(record, version=os.urandom(6).hex(), deployed_at=time.time(), sent_for=sent_for)
    return roll_out(installation, Release(new, code), **options)


def wait_until_running(
    record: ApplicationRecord,
    reports: ReplicaReports,
    *,
    wishes: Mapping[str, Wish] = MappingProxyType({}),
    timeout_s: float = READY_TIMEOUT_S,
    on_progress: Callable[[str, int, int], None] = lambda *counts: None,
    check: Callable[[], None] = lambda: None,
    expected: Callable[[], Mapping[str, int]] = dict,
    is_kept: bool = False,
    shortages: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Wait until every replica of a version has constructed its object and takes calls.

    Of a deployment that scales by load, as many are waited for as it has at least.

    Parameters:
      wishes: What operators want of the deployments.
      expected: Returns how many of some deployments are waited for instead.
      is_kept: Whether they have run before, and have to take the options of the record.
      shortages: Returns why replicas have no place, by deployment; each reason is logged once.

    Raises:
      DeployError: A constructor failed as often as it is tried, or a replica has refused its user_config (the message
        holds the user's traceback), or the time ran out.
    """
    fixed = {name: started_count(record, name, wishes.get(name), is_kept) for name in record.replicated}
    shown: dict[str, tuple[int, int]] = {}
    deadline, short_at, told = Deadline(timeout_s), time.monotonic() + _SHORT_AFTER_S, set[tuple[str, str]]()
    while True:
        began = time.monotonic()
        wanted = {**fixed, **expected()}
        replicas = [
            replica
            for replica in reports.replicas()
            if replica.version == record.version and replica.deployment in record.deployments
        ]
        ready = [replica for replica in replicas if replica.state == RUNNING]
        late = {one.name for one in ready if is_kept and one.config != record.deployments[one.deployment].config}
        running = Counter(one.deployment for one in ready if one.name not in late)
        for name, count in wanted.items():
            if shown.get(name) != (running[name], count):
                shown[name] = running[name], count
                on_progress(name, running[name], count)
        # of those that scale by load it is not known how many there will be
        is_any_late = any(one.name in late and record.deployments[one.deployment].scaling for one in ready)
        if all(running[name] >= count for name, count in wanted.items()) and not is_any_late:
            return
        _raise_for_failures(replicas, wanted, record)
        check()
        if time.monotonic() > short_at:
            short_at = time.monotonic() + _SHORT_AFTER_S
            lacking = {name: why for name, why in shortages().items() if running[name] < wanted.get(name, 0)}
            for name, why in sorted(lacking.items() - told):
                log.warning("deployment %r of application %r waits: %s", name, record.name, why)
            told |= lacking.items()
        if deadline.has_passed():
            why = _why_late(record, replicas, running, wanted, shortages())
            raise DeployError(f"not all replicas were ready within {timeout_s:.0f} s: {why}")
        # to read many reports takes as long as to start a replica: most of the time is for those
        time.sleep(max(_POLL_INTERVAL_S, 9 * (time.monotonic() - began)))


def _why_late(
    record: ApplicationRecord,
    replicas: Sequence[ReplicaStatus],
    running: Mapping[str, int],
    expected: Mapping[str, int],
    shortages: Mapping[str, str],
) -> str:
    late = ", ".join(f"{name} ({running[name]} of {count})" for name, count in expected.items())
    said = [(one.deployment, one.message) for one in replicas if one.state == FAILED] + [*shortages.items()]
    why = "".join(f"\n{name}: {message}" for name, message in said)
    if record.code and not (why or running):
        why = f"\nno worker with the code of this version ({record.code}) has started a replica"
    waiting = waiting_workers(replicas)
    return late + why + (f"\n{waiting}" if waiting else "")


def _raise_for_failures(
    replicas: Sequence[ReplicaStatus], expected: Mapping[str, int], record: ApplicationRecord
) -> None:
    counts: Counter[str] = Counter()
    for replica in replicas:
        if replica.refused == record.deployments[replica.deployment].config:
            why = f"has refused its user_config; its reconfigure failed:\n{replica.message}"
            raise DeployError(f"deployment {replica.deployment!r} {why}")
        if replica.state == FAILED:  # a supervisor's report counts those that have failed before
            counts[replica.deployment] += max(1, replica.failures)
    for name, count in counts.items():
        # a constructor is tried three times for each replica, as in Ray Serve
        retries = max(1, record.deployments[name].constructor_retries)
        if count >= min(retries, GIVEN_UP_AFTER * max(1, expected[name])):
            failed = (replica for replica in replicas if (replica.deployment, replica.state) == (name, FAILED))
            raise DeployError(f"deployment {name!r} could not be started; {next(failed).message}")


def wait_for_gateways(
    installation: Installation, change: str, processes: int, check: Callable[[], None] = lambda: None
) -> None:
    """Wait until so many gateway processes serve what the registry holds as of ``change``.

    Raises:
      DeployError: It took too long.
      BrokerUnavailable: The broker does not reply.
    """
    if not processes:
        return
    deadline = Deadline(GATEWAY_TIMEOUT_S)
    while not deadline.has_passed():
        seen = installation.gateways().values()
        if sum(order_of(latest) >= order_of(change) for latest in seen) >= processes:
            return
        check()
        time.sleep(_POLL_INTERVAL_S)
    raise DeployError(f"the gateway did not load the application within {GATEWAY_TIMEOUT_S:.0f} s")
