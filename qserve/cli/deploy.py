"""``qserve deploy``: register an application with a broker."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import click

from qserve.base.clock import Deadline
from qserve.base.import_path import search_for_user_code
from qserve.base.process import die_with_parent_if_asked
from qserve.base.settings import CHECKED, Settings
from qserve.broker.address import Address
from qserve.broker.connection import load_functions
from qserve.broker.doctor import check_unless_parent_did
from qserve.cli.options import (
    Seconds,
    WholeNumber,
    app_dir_option,
    broker_option,
    code_version_option,
    name_option,
    route_prefix_option,
)
from qserve.cli.user_code import load_apart
from qserve.deploy.installation import Installation
from qserve.deploy.registration import Release, import_application, release_of
from qserve.deploy.rollout import READY_TIMEOUT_S, roll_out
from qserve.exceptions import BrokerUnavailable, QserveException
from qserve.wire.application import ApplicationRecord

_BROKER_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.01


@click.command()
@click.argument("target", metavar="MODULE:NODE")
@route_prefix_option
@name_option
@app_dir_option
@code_version_option
@broker_option
@click.option(
    "--timeout-s",
    type=Seconds(),
    default=READY_TIMEOUT_S,
    show_default=True,
    help="How many seconds to wait for the replicas.",
)
@click.option(
    "--gateways", type=WholeNumber(0), default=0, metavar="N", help="Also wait until N gateway processes serve it."
)
@click.option("--prefix-fd", type=int, hidden=True, help="An open file to which the route prefix is written.")
def deploy(
    target: str,
    route_prefix: str | None,
    name: str,
    app_dir: str,
    code_version: str | None,
    settings: Settings,
    timeout_s: float,
    gateways: int,
    prefix_fd: int | None,
) -> None:
    """Deploy MODULE:NODE on a running broker.

    Registers it, waits until its replicas are ready, and switches over to it. Replicas run in `qserve worker`. The
    previous version keeps serving until the new one is ready, or if the new one fails.
    """
    die_with_parent_if_asked()
    settings = replace(settings, code_version=code_version or settings.code_version)
    search_for_user_code(app_dir)
    installation = Installation(settings)

    def load() -> bytes:
        built, modules = import_application(target, name)
        if route_prefix is not None:
            try:
                built.ingress.set_options(route_prefix=route_prefix)
            except ValueError as error:
                raise QserveException(str(error)) from error
        return release_of(built, settings.keyring, target, modules, settings.code_version).record.encode()

    record = ApplicationRecord.decode(load_apart(target, settings.start_timeout_s, load))
    _wait_for_broker(installation)
    roll_out(installation, Release(record), gateways=gateways, ready_timeout_s=timeout_s, on_progress=_show)
    if prefix_fd is not None:
        os.write(prefix_fd, (record.route_prefix or "").encode())


def _wait_for_broker(installation: Installation) -> None:
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


def _show(deployment: str, running: int, expected: int) -> None:
    click.echo(f"  {deployment:<24} {running}/{expected} {'ready' if running >= expected else 'starting'}")
