"""``qserve status``: show what is deployed, as a table or as JSON."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click

from qserve.base.log import printable
from qserve.base.settings import Settings
from qserve.broker.load import BrokerStatus
from qserve.cli.options import broker_option, json_option
from qserve.deploy.installation import Installation


@click.command()
@broker_option
@json_option
def status(settings: Settings, as_json: bool) -> None:
    """Show what is deployed on a broker.

    Lists the applications with their deployments and replicas, and the errors of those that do not start.
    """
    found = Installation(settings).status()
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    click.echo(_of_broker(found.broker))
    if not found.applications:
        click.echo("no application is deployed")
    for app in found.applications.values():
        click.echo(f"{app.name}  {app.status}  {app.route_prefix or 'no HTTP'}")
        for deployment in app.deployments.values():
            states = (
                ", ".join(f"{count} {state}" for state, count in deployment.replica_states.items()) or "no replicas"
            )
            waits = (
                f", {deployment.waiting_calls} calls wait, the oldest for {deployment.oldest_call_s:.0f} s"
                if deployment.waiting_calls
                else ""
            )
            click.echo(f"  {deployment.name:<24} {deployment.status:<10} {states}{waits}")
            if deployment.message:
                click.echo("    " + printable(deployment.message).replace("\n", "\n    "))


def _of_broker(found: BrokerStatus) -> str:
    limit = f" of {found.limit_bytes >> 20}" if found.limit_bytes else ""
    since = time.strftime("since %Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() - found.refuses_for_s))
    how_long = f" {since} ({found.refuses_for_s:.0f} s)" if found.refuses_for_s else ""
    refuses = f": it refuses new requests{how_long}: {found.refuses}" if found.refuses else ""
    return f"broker: {found.used_bytes >> 20}{limit} MiB used, {found.clients} clients{refuses}"
