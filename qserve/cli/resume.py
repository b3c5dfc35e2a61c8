"""``qserve resume``: have replicas take calls again."""

from __future__ import annotations

import click

from qserve.base.settings import Settings
from qserve.cli.options import broker_option
from qserve.deploy.installation import Installation
from qserve.deploy.wishes import pause


@click.command()
@click.argument("app", metavar="APP")
@click.argument("deployment", metavar="[DEPLOYMENT]", required=False)
@broker_option
def resume(app: str, deployment: str | None, settings: Settings) -> None:
    """Have the replicas of APP, or of one DEPLOYMENT, take calls again."""
    for name, before in pause(Installation(settings), app, deployment, False).items():
        click.echo(f"{name}: goes on" if before.is_paused else f"{name}: is not paused")
