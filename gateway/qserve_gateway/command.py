"""``qserve gateway``: the command, light enough to be listed by ``qserve --help``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])
_OPTIONS = (
    click.option("--host", envvar="QSERVE_HOST", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option("--port", envvar="PORT", type=click.IntRange(0, 65535), default=8000, show_default=True,
                 help="Port to listen on."),
    click.option("--workers", envvar="WEB_CONCURRENCY", type=click.IntRange(1), default=1, show_default=True,
                 help="Processes that serve."),
    click.option("--broker", envvar=["QSERVE_BROKER_URL", "REDIS_URL"], metavar="URL",
                 help="The broker: redis://, rediss://, unix:// or sentinel://."),
    click.option("--access-log", envvar="QSERVE_ACCESS_LOG", is_flag=True, help="Log a line for each request."),
)  # fmt: skip


def gateway_options(function: _F) -> _F:
    """The options that both ``qserve gateway`` and ``python -m qserve_gateway`` take."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command()
@gateway_options
def gateway(host: str, port: int, workers: int, broker: str | None, access_log: bool) -> None:
    """Serve the applications of a broker over HTTP."""
    if broker:
        # by the environment and not by an argument, which every user of the host can read
        os.environ["QSERVE_BROKER_URL"] = broker
    # a fresh interpreter: gevent's patches must come before any other import
    command = [sys.executable, "-m", "qserve_gateway", "--host", host, "--port", str(port)]
    command += ["--workers", str(workers), *(["--access-log"] if access_log else [])]
    os.execv(command[0], command)
