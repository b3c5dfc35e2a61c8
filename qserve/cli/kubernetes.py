"""``qserve kubernetes``: write manifests for an application, and the Dockerfile of its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qserve.broker.address import Address
from qserve.cli.stack import Given, finish, plan_of, stack_options
from qserve.exceptions import UsageProblem
from qserve.stacks.compose import SECRETS
from qserve.stacks.files import SECRETS_FOLDER, make_secrets
from qserve.stacks.kubernetes import FILE, TOKEN, kubernetes_text


@click.command()
@stack_options
@click.option("--image", metavar="NAME", help="The images' name with its registry. [default: that of the application]")
@click.option("--tag", default="latest", show_default=True, help="The images' tag; a new one for each release.")
@click.option(
    "--broker", metavar="URL", help="A broker that is there already; its password comes from the secret."
    " [default: one in this stack]",
)  # fmt: skip
@click.option("--api-token", is_flag=True, help="Have the gateway ask for the token in secrets/api_token.")
def kubernetes(
    check: bool, force: bool, image: str | None, tag: str, broker: str | None, api_token: bool, **given: Any
) -> None:
    """Write kubernetes.yaml and a Dockerfile for MODULE:NODE, or for all applications of a FILE.

    Each deployment has its own pods. Those that scale with their load have a ScaledObject for KEDA. The key and the
    broker's password are made once, in the folder secrets, from which `kubectl create secret` takes them.
    """
    if broker and Address.of(broker).options.get("password"):
        raise UsageProblem("--broker: leave the password out, because it would be in the file; put it into the secret")
    tags = tag if tag != "latest" else None
    more = (("--image", image), ("--tag", tags), ("--broker", broker), ("--api-token", "" if api_token else None))
    said = Given("kubernetes", more=more, **given)
    plan = plan_of(said, has_token=api_token, spreads_gpus=True)
    text = kubernetes_text(plan, image or plan.name, tag, broker or "")
    finish(said, plan, {FILE: text}, check=check, force=force)
    if not check:
        make_secrets(Path(SECRETS_FOLDER), [*SECRETS, *([TOKEN] if api_token else [])])
        click.echo(f"the first lines of {FILE} have the commands that come next")
