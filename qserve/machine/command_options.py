"""What several commands share: the wording of their options, and their need of a broker."""

from __future__ import annotations

import click

from qserve.base.settings import Settings
from qserve.exceptions import QserveException

broker_option = click.option("--broker", metavar="URL", help="The broker. [default: $QSERVE_BROKER_URL or $REDIS_URL]")
app_dir_option = click.option("--app-dir", default=".", show_default=True, help="Where MODULE is searched first.")
name_option = click.option(
    "--name", default="default", show_default=True, metavar="APP", help="The application's name."
)
route_prefix_option = click.option(
    "--route-prefix", metavar="PATH", help="Where the application answers. [default: the ingress's, or /]"
)


def named_broker(settings: Settings) -> str:
    """The address of the broker, for a command that starts none of its own.

    Raises:
      QserveException: None is named.
    """
    if settings.broker_url is None:
        raise QserveException("no broker is named: give --broker URL or set QSERVE_BROKER_URL")
    return settings.broker_url
