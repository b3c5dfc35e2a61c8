"""``qserve pause``: have replicas take no calls for a while."""

from __future__ import annotations

import click

from qserve.base.settings import Settings
from qserve.cli.options import broker_option
from qserve.deploy.installation import Installation
from qserve.deploy.wishes import pause as pause_deployments


@click.command()
@click.argument("app", metavar="APP")
@click.argument("deployment", metavar="[DEPLOYMENT]", required=False)
@broker_option
def pause(app: str, deployment: str | None, settings: Settings) -> None:
    """Have the replicas of APP, or of one DEPLOYMENT, take no calls.

    Calls that run go on. New ones are accepted, and wait until `qserve resume` or their deadlines. The replicas stay as
    they are, and so does the pause when they are restarted or a new version is deployed.
    """
    for name, before in pause_deployments(Installation(settings), app, deployment, True).items():
        click.echo(f"{name}: is paused already, by {before.by}" if before.is_paused else f"{name}: paused")
