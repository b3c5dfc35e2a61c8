"""``qserve deploy``: register an application with a broker."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from qserve.appfile.model import ServeFile
from qserve.appfile.read import read_file
from qserve.base.clock import Deadline
from qserve.base.import_path import search_for_user_code
from qserve.base.numbers import number, whole_number
from qserve.base.process import die_with_parent_if_asked
from qserve.base.settings import CHECKED, Settings
from qserve.broker.address import Address
from qserve.broker.connection import load_functions
from qserve.broker.doctor import check_unless_parent_did
from qserve.broker.registry import ACTIVE
from qserve.cli.options import (
    Seconds,
    WholeNumber,
    app_dir_option,
    broker_option,
    code_version_option,
    is_file,
    name_option,
    only_of_file,
    route_prefix_option,
)
from qserve.cli.user_code import load_apart
from qserve.define.builder import parse_arguments
from qserve.define.task_consumers import TaskPlace
from qserve.deploy.files import deploy_file, plan_file, release_of_part
from qserve.deploy.installation import Installation
from qserve.deploy.registration import Release, import_application, release_of
from qserve.deploy.rollout import READY_TIMEOUT_S, roll_out
from qserve.deploy.steps import Surge
from qserve.exceptions import BrokerUnavailable, UsageProblem
from qserve.wire.application import ApplicationRecord

_BROKER_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.01
_MOST_SURGE = 1_000_000


timeout_option: Final = click.option(
    "--timeout-s",
    type=Seconds(),
    default=READY_TIMEOUT_S,
    show_default=True,
    help="How many seconds to wait for the replicas.",
)
gateways_option: Final = click.option(
    "--gateways", type=WholeNumber(0), default=0, metavar="N", help="Also wait until N gateway processes serve it."
)


class _SurgeAmount(click.ParamType):  # type: ignore[type-arg]
    """A number of replicas, or a percentage."""

    name = "surge"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        try:
            amount = number(text.removesuffix("%")) if text.endswith("%") else whole_number(text)
            if not 0 <= amount <= _MOST_SURGE:
                raise ValueError
        except ValueError:
            self.fail(f"{text!r} is not a number of replicas, such as 1, or a percentage, such as 25%.", param, ctx)
        return Surge(amount, text.endswith("%"))


surge_option: Final = click.option(
    "--max-surge",
    "surge",
    type=_SurgeAmount(),
    metavar="N|P%",
    help="How many replicas there may be beyond those that are wanted while new ones come up. [default:"
    " max_surge_percent of each deployment, or as many as there is room for]",
)


@click.command()
@click.argument("target", metavar="MODULE:NODE|FILE")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@route_prefix_option
@name_option
@app_dir_option
@code_version_option
@broker_option
@timeout_option
@gateways_option
@surge_option
@click.option("--dry-run", is_flag=True, help="Only print what would change; for a FILE.")
@click.option(
    "--restart", is_flag=True, help="Replace all replicas, also where only options have changed, or nothing of a FILE."
)
@click.option(
    "--send-code/--no-send-code",
    default=True,
    show_default=True,
    help="Send the modules to workers that were started without MODULE:NODE and do not have them.",
)
@click.option("--prefix-fd", type=int, hidden=True, help="An open file for what `qserve run` wants to know.")
def deploy(
    target: str,
    arguments: tuple[str, ...],
    route_prefix: str | None,
    name: str,
    app_dir: str,
    code_version: str | None,
    settings: Settings,
    timeout_s: float,
    gateways: int,
    surge: Surge | None,
    dry_run: bool,
    restart: bool,
    send_code: bool,
    prefix_fd: int | None,
) -> None:
    """Deploy MODULE:NODE, or all applications of a FILE, on a running broker.

    Registers it, waits until its replicas are ready, and switches over to it. Replicas run in `qserve worker`. The
    previous version keeps serving until the new one is ready, or if the new one fails. KEY=VALUE are the arguments of
    a builder, MODULE:BUILDER. Applications that an earlier file has brought and that FILE does not name are deleted.
    """
    die_with_parent_if_asked()
    args = parse_arguments(arguments)
    settings = replace(settings, code_version=code_version or settings.code_version)
    search_for_user_code(app_dir)
    installation = Installation(settings)
    options: dict[str, Any] = {
        "restart": restart,
        "surge": surge,
        "gateways": gateways,
        "ready_timeout_s": timeout_s,
        "on_wait": click.echo,
    }
    if is_file(target):
        only_of_file(name, route_prefix, arguments)
        _deploy_file(installation, read_file(Path(target)), dry_run, prefix_fd, send_code, options)
        return
    if dry_run:
        raise UsageProblem("--dry-run is for a FILE")

    def load() -> bytes:
        built, modules = import_application(target, name, args)
        if route_prefix is not None:
            try:
                built.ingress.set_options(route_prefix=route_prefix)
            except ValueError as error:
                raise UsageProblem(str(error)) from error
        return release_of(built, settings.keyring, target, modules, settings.code_version, args, send_code).encode()

    release = Release.decode(load_apart(target, settings.start_timeout_s, load))
    wait_for_broker(installation)
    before = next(iter(installation.registry.readable(release.record.name, ACTIVE)), None)
    began = time.monotonic()
    done = roll_out(installation, release, **options, on_progress=show_progress)
    if prefix_fd is None:
        click.echo(f"qserve: {summary_of(done, before)}, in {time.monotonic() - began:.1f} s")
    _answer(prefix_fd, [release.record.route_prefix or ""], release.tasks)


def _deploy_file(
    installation: Installation,
    file: ServeFile,
    dry_run: bool,
    prefix_fd: int | None,
    send_code: bool,
    options: dict[str, Any],
) -> None:
    settings = installation.settings
    timeout_s = None if os.environ.get("QSERVE_REQUEST_TIMEOUT_S") else file.http_options.request_timeout_s

    def load(number: int) -> Release:
        def compile_part() -> bytes:
            return release_of_part(
                file,
                number,
                settings.keyring,
                code_version=settings.code_version,
                timeout_s=timeout_s,
                sends_code=send_code,
            ).encode()

        name = f"{file.where('applications', number, 'import_path')}: {file.applications[number].import_path}"
        return Release.decode(load_apart(name, settings.start_timeout_s, compile_part))

    file.warn(is_run=prefix_fd is not None)
    wait_for_broker(installation)
    plan = plan_file(installation, file, load)
    if dry_run:
        for change in plan.changes:
            click.echo(change)
        if not plan.changes:
            click.echo("nothing would change")
        return
    began = time.monotonic()
    failed = deploy_file(
        installation,
        plan,
        on_application=lambda name, what: click.echo(f"{name}: {what}"),
        on_progress=show_progress,
        **options,
    )
    for name, error in failed.items():
        click.echo(f"Error: {name}: {error}", err=True)
    if prefix_fd is None:
        served = ", ".join(name for name in plan.records if name not in failed) or "none"
        click.echo(f"qserve: served as the file says: {served}; in {time.monotonic() - began:.1f} s")
    if failed:
        sys.exit(1)
    prefixes = [record.route_prefix for record in plan.records.values() if record.route_prefix is not None]
    _answer(prefix_fd, prefixes, plan.tasks)


def summary_of(record: ApplicationRecord, before: ApplicationRecord | None) -> str:
    """Say what a deploy has brought: path, version and size of an application."""
    counts = [deployment.num_replicas for deployment in record.replicated.values()]
    size = f"{len(counts)} deployment{'s' * (len(counts) != 1)}, {sum(counts)} replica{'s' * (sum(counts) != 1)}"
    version = f"version {record.version}"
    if before is not None:
        is_same = before.version == record.version
        version += ", whose replicas go on" if is_same else f" after version {before.version}"
    return f"application {record.name!r} is served at {record.route_prefix or 'no path'}: {version}; {size}"


def _answer(prefix_fd: int | None, prefixes: list[str], tasks: Iterable[TaskPlace]) -> None:
    """Tell `qserve run` the route prefixes, and where Celery has the queues that are consumed."""
    if prefix_fd is not None:
        os.write(prefix_fd, "\0".join(["\n".join(prefixes), *map(" ".join, tasks)]).encode())


def wait_for_broker(installation: Installation) -> None:
    """Wait for a while until the broker can be reached, check it, and load the functions."""
    deadline, has_said = Deadline(_BROKER_TIMEOUT_S), False
    where = Address.of(installation.settings.named_broker).where
    if not os.environ.get(CHECKED):
        click.echo(f"qserve: connecting to the broker at {where}")
    while True:
        try:
            check_unless_parent_did(installation.client, installation.settings)
            return load_functions(installation.client)
        except BrokerUnavailable as error:
            if deadline.has_passed():
                raise
            if not has_said:
                has_said = True
                click.echo(f"qserve: {error}; trying again for {_BROKER_TIMEOUT_S:g} s")
            time.sleep(_POLL_INTERVAL_S)


def show_progress(deployment: str, running: int, expected: int) -> None:
    """Print how many replicas of a deployment run."""
    more = f" ({running} run)" if running > expected else ""
    words = f"ready{more}" if running >= expected else "starting"
    click.echo(f"  {deployment:<24} {min(running, expected)}/{expected} {words}")
