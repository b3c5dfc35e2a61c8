"""The command ``qserve gateway``; it imports little, so that ``qserve --help`` can list it quickly."""

from __future__ import annotations

import os
import sys

import click

from qserve.base.parts import require_gateway
from qserve.cli.options import WholeNumber

OPTIONS: list[click.Parameter] = [
    click.Option(["--host"], envvar="QSERVE_HOST", default="127.0.0.1", show_default=True,
                 help="Address to listen on."),
    click.Option(["--port"], envvar="PORT", type=WholeNumber(0, 65535), default=8000, show_default=True,
                 help="Port to listen on."),
    click.Option(["--workers"], envvar="WEB_CONCURRENCY", type=WholeNumber(1), default=1, show_default=True,
                 help="Number of server processes."),
    click.Option(["--broker"], envvar=["QSERVE_BROKER_URL", "REDIS_URL"], metavar="URL",
                 help="URL of the broker: redis://, rediss://, unix:// or sentinel://."),
    click.Option(["--access-log"], envvar="QSERVE_ACCESS_LOG", is_flag=True, help="Log each request."),
]  # fmt: skip
"""The options of ``qserve gateway`` and of ``python -m qserve_gateway``."""


@click.command(params=OPTIONS)
def gateway(host: str, port: int, workers: int, broker: str | None, access_log: bool) -> None:
    """Serve the applications of a broker over HTTP."""
    require_gateway("`qserve gateway`")
    if broker:
        # through the environment, because every user of the host can read a process's arguments
        os.environ["QSERVE_BROKER_URL"] = broker
    # in a new interpreter, because gevent must patch the standard library before any other import; with -P, because
    # others may be able to put modules into the working folder
    command = [sys.executable, "-P", "-m", "qserve_gateway", "--host", host, "--port", str(port)]
    command += ["--workers", str(workers), *(["--access-log"] if access_log else [])]
    os.execv(command[0], command)
