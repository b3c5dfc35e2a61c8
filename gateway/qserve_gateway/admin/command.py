"""The command ``qserve api``; it imports little, so that ``qserve --help`` can list it quickly."""

from __future__ import annotations

import os
import sys

import click

from qserve.base.environment import read_environment
from qserve.base.parts import require_gateway
from qserve.base.settings import Settings
from qserve.cli.options import WholeNumber, app_dir_option, broker_option
from qserve.exceptions import UsageProblem

ADMIN_TOKEN = "QSERVE_ADMIN_TOKEN"
_MISSING = "set QSERVE_ADMIN_TOKEN, or QSERVE_ADMIN_TOKEN_FILE to a file that has it; `openssl rand -hex 32` makes one"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=WholeNumber(0, 65535), default=8265, show_default=True, help="The port to listen on.")
@app_dir_option
@broker_option
def api(host: str, port: int, app_dir: str, settings: Settings) -> None:
    """Let programs deploy, scale and delete applications over HTTP.

    The paths and bodies are those of Ray Serve: GET, PUT and DELETE /api/serve/applications/. Each request must carry
    the token in $QSERVE_ADMIN_TOKEN, and who has it may run code in the workers.
    """
    require_gateway("`qserve api`")
    token = read_environment().get(ADMIN_TOKEN)
    if not token:
        raise UsageProblem(_MISSING)
    os.environ.update(settings.to_env())
    os.environ[ADMIN_TOKEN] = token
    # in a new interpreter, for the reasons of `qserve gateway`
    options = ["--host", host, "--port", str(port), "--app-dir", app_dir]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "qserve_gateway.admin", *options])
