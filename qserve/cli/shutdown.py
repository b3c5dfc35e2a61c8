"""``qserve shutdown``: remove all applications."""

from __future__ import annotations

import sys

import click

from qserve.base.settings import Settings
from qserve.cli.delete import remove_all
from qserve.cli.options import broker_option
from qserve.deploy.installation import Installation
from qserve.exceptions import UsageProblem


@click.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@broker_option
def shutdown(yes: bool, settings: Settings) -> None:
    """Remove all applications from a broker.

    Workers and gateways go on, and serve what is deployed next.
    """
    installation = Installation(settings)
    apps = sorted(installation.registry.names())
    if apps and not yes:
        if not sys.stdin.isatty():
            raise UsageProblem(f"this removes {', '.join(apps)}: pass -y")
        click.confirm(f"Remove {', '.join(apps)}?", abort=True)
    remove_all(installation, apps)
    if not apps:
        click.echo("no application is deployed")
