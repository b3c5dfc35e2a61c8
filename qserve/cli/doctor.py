"""``qserve doctor``: check a broker before anything depends on it."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict

import click

from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.broker.doctor import examine, read_facts
from qserve.cli.options import broker_option, json_option


@click.command()
@broker_option
@json_option
def doctor(settings: Settings, as_json: bool) -> None:
    """Check a broker for problems.

    Checks version, eviction, persistence, clock, password and secret key, and prints a line for each, with a remedy
    for what is wrong. The exit code is 1 if there is an error.
    """
    with contextlib.closing(connect(settings.named_broker)) as client:
        findings = examine(read_facts(client, settings))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    for finding in findings if not as_json else ():
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        click.echo(f"{finding.level:<8} {finding.what}{remedy}")
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)
