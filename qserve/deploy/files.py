"""Deploy a whole file: compile all of its applications before anything changes, then roll them out one by one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from qserve.appfile.diff import Change, diff
from qserve.appfile.model import ServeFile
from qserve.base.keyring import Keyring
from qserve.base.log import get_logger
from qserve.define.application import set_defaults
from qserve.define.builder import ArgumentError
from qserve.define.compile import CompiledApplication
from qserve.define.target import TargetError
from qserve.define.task_consumers import TaskPlace
from qserve.deploy.installation import Installation
from qserve.deploy.named import not_found
from qserve.deploy.registration import Release, check_external_scaler, import_application, release_of
from qserve.deploy.removal import remove
from qserve.deploy.rollout import READY_TIMEOUT_S, roll_out, wait_for_gateways
from qserve.deploy.steps import Surge
from qserve.exceptions import BrokerError, DeployError, QserveException
from qserve.wire.application import ApplicationRecord

log = get_logger(__name__)


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
    changed = {change.app for change in plan.changes}
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
    for name, record in plan.records.items():
        if name not in changed and not restart:
            active = plan.running[name]
            if active.config != record.config:  # so that the next file knows whose it is; no replica ends
                installation.registry.promote(replace(active, config=record.config))
            on_application(name, "unchanged")
            continue
        on_application(name, "deploying")
        try:
            served = _servable_now(installation, record, plan.running.get(name))
            done = roll_out(installation, Release(served, plan.codes[name]), **options)  # type: ignore[arg-type]
            if served != record:
                waiting[name] = replace(done, route_prefix=record.route_prefix)
        except BrokerError:
            raise
        except QserveException as error:
            failed[name] = error
    if failed:
        for name in plan.deleted:
            on_application(name, "is kept, because not all applications could be deployed")
    deleted = [] if failed else plan.deleted
    failed.update(_change_paths(installation, waiting, [plan.running[name] for name in deleted], gateways))
    for name in deleted:
        wait_for_gateways(installation, remove(installation, name), gateways)
        on_application(name, "deleted: no longer in the file")
    return failed


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
    deleted: list[ApplicationRecord],
    gateways: int,
) -> Iterator[tuple[str, QserveException]]:
    """Give applications the paths that were taken before: all of them, and those to be deleted, first give up theirs.

    It takes milliseconds, in which requests at these paths find no application.
    """
    registry = installation.registry
    before = {name: registry.get(name) for name in waiting}
    for record in (*before.values(), *deleted) if waiting else ():
        registry.promote(replace(record, route_prefix=None))
    for name, record in waiting.items():
        try:
            change = registry.promote(record)
        except DeployError as error:
            with contextlib.suppress(DeployError):  # its old path may be taken by now
                registry.promote(before[name])
            yield name, error
        else:
            wait_for_gateways(installation, change, gateways)
