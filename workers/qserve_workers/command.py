"""``qserve worker``: replicas on this host, and the supervisor that keeps them alive."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import click

from qserve.exceptions import QserveException
from qserve.log import log_to_terminal
from qserve.plane.connection import broker_errors, connect
from qserve.process import die_with_parent_if_asked
from qserve.settings import Settings
from qserve_workers.supervisor import Supervisor
from qserve_workers.wanted import Scope


@click.command()
@click.argument("target", required=False, metavar="[MODULE:NODE]")
@click.option(
    "--deployment",
    metavar="NAME",
    help="Run only this deployment. [default: all of the application]",
)
@click.option(
    "--replicas",
    type=click.IntRange(0),
    help="Replicas on this host. [default: the deployment's option]",
)
@click.option("--name", metavar="APP", help="The application. [default: every registered one]")
@click.option("--app-dir", default=".", show_default=True, help="Where MODULE is searched first.")
@click.option("--broker", metavar="URL", help="The broker. [default: $QSERVE_BROKER_URL or $REDIS_URL]")
def worker(
    target: str | None,
    deployment: str | None,
    replicas: int | None,
    name: str | None,
    app_dir: str,
    broker: str | None,
) -> None:
    """Run replicas of deployments until stopped.

    Code is imported from MODULE:NODE, or as it was deployed when none is given. The broker may come up
    later, and so may the deploy.
    """
    die_with_parent_if_asked()
    log_to_terminal("supervisor")
    sys.path.insert(0, str(Path(app_dir).resolve()))
    try:
        settings = Settings.from_env(broker_url=broker)
        if settings.broker_url is None:
            raise QserveException("no broker is named: give --broker URL or set QSERVE_BROKER_URL")
        with broker_errors():
            connect(settings.broker_url).close()
    except QserveException as error:
        raise click.ClickException(str(error)) from error
    gc.freeze()  # children share these pages as long as the collector does not write to them
    scope = Scope(name or ("default" if target else None), deployment, replicas, target or "")
    Supervisor(settings, scope).run()
