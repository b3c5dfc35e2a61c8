"""``qserve drain``: empty a host, so that it can be stopped."""

from __future__ import annotations

import sys
import time

import click

from qserve.base.clock import Deadline
from qserve.base.settings import Settings
from qserve.cli.options import Seconds, broker_option
from qserve.deploy.installation import Installation
from qserve.deploy.wishes import drain as drain_host
from qserve.deploy.wishes import left_on, undrain

_POLL_INTERVAL_S = 0.1


@click.command()
@click.argument("host", metavar="HOST")
@click.option("--undo", is_flag=True, help="Let it run what is placed there again.")
@click.option("--force", is_flag=True, help="Also drain the last host that offers places.")
@click.option(
    "--timeout-s",
    type=Seconds(),
    default=300.0,
    show_default=True,
    help="How long to wait until it is empty, in seconds.",
)
@broker_option
def drain(host: str, undo: bool, force: bool, timeout_s: float, settings: Settings) -> None:
    """Have what runs on HOST run elsewhere, and wait until it is empty.

    HOST is the name of a host, or of one worker, as `qserve status` shows them. Replicas start elsewhere before they
    stop there. It stays empty until `qserve drain HOST --undo`, also if it is restarted.
    """
    installation = Installation(settings)
    if undo:
        has_changed = undrain(installation, host)
        click.echo(f"{host}: takes replicas again" if has_changed else f"{host}: was not drained")
        return
    has_changed = drain_host(installation, host, force)
    click.echo(f"{host}: draining" if has_changed else f"{host}: is drained already")
    deadline, shown = Deadline(timeout_s), ""
    while True:
        left = left_on(installation, host)
        now = ", ".join(f"{number} of {name}" for name, number in left.moving.items())
        if now and now != shown:
            click.echo(f"  still there: {now}")
        shown = now
        if not left.moving or deadline.has_passed():
            break
        time.sleep(_POLL_INTERVAL_S)
    if left.moving:
        click.echo(f"Error: after {timeout_s:g} s replicas still run on {host}: {now}; it stays drained", err=True)
    for name, number in left.pinned.items():
        click.echo(
            f"Error: {number} of {name} run on {host} until the worker is stopped that was started for it", err=True
        )
    if left.moving or left.pinned:
        sys.exit(1)
    click.echo(f"{host}: empty")
