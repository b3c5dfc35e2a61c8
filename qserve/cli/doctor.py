"""``qserve doctor``: check a broker before anything depends on it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.broker.doctor import Finding, examine
from qserve.broker.facts import read_facts
from qserve.cli.options import Command, broker_option, json_option


@click.command(cls=Command)
@broker_option
@json_option
def doctor(broker: str | None, as_json: bool) -> None:
    """Check a broker for problems.

    Checks version, eviction, persistence, clock, password and secret key, and prints a line for each, with a remedy
    for what is wrong. The exit code is 1 if there is an error.
    """
    settings = Settings.from_env(broker_url=broker)
    client = connect(settings.named_broker)
    findings = examine(read_facts(client, settings))
    client.close()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(_line(finding))
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)


def _line(finding: Finding) -> str:
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return f"{finding.level:<8} {finding.what}{remedy}"
