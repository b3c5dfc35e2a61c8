"""``qserve config``: print what is deployed, or what a file says, and where each value comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from qserve.appfile.model import ServeFile, json_schema
from qserve.appfile.options import is_default, options_of, origins
from qserve.appfile.read import read_file
from qserve.appfile.write import part_of_record, written
from qserve.base.environment import read_environment
from qserve.base.import_path import search_for_user_code
from qserve.base.log import printable
from qserve.base.settings import DEFAULT_HOST, DEFAULT_PORT, Settings, listening
from qserve.cli.options import app_dir_option, json_option, named_broker_option
from qserve.cli.user_code import load_apart
from qserve.deploy.files import release_of_part
from qserve.deploy.installation import Installation
from qserve.deploy.named import not_found, versions_named
from qserve.deploy.registration import import_application
from qserve.machine.running import settings_of_run
from qserve.wire.application import ApplicationRecord

T = TypeVar("T")
_TOP = (
    ("http_options.host", "QSERVE_HOST", DEFAULT_HOST),
    ("http_options.port", "QSERVE_PORT", DEFAULT_PORT),
    ("http_options.request_timeout_s", "QSERVE_REQUEST_TIMEOUT_S", Settings.request_timeout_s),
    ("logging_config.log_level", "QSERVE_LOG_LEVEL", Settings.log_level),
    ("logging_config.encoding", "QSERVE_LOG_FORMAT", Settings.log_format),
    ("logging_config.enable_access_log", "QSERVE_ACCESS_LOG", "0"),
    ("tracing_config.enabled", "QSERVE_TRACING", Settings.tracing),
    ("tracing_config.exporter_import_path", "QSERVE_TRACING_EXPORTER", Settings.tracing_exporter),
    ("tracing_config.sampling_ratio", "QSERVE_TRACING_SAMPLING_RATIO", Settings.tracing_sampling_ratio),
)
"""What a file says of `qserve run`, with the variable that wins over it, and the default."""
_FILE = "the file that was deployed"


@click.command()
@click.argument("file", required=False, metavar="[FILE]", type=click.Path(path_type=Path))
@click.option("-n", "--name", metavar="APP", help="Print only this application.")
@click.option("--origin", is_flag=True, help="Print each value with the place that it comes from.")
@json_option
@click.option("--schema", is_flag=True, help="Print the JSON schema of the file, from which editors complete it.")
@click.option("--variables", is_flag=True, hidden=True, help="Print what `qserve run FILE` reads from it.")
@app_dir_option
@named_broker_option
def config(
    file: Path | None,
    name: str | None,
    origin: bool,
    as_json: bool,
    schema: bool,
    variables: bool,
    app_dir: str,
    settings: Settings,
) -> None:
    """Print what is deployed as a config file; or check FILE, and print what it says."""
    if schema:
        click.echo(json.dumps(json_schema(), indent=2))
    elif variables and file is not None:
        for variable, value in read_file(file).variables.items():
            click.echo(f"{variable}={value}")
    elif file is not None and origin:
        search_for_user_code(app_dir)
        _print_origins_of_file(read_file(file), name, file, settings)
    elif file is not None:
        said = read_file(file)
        parts = {app.name: said.part(number) for number, app in enumerate(said.applications)}
        more = {} if said.target_capacity is None else {"target_capacity": said.target_capacity}
        _print(_chosen(parts, name, file), as_json, **more)
    else:
        found = settings if settings.broker_url else settings_of_run() or settings
        installation = Installation(found)
        deployed = [*installation.registry.all()] if name is None else versions_named(installation, name)[:1]
        if origin:
            for record in deployed:
                click.echo(_table(record.name, _origins_of_record(record)), nl=False)
        else:
            capacities = [record.capacity for record in deployed if record.capacity is not None]
            more = {"target_capacity": min(capacities)} if capacities else {}
            _print([part_of_record(record) for record in deployed], as_json, **more)


def _chosen(found: dict[str, T], name: str | None, file: Path) -> list[T]:
    if name is None:
        return list(found.values())
    if name not in found:
        raise not_found("application", name, f"is not in {file}; it has:", found)
    return [found[name]]


def _print(parts: list[dict[str, Any]], as_json: bool, **more: Any) -> None:
    whole = {**more, "applications": parts}
    click.echo(json.dumps(whole, indent=2) if as_json else written(parts, **more), nl=as_json)


def _table(owner: str, rows: Iterable[tuple[str, Any, str]]) -> bytes:
    lines = []
    for name, value, origin in rows:
        shown = value if value and isinstance(value, str) else json.dumps(value, sort_keys=True)
        lines.append(printable(f"{' '.join(filter(None, (owner, name))):<56}  {shown:<24}  {origin}\n"))
    return "".join(lines).encode()


def _print_origins_of_file(file: ServeFile, name: str | None, path: Path, settings: Settings) -> None:
    names = {app.name: number for number, app in enumerate(file.applications)}
    chosen = _chosen(names, name, path)
    if name is None:
        click.echo(_table("", _origins_at_the_top(file)), nl=False)
    for number in chosen:

        def load(number: int = number) -> bytes:
            return _table(file.applications[number].name, _origins_of_part(file, number, settings))

        click.echo(load_apart(file.applications[number].import_path, settings.start_timeout_s, load), nl=False)


def _origins_at_the_top(file: ServeFile) -> Iterator[tuple[str, Any, str]]:
    env = listening(read_environment())
    for name, variable, default in _TOP:
        if variable in env:
            yield name, env[variable], variable if os.environ.get(variable) else "QSERVE_PORT"
        elif variable in file.variables:
            yield name, file.variables[variable], file.place(*name.split("."))
        else:
            yield name, default, "default"
    capacity = file.target_capacity
    yield "target_capacity", capacity, "default" if capacity is None else file.place("target_capacity")


def _origins_of_part(file: ServeFile, number: int, settings: Settings) -> Iterator[tuple[str, Any, str]]:
    """Yield what one application of a file consists of; user code is imported."""
    part, path = file.applications[number], ("applications", number)
    record = release_of_part(file, number, settings.keyring).record
    for name in ("route_prefix", "import_path", "args"):
        value = record.route_prefix if name == "route_prefix" else getattr(part, name)
        yield name, value, file.place(*path, name) if name in part.model_fields_set else "code or default"
    code, _ = import_application(part.import_path, part.name, part.args)
    in_code = {deployment.name: deployment.config.model_fields_set for deployment in code.deployments}
    given = {one.name: (index, one.options) for index, one in enumerate(part.deployments)}
    for name, deployment in record.deployments.items():
        index, options = given.get(name, (0, {}))
        where = {option: file.place(*path, "deployments", index, option) for option in options}
        if part.logging_config is not None and "logging_config" not in {*options, *in_code[name]}:
            options = {**options, "logging_config": part.logging_config.given}
            where["logging_config"] = file.place(*path, "logging_config")
        for option, value, origin in origins(deployment, options, in_code[name], where):
            yield f"{name}.{option}", value, origin


def _origins_of_record(record: ApplicationRecord) -> Iterator[tuple[str, Any, str]]:
    """Yield what an application consists of that is deployed; its code is not here."""
    part = record.part
    for name, value in (("route_prefix", record.route_prefix), ("import_path", record.target)):
        yield name, value, _FILE if name in part else "code"
    given = {one["name"]: one for one in part.get("deployments", ())}
    for name, deployment in record.deployments.items():
        options = given.get(name, {})
        changed = [option for option, value in options_of(deployment).items() if not is_default(option, value)]
        in_code = {option.partition(".")[0] for option in changed}
        for option, value, origin in origins(deployment, options, in_code, dict.fromkeys(options, _FILE)):
            yield f"{name}.{option}", value, origin
