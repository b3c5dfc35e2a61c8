"""What several commands share: their options, and how they load user code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from qserve.base.settings import Settings
from qserve.base.tracebacks import user_traceback
from qserve.exceptions import QserveException

broker_option = click.option(
    "--broker",
    "settings",
    metavar="URL",
    callback=lambda ctx, option, url: Settings.from_env(broker_url=url),
    help="The broker's address. [default: $QSERVE_BROKER_URL or $REDIS_URL]",
)
app_dir_option = click.option(
    "--app-dir", default=".", show_default=True, help="The folder in which MODULE is searched for first."
)
name_option = click.option(
    "--name", default="default", show_default=True, metavar="APP", help="The name of the application."
)
route_prefix_option = click.option(
    "--route-prefix",
    metavar="PATH",
    help="The URL path of the application. [default: the ingress's route_prefix, or /]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def import_first_from(app_dir: str) -> None:
    """Search a folder for modules before any other."""
    sys.path.insert(0, str(Path(app_dir).resolve()))


@contextmanager
def errors_of_user_code(target: str) -> Iterator[None]:
    """Report an error that user code raises while it is loaded: its traceback, and then one message."""
    try:
        yield
    except QserveException:
        raise
    except Exception as error:
        trace = user_traceback(error)
        if "\n" in trace:
            click.echo(trace, err=True)
        raise click.ClickException(f"{target} cannot be loaded: {type(error).__name__}: {error}") from error
