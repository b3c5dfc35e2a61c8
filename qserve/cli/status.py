"""``qserve status``: show what is deployed, as a table, as JSON or as YAML."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict

import click

from qserve.appfile.yaml_text import yaml_of
from qserve.base.log import printable
from qserve.base.settings import Settings
from qserve.broker.load import BrokerStatus
from qserve.cli.options import broker_option, json_option
from qserve.deploy.installation import Installation
from qserve.deploy.named import versions_named
from qserve.deploy.status import ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus, status_of


@click.command()
@broker_option
@click.option("-n", "--name", metavar="APP", help="Only this application.")
@json_option
@click.option("--yaml", "as_yaml", is_flag=True, help="Print YAML, with the keys of the JSON.")
def status(settings: Settings, name: str | None, as_json: bool, as_yaml: bool) -> None:
    """Show what is deployed on a broker.

    Lists the applications with their deployments and replicas, and the errors of those that do not start. Statuses
    and the keys of JSON and YAML are those of Ray Serve, with more beside them.
    """
    if as_json and as_yaml:
        raise click.UsageError("pass --json or --yaml, and not both")
    installation = Installation(settings)
    if name is not None:
        versions_named(installation, name)  # or refuse
    found = status_of(installation)
    if as_json or as_yaml:
        shown = asdict(found if name is None else found.applications[name])
        click.echo(json.dumps(shown, indent=2) if as_json else yaml_of(shown), nl=as_json)
        return
    if name is None:
        click.echo(_of_broker(found.broker))
        if not found.applications:
            click.echo("no application is deployed")
    for app, overview in found.applications.items():
        if name in (None, app):
            click.echo("\n".join(_of_application(app, overview)))
    for line in _of_hosts(found) if name is None else ():
        click.echo(line)


def _of_application(name: str, app: ApplicationStatusOverview) -> Iterator[str]:
    yield f"{name}  {app.status}  {app.route_prefix or 'no HTTP'}"
    messages = {deployment.message for deployment in app.deployments.values()}
    if app.message and app.message not in messages:
        yield "    " + printable(app.message)
    for deployment, overview in app.deployments.items():
        yield from _of_deployment(deployment, overview)


def _of_deployment(name: str, found: DeploymentStatusOverview) -> Iterator[str]:
    states = ", ".join(f"{count} {state}" for state, count in found.replica_states.items()) or "no replicas"
    parts = [states]
    if found.replica_states.get("RUNNING", 0) != found.target_num_replicas:
        parts.append(f"{found.target_num_replicas} wanted")
    if found.running_calls:
        parts.append(f"{found.running_calls} calls run")
    if found.waiting_calls:
        parts.append(f"{found.waiting_calls} calls wait, the oldest for {found.oldest_call_s:.0f} s")
    yield f"  {name:<24} {found.status:<10} {', '.join(parts)}"
    if found.message:
        yield "    " + printable(found.message).replace("\n", "\n    ")
    if found.last_scaled:
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.last_scaled.at))
        yield printable(f"    {found.last_scaled.count} wanted since {at}: {found.last_scaled.reason}")


def _of_hosts(found: ServeStatus) -> Iterator[str]:
    for worker, host in found.hosts.items():
        places = f"{host.used} of {host.places} places used" if host.places else f"{host.used} replicas of its own"
        devices = f", devices {', '.join(host.devices)}" if host.devices else ""
        yield printable(f"worker {worker}: {places}{devices}{', draining' if host.is_draining else ''}")


def _of_broker(found: BrokerStatus) -> str:
    limit = f" of {found.limit_bytes >> 20}" if found.limit_bytes else ""
    since = time.strftime("since %Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() - found.refuses_for_s))
    how_long = f" {since} ({found.refuses_for_s:.0f} s)" if found.refuses_for_s else ""
    refuses = f": it refuses new requests{how_long}: {found.refuses}" if found.refuses else ""
    return f"broker: {found.used_bytes >> 20}{limit} MiB used, {found.clients} clients{refuses}"
