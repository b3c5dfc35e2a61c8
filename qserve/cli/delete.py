"""``qserve delete``: remove an application."""

from __future__ import annotations

import time

import click

from qserve.base.clock import Deadline
from qserve.base.settings import Settings
from qserve.broker.registry import ACTIVE, NEXT
from qserve.cli.options import broker_option
from qserve.deploy.installation import Installation
from qserve.deploy.named import application_named
from qserve.deploy.removal import remove
from qserve.wire.status import RUNNING

_POLL_INTERVAL_S = 0.05
_END_WITHIN_S = 5.0
"""How much longer than their grace replicas may take to end."""


@click.command()
@click.argument("app", metavar="APP")
@broker_option
def delete(app: str, settings: Settings) -> None:
    """Remove the application APP.

    New requests are refused at once. Its replicas finish what they run, and end.
    """
    installation = Installation(settings)
    remove_all(installation, [application_named(installation, app)])


def remove_all(installation: Installation, apps: list[str]) -> None:
    """Remove applications, wait for the end of their replicas, and say how it went."""
    limits_s = {}
    for app in apps:
        records = installation.registry.readable(app, ACTIVE, NEXT)
        graces_s = [deployment.grace_s for record in records for deployment in record.deployments.values()]
        limits_s[app] = max(graces_s, default=0.0) + _END_WITHIN_S
        remove(installation, app, on_wait=click.echo)
    for app, limit_s in limits_s.items():
        left = _wait_until_gone(installation, app, limit_s)
        click.echo(f"{app}: deleted" + (f"; replicas that have not reported their end: {left}" if left else ""))


def _wait_until_gone(installation: Installation, app: str, limit_s: float) -> int:
    """Wait until no replica of an application reports that it runs; return how many still do when the time is over."""
    deadline, reports = Deadline(limit_s), installation.reports(app)
    while True:
        running = sum(report.state == RUNNING for report in reports.replicas())
        if not running or deadline.has_passed():
            return running
        time.sleep(_POLL_INTERVAL_S)
