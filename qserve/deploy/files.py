"""Deploy a whole file: compile all of its applications before anything changes, then roll them out one by one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from qserve.appfile.diff import Change, diff
from qserve.appfile.model import ServeFile
from qserve.base.keyring import Keyring
from qserve.base.log import get_logger
from qserve.define.application import set_defaults
from qserve.define.builder import ArgumentError
from qserve.define.compile import CompiledApplication
from qserve.define.target import TargetError
from qserve.define.task_consumers import TaskPlace
from qserve.deploy.claim import Claim
from qserve.deploy.installation import Installation
from qserve.deploy.named import not_found
from qserve.deploy.registration import Release, check_external_scaler, import_application, release_of
from qserve.deploy.removal import remove
from qserve.deploy.rollout import READY_TIMEOUT_S, roll_out, wait_for_gateways
from qserve.deploy.steps import Surge
from qserve.exceptions import BrokerError, DeployError, QserveException
from qserve.wire.application import ApplicationRecord

log: Final = get_logger(__name__)


def release_of_part(
    file: ServeFile,
    number: int,
    keyring: Keyring,
    *,
    code_version: str = "",
    timeout_s: float | None = None,
    sends_code: bool = False,
) -> Release:
    """Import and compile one application of a file; call it in a process of its own, because user code runs in it.

    Parameters:
      timeout_s: The deadline of requests if the code sets none.
      sends_code: See ``release_of``.

    Raises:
      FileError: Its code is not found, or does not have what the file says; the message has the place.
      Exception: Any error of user code.
    """
    part, path = file.applications[number], ("applications", number)
    try:
        built, modules = import_application(part.import_path, part.name, part.args)
    except TargetError as error:
        raise file.problem(str(error), *path, "import_path") from error
    except ArgumentError as error:
        raise file.problem(str(error), *path, "args", *filter(None, [error.argument])) from error
    _override(built, file, number)
    set_defaults(built, file.logs_of(number, os.environ), part.runtime_env.get("env_vars") or {})
    if "route_prefix" in part.model_fields_set:
        built.ingress.set_options(route_prefix=part.route_prefix)
    if built.ingress.config.request_timeout_s is None:
        built.ingress.set_options(request_timeout_s=timeout_s)
    if part.external_scaler_enabled:
        try:
            check_external_scaler(built)
        except ValueError as error:
            raise file.problem(str(error), *path, "external_scaler_enabled") from error
    release = release_of(
        built,
        keyring,
        part.import_path,
        modules,
        code_version,
        part.args,
        sends_code,
        external_scaler=part.external_scaler_enabled,
    )
    config = json.dumps(file.part(number), sort_keys=True)
    return replace(release, record=replace(release.record, config=config, capacity=file.target_capacity))


def _override(built: CompiledApplication, file: ServeFile, number: int) -> None:
    """Apply the options that a file gives to deployments, as ``Deployment.options`` does in code."""
    by_name = {deployment.name: deployment for deployment in built.deployments}
    for index, part in enumerate(file.applications[number].deployments):
        path = "applications", number, "deployments", index
        if part.name not in by_name:
            error = not_found("deployment", part.name, f"is not in application {built.name!r}; it has:", by_name)
            raise file.problem(str(error), *path, "name")
        try:
            by_name[part.name].set_options(**part.options)
        except (TypeError, ValueError) as error:
            raise file.problem(" ".join(str(error).split()), *path) from error


@dataclass(frozen=True)
class FilePlan:
    """What a deploy of a file does.

    Parameters:
      records: Its applications, compiled.
      running: All applications that are deployed now.
      deleted: Those that an earlier file has brought, and that this one does not name.
      changes: The differences, in words.
      codes: The modules that are sent of each.
      tasks: Where Celery has the queues that they consume.
    """

    records: dict[str, ApplicationRecord]
    running: dict[str, ApplicationRecord]
    deleted: list[str]
    changes: list[Change] = field(default_factory=list)
    codes: dict[str, bytes] = field(default_factory=dict)
    tasks: list[TaskPlace] = field(default_factory=list)


def plan_file(installation: Installation, file: ServeFile, load: Callable[[int], Release]) -> FilePlan:
    """Compile every application of a file, and compare it with what runs; nothing is changed.

    Parameters:
      load: Returns an application by its number in the file; see ``release_of_part``.

    Raises:
      FileError: Two applications are at one path, or another one that stays is there.
    """
    releases = {part.name: load(number) for number, part in enumerate(file.applications)}
    records = {name: release.record for name, release in releases.items()}
    codes = {name: release.code for name, release in releases.items()}
    running = {record.name: record for record in installation.registry.all()}
    deleted = [name for name, record in running.items() if record.config and name not in records]
    staying = {name: record for name, record in running.items() if name not in deleted and name not in records}
    owners: dict[str, str] = {}
    for name, record in [*staying.items(), *records.items()]:
        prefix = record.route_prefix
        if prefix is not None and owners.setdefault(prefix, name) != name:
            path = "applications", list(records).index(name), "route_prefix"
            raise file.problem(f"application {owners[prefix]!r} is at {prefix!r} already", *path)
    tasks = [place for release in releases.values() for place in release.tasks]
    return FilePlan(records, running, deleted, diff(running, records, deleted), codes, tasks)


def deploy_file(
    installation: Installation,
    plan: FilePlan,
    *,
    restart: bool = False,
    surge: Surge | None = None,
    gateways: int = 0,
    ready_timeout_s: float = READY_TIMEOUT_S,
    on_application: Callable[[str, str], None] = lambda name, what: None,
    on_progress: Callable[[str, int, int], None] = lambda *counts: None,
    on_wait: Callable[[str], None] = log.info,
) -> dict[str, QserveException]:
    """Roll out the applications of a file one after the other; one that fails does not stop the others.

    Applications that have not changed go on as they are. Those that an earlier file has brought, and this one does not
    name, are deleted at the end if nothing has failed.

    Crash on the way: each application is in its old version or in its new one, and the next deploy of the file does the
    rest. One that was waiting for a path is served at its old path, or at none.

    Parameters:
      plan: From ``plan_file``.
      restart: Replace the replicas of all applications, also where nothing has changed, or only options.
      on_progress, on_wait: See ``roll_out``.
      surge: See ``roll_out``.
      on_application: Called with the name of an application, and what happens to it.

    Returns:
      The errors of the applications that could not be rolled out, by name.

    Raises:
      BrokerUnavailable: The broker does not reply.
    """
    failed: dict[str, QserveException] = {}
    waiting: dict[str, ApplicationRecord] = {}
    options = {
        "restart": restart,
        "surge": surge,
        "gateways": gateways,
        "ready_timeout_s": ready_timeout_s,
        "on_progress": on_progress,
        "on_wait": on_wait,
    }
    claimed = partial(Claim, installation, timeout_s=ready_timeout_s, on_wait=on_wait)
    for name in plan.records:
        try:
            left = _deploy(installation, plan, name, claimed, on_application, options)
            if left is not None:
                waiting[name] = left
        except BrokerError:
            raise
        except QserveException as error:
            failed[name] = error
    for name in plan.deleted if failed else ():
        on_application(name, "is kept, because not all applications could be deployed")
    deleted = [] if failed else plan.deleted
    if waiting:
        failed.update(_change_paths(installation, waiting, deleted, gateways, claimed))
    for name in deleted:
        try:
            if _delete(installation, name, gateways, ready_timeout_s, on_wait):
                on_application(name, "deleted: no longer in the file")
        except DeployError as error:
            failed[name] = error
    return failed


def _deploy(
    installation: Installation,
    plan: FilePlan,
    name: str,
    claimed: Callable[..., Claim],
    on_application: Callable[[str, str], None],
    options: dict[str, Any],
) -> ApplicationRecord | None:
    """Roll out one application, unless it runs as it is; return what is still to be served if its path is taken."""
    record, before = plan.records[name], plan.running.get(name)
    is_changed = options["restart"] or any(change.app == name for change in plan.changes)
    if not is_changed and before is not None and _keep(installation, before, record, claimed):
        on_application(name, "unchanged")
        return None
    on_application(name, "deploying")
    served = _servable_now(installation, record, before)
    done = roll_out(installation, Release(served, plan.codes[name]), **options)
    return None if served == record else replace(done, route_prefix=record.route_prefix)


def _delete(
    installation: Installation, name: str, gateways: int, timeout_s: float, on_wait: Callable[[str], None]
) -> bool:
    """Delete an application that a file has brought; return False if that is deployed by hand now, or deleted."""
    active = installation.registry.find(name)
    if active is None or not active.config:
        return False
    wait_for_gateways(installation, remove(installation, name, timeout_s, on_wait), gateways)
    return True


def _keep(
    installation: Installation, before: ApplicationRecord, record: ApplicationRecord, claimed: Callable[..., Claim]
) -> bool:
    """Note that an application that has not changed is the file's; return False if it was deployed again meanwhile."""
    with claimed(app=record.name, version=before.version) as claim:
        active = installation.registry.find(record.name)
        if active is None or active.version != before.version:
            return False
        if active.config != record.config:  # so that the next file knows whose it is; no replica ends
            claim.promote(replace(active, config=record.config))
    return True


def _servable_now(
    installation: Installation, record: ApplicationRecord, active: ApplicationRecord | None
) -> ApplicationRecord:
    """Return a record at its path, or at its present one while another application has to give that up first."""
    try:
        installation.registry.check_prefix(record)
    except DeployError:
        return replace(record, route_prefix=active.route_prefix if active else None)
    return record


def _change_paths(
    installation: Installation,
    waiting: dict[str, ApplicationRecord],
    deleted: Sequence[str],
    gateways: int,
    claimed: Callable[..., Claim],
) -> dict[str, QserveException]:
    """Give applications the paths that were taken before: all of them, and those to be deleted, first give up theirs.

    It takes milliseconds, in which requests at these paths find no application. Nobody else deploys or deletes one of
    them meanwhile, and one that somebody has deployed since the plan was made stays as it is.

    Returns:
      The errors of those that did not get their paths.
    """
    failed: dict[str, QserveException] = {}
    changes = []
    with contextlib.ExitStack() as stack:
        claims, before = {}, {}
        for name in sorted((*waiting, *deleted)):  # always in this order, so that no two files wait for each other
            version = waiting[name].version if name in waiting else ""
            try:
                claims[name] = stack.enter_context(claimed(app=name, version=version))
            except DeployError as error:
                return dict.fromkeys(waiting, error)
            active = installation.registry.find(name)
            if active is not None and (name in deleted or active.version == version):
                before[name] = active
        for name, record in before.items():
            claims[name].promote(replace(record, route_prefix=None))
        for name, record in waiting.items():
            try:
                if name not in before:
                    raise DeployError(f"another deploy of application {name!r} has taken over")
                changes.append(claims[name].promote(record))
            except DeployError as error:
                failed[name] = error
                with contextlib.suppress(DeployError, KeyError):  # its old path may be taken by now
                    claims[name].promote(before[name])
    for change in changes:
        wait_for_gateways(installation, change, gateways)
    return failed
