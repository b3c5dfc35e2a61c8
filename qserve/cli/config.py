"""``qserve config``: print the schema of the files that say what runs."""

from __future__ import annotations

import json

import click

from qserve.appfile.model import json_schema


@click.command()
@click.option("--schema", is_flag=True, help="Print the JSON schema of the file, from which editors complete it.")
def config(schema: bool) -> None:
    """Print what files that say what runs may contain."""
    if not schema:
        raise click.UsageError("pass --schema")
    click.echo(json.dumps(json_schema(), indent=2))
