"""``qserve status``: a table of what is deployed; ``--json`` for programs."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from qserve.base.escapes import printable
from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.deploy.snapshot import ServeStatus, read_status
from qserve.exceptions import QserveException
from qserve.machine.command_options import broker_option, named_broker
from qserve.wire.sealing import Seal


@click.command()
@broker_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(broker: str | None, as_json: bool) -> None:
    """Show the applications on a broker, their deployments and replicas."""
    try:
        settings = Settings.from_env(broker_url=broker)
        found = read_status(connect(named_broker(settings)), Keys(settings.namespace), Seal(settings.keyring))
    except QserveException as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        _show(found)


def _show(found: ServeStatus) -> None:
    if not found.applications:
        click.echo("no application is deployed")
    for app in found.applications.values():
        click.echo(f"{app.name}  {app.status}  {app.route_prefix or 'no HTTP'}")
        for one in app.deployments.values():
            states = ", ".join(f"{count} {state}" for state, count in one.replica_states.items()) or "no replicas"
            click.echo(f"  {one.name:<24} {one.status:<10} {states}")
            if one.message:
                click.echo("    " + printable(one.message).replace("\n", "\n    "))
