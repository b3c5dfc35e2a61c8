"""``qserve config``: print what is deployed, or what a file says, as a file that says what runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qserve.appfile.model import json_schema
from qserve.appfile.read import read_file


@click.command()
@click.argument("file", required=False, metavar="[FILE]", type=click.Path(path_type=Path))
@click.option("--schema", is_flag=True, help="Print the JSON schema of the file, from which editors complete it.")
@click.option("--variables", is_flag=True, hidden=True, help="Print what `qserve run FILE` reads from it.")
def config(file: Path | None, schema: bool, variables: bool) -> None:
    """Check a FILE that says what runs, or print the schema of such files."""
    if schema:
        click.echo(json.dumps(json_schema(), indent=2))
    elif file is None:
        raise click.UsageError("pass a FILE or --schema")
    elif variables:
        for name, value in read_file(file).variables.items():
            click.echo(f"{name}={value}")
    else:
        click.echo(f"{file}: {', '.join(app.name for app in read_file(file).applications) or 'no applications'}")
