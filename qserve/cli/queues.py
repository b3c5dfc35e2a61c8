"""``qserve queues``: show what waits and runs, by deployment."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from qserve.base.settings import Settings
from qserve.cli.options import broker_option, json_option
from qserve.deploy.installation import Installation
from qserve.deploy.queues import queues_of


@click.command()
@click.argument("app", metavar="[APP]", required=False)
@broker_option
@json_option
def queues(app: str | None, settings: Settings, as_json: bool) -> None:
    """Show how many calls wait, run and are delayed, for each deployment.

    Old versions are shown until their requests are finished.
    """
    found = queues_of(Installation(settings), app)
    if as_json:
        click.echo(json.dumps([asdict(queue) for queue in found], indent=2))
        return
    if not found:
        click.echo("no application is deployed")
        return
    line = "{:<16} {:<24} {:<14} {:>8} {:>8} {:>10} {:>8}  {}"
    rows = [line.format("application", "deployment", "version", "waiting", "running", "oldest", "delayed", "")]
    for one in found:
        place, oldest = (one.application, one.deployment, one.version), f"{one.oldest_s:.1f} s"
        state = "paused" if one.is_paused else ""
        rows.append(line.format(*place, one.waiting, one.running, oldest, one.delayed, state))
    click.echo("\n".join(map(str.rstrip, rows)))
