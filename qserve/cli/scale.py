"""``qserve scale``: change the number of a deployment's replicas."""

from __future__ import annotations

import time

import click

from qserve.base.clock import Deadline
from qserve.base.settings import Settings
from qserve.cli.options import Seconds, broker_option
from qserve.deploy.installation import Installation
from qserve.deploy.rollout import READY_TIMEOUT_S
from qserve.deploy.status import status_of
from qserve.deploy.wishes import scale as scale_deployment

_POLL_INTERVAL_S = 0.1


@click.command(context_settings={"ignore_unknown_options": True})  # so that -1 is a number
@click.argument("app", metavar="APP")
@click.argument("deployment", metavar="DEPLOYMENT")
@click.argument("count", metavar="N")
@click.option("--wait", is_flag=True, help="Wait until so many replicas run.")
@click.option(
    "--timeout-s", type=Seconds(), default=READY_TIMEOUT_S, show_default=True, help="How long to wait, in seconds."
)
@broker_option
def scale(app: str, deployment: str, count: str, wait: bool, timeout_s: float, settings: Settings) -> None:
    """Have DEPLOYMENT of APP run N replicas, over all hosts together.

    It holds through restarts and deploys, until somebody deploys another `num_replicas`. N may be 0: calls wait then.
    """
    installation = Installation(settings)
    before, number = scale_deployment(installation, app, deployment, count)
    name = f"{app}/{deployment}"
    click.echo(f"{name}: {before} -> {number}" if before != number else f"{name}: {number} are wanted already")
    if wait:
        _wait(installation, app, deployment, number, timeout_s)


def _wait(installation: Installation, app: str, deployment: str, count: int, timeout_s: float) -> None:
    deadline, shown = Deadline(timeout_s), -1
    while True:
        found = status_of(installation).applications[app].deployments[deployment]
        running = found.replica_states.get("RUNNING", 0)
        if running != shown:
            shown = running
            click.echo(f"  {deployment:<24} {running}/{count} run")
        if running == count == found.target_num_replicas:
            return
        if deadline.has_passed():
            why = found.message or "they take their time"
            raise click.ClickException(f"after {timeout_s:g} s {running} of {count} replicas run: {why}")
        time.sleep(_POLL_INTERVAL_S)
