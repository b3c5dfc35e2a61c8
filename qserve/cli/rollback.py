"""``qserve rollback``: deploy a version again that was replaced."""

from __future__ import annotations

import datetime

import click

from qserve.base.settings import Settings
from qserve.cli.deploy import gateways_option, show_progress, surge_option, timeout_option, wait_for_broker
from qserve.cli.options import broker_option
from qserve.deploy.installation import Installation
from qserve.deploy.named import application_named
from qserve.deploy.rollout import roll_back
from qserve.deploy.steps import Surge


@click.command()
@click.argument("app", metavar="APP")
@click.option("--to", default="", metavar="VERSION", help="The version. [default: the one that was replaced last]")
@click.option("--list", "lists", is_flag=True, help="Only print the versions, the newest first.")
@timeout_option
@gateways_option
@surge_option
@broker_option
def rollback(
    app: str, to: str, lists: bool, timeout_s: float, gateways: int, surge: Surge | None, settings: Settings
) -> None:
    """Deploy a version of the application APP again that was replaced, with its options.

    It is rolled out as a deploy is. The code of the last three versions is kept; workers run it although their own
    files are newer, unless they were started with MODULE:NODE or with a code version.
    """
    installation = Installation(settings)
    if lists:
        application_named(installation, app)
        active = installation.registry.get(app)
        for record in (active, *installation.registry.former(app)):
            at = datetime.datetime.fromtimestamp(record.deployed_at).isoformat(" ", "seconds")
            code = record.target or "sent by a program"
            click.echo(f"{record.version}  {at}  {code}" + ("  (serves)" if record is active else ""))
        return
    wait_for_broker(installation)
    application_named(installation, app)
    record = roll_back(
        installation,
        app,
        to,
        ready_timeout_s=timeout_s,
        gateways=gateways,
        surge=surge,
        on_progress=show_progress,
        on_wait=click.echo,
    )
    click.echo(f"{app}: version {record.version} serves")
