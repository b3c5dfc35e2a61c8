"""``qserve doctor``: look a broker over before anything depends on it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.broker.facts import read_facts
from qserve.exceptions import QserveException
from qserve.machine.command_options import broker_option, named_broker
from qserve.machine.doctor import Finding, examine


@click.command()
@broker_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(broker: str | None, as_json: bool) -> None:
    """Check a broker: version, eviction, persistence, clock, password, secret key.

    A line for each thing that was looked at, with its remedy. The exit code is 1 when there is an error.
    """
    try:
        settings = Settings.from_env(broker_url=broker)
        client = connect(named_broker(settings))
    except QserveException as error:
        raise click.ClickException(str(error)) from error
    findings = examine(read_facts(client, settings))
    client.close()
    if as_json:
        click.echo(json.dumps([asdict(one) for one in findings], indent=2))
    else:
        for one in findings:
            click.echo(_line(one))
    if any(one.level == "error" for one in findings):
        sys.exit(1)


def _line(finding: Finding) -> str:
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return f"{finding.level:<8} {finding.what}{remedy}"
