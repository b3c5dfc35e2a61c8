"""``qserve doctor``: check a broker, and the stores of large values, before anything depends on them."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import distributions

import click

from qserve.base.parts import DISTRIBUTIONS
from qserve.base.settings import Settings
from qserve.broker.connection import Client, broker_errors, connect
from qserve.broker.doctor import Finding, examine, read_facts, refusals, sample_acl
from qserve.cli.options import broker_option, json_option
from qserve.deploy.installation import Installation
from qserve.exceptions import QserveException
from qserve.payloads import doctor as doctor_of_stores
from qserve.payloads.store import ValueStore
from qserve.wire.replies import epoch, epoch_text


def _print_acl(ctx: click.Context, option: click.Parameter, is_given: bool) -> None:
    if is_given:
        click.echo(sample_acl(Settings.from_env().namespace), nl=False)
        ctx.exit()


@click.command()
@click.option(
    "--acl",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_acl,
    help="Print an ACL file for the broker, with a user for each role, and exit.",
)
@broker_option
@json_option
def doctor(settings: Settings, as_json: bool) -> None:
    """Check a broker for problems.

    Checks version, eviction, persistence, clock, password and secret key, the stores of large values, and whether the
    broker takes writes now. Prints a line for each, with a remedy for what is wrong. The exit code is 1 if there is an
    error.
    """
    with contextlib.closing(connect(settings.named_broker)) as client:
        facts = read_facts(client, settings)
        findings = examine(facts)
        if not facts.unreachable:
            findings += [*refusals(client, facts), *_of_stores(settings, client)]
    findings += _of_packages()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    for finding in findings if not as_json else ():
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        click.echo(f"{finding.level:<8} {finding.what}{remedy}")
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)


def _of_packages() -> list[Finding]:
    versions = {dist.name: dist.version for dist in distributions() if dist.name in DISTRIBUTIONS}
    if len(versions) < 2:
        return []
    what = f"{' and '.join(map(' '.join, versions.items()))} are installed side by side, and are the same files"
    remedy = f"pip uninstall {' '.join(versions)}, and install one of them"
    return [Finding("warning" if len({*versions.values()}) == 1 else "error", what, remedy)]


def _of_stores(settings: Settings, client: Client) -> Sequence[Finding]:
    installation = Installation(settings, client)
    try:
        with broker_errors():
            now = epoch_text(epoch(client.get(installation.keys.epoch)))
        store = ValueStore(settings, lambda: now)
        with contextlib.closing(store):
            return doctor_of_stores.examine(doctor_of_stores.read_facts(store, installation.fleet.hosts().values()))
    except QserveException as error:
        return [Finding("error", f"the stores of large values cannot be checked: {error}", "see QSERVE_PAYLOADS")]
