"""Options that several commands have, with one wording for each."""

from __future__ import annotations

import click

broker_option = click.option("--broker", metavar="URL", help="The broker. [default: $QSERVE_BROKER_URL or $REDIS_URL]")
app_dir_option = click.option("--app-dir", default=".", show_default=True, help="Where MODULE is searched first.")
name_option = click.option(
    "--name", default="default", show_default=True, metavar="APP", help="The application's name."
)
route_prefix_option = click.option(
    "--route-prefix", metavar="PATH", help="Where the application answers. [default: the ingress's, or /]"
)
