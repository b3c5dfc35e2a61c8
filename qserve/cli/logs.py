"""``qserve logs``: show the last log lines of an application's replicas, on all hosts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

import click

from qserve.base.keys import LOG_LINES_KEPT
from qserve.base.log import printable
from qserve.base.settings import Settings
from qserve.cli.options import WholeNumber, broker_option
from qserve.deploy.installation import Installation
from qserve.deploy.log_tail import lines_of
from qserve.deploy.named import application_named, deployments_named, versions_named
from qserve.exceptions import BrokerUnavailable
from qserve.wire.fleet import LogLine

_POLL_INTERVAL_S = 0.25


@click.command()
@click.argument("app", metavar="APP")
@click.argument("deployment", metavar="[DEPLOYMENT]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=WholeNumber(0, LOG_LINES_KEPT),
    default=100,
    show_default=True,
    help="How many of the last lines to show.",
)
@click.option("--request", "request_id", metavar="ID", help="Only the lines of this request (its X-Request-ID).")
@broker_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def logs(
    app: str,
    deployment: str | None,
    follow: bool,
    lines: int,
    request_id: str | None,
    settings: Settings,
    as_json: bool,
) -> None:
    """Show the last lines that the replicas of APP, or of one DEPLOYMENT, have logged on all hosts.

    They are kept for a day, 1,000 of an application, and of each process 50 a second; the logs of the processes have
    all of them. What `print` writes is only there.
    """
    installation = Installation(settings)
    name = application_named(installation, app)
    if deployment is not None:
        deployments_named(versions_named(installation, name)[0], deployment)  # or refuse
    if request_id == "":
        raise click.BadParameter("it must not be empty", param_hint="--request")

    last = ""

    def chosen(found: Iterable[tuple[str, LogLine]]) -> Iterator[LogLine]:
        nonlocal last
        for place, line in found:
            last = place
            if deployment in (None, line.deployment) and request_id in (None, line.request_id):
                yield line

    found = [*chosen(lines_of(installation, name))]
    _print(found[len(found) - min(lines, len(found)) :], as_json)
    with suppress(KeyboardInterrupt):
        for lines_found in _polled(lambda: [*chosen(lines_of(installation, name, last))]) if follow else ():
            _print(lines_found, as_json)


def _polled(read: Callable[[], list[LogLine]]) -> Iterator[list[LogLine]]:
    """Read again and again, also after the broker was away."""
    is_away = False
    while True:
        time.sleep(_POLL_INTERVAL_S)
        try:
            yield read()
            is_away = False
        except BrokerUnavailable as error:
            if not is_away:
                click.echo(f"qserve: {error}; trying again", err=True)
            is_away = True


def _print(lines: Iterable[LogLine], as_json: bool) -> None:
    for line in sorted(lines, key=lambda line: line.at_ms):
        if as_json:
            click.echo(json.dumps(asdict(line)))
            continue
        at = datetime.fromtimestamp(line.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        where = f"{line.source} {line.request_id}" if line.request_id else line.source
        click.echo(printable(f"{at} {line.level} [{where}] {line.text}"))
