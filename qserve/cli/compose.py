"""``qserve compose``: write a docker-compose.yml for an application, and the Dockerfile of its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qserve.cli.stack import Given, finish, plan_of, stack_options
from qserve.stacks.compose import FILE, SECRETS, compose_text
from qserve.stacks.files import SECRETS_FOLDER, make_secrets


@click.command()
@stack_options
def compose(check: bool, force: bool, **given: Any) -> None:
    """Write docker-compose.yml and a Dockerfile for MODULE:NODE, or for all applications of a FILE.

    They are for the folder that this is run in, with what requirements.txt or pyproject.toml name. The key and the
    broker's password are made once, in the folder secrets. Then `docker compose up -d --build` starts the stack.
    """
    said = Given("compose", **given)
    plan = plan_of(said)
    finish(said, plan, {FILE: compose_text(plan)}, check=check, force=force)
    if not check:
        make_secrets(Path(SECRETS_FOLDER), SECRETS)
        click.echo("start it with: docker compose up -d --build")
