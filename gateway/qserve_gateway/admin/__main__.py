"""``python -m qserve_gateway.admin``: the server process of ``qserve api``."""

from __future__ import annotations

import qserve  # noqa: F401  first of all: it takes the working folder off the path

# isort: split
from gevent import monkey

monkey.patch_all()  # before every other import, as in the gateway

import os  # noqa: E402
from functools import partial  # noqa: E402

import click  # noqa: E402

from qserve.base.import_path import all_at_once  # noqa: E402

with all_at_once():
    from qserve.base.settings import Settings
    from qserve_gateway.admin.application import create_api
    from qserve_gateway.admin.command import ADMIN_TOKEN
    from qserve_gateway.request.access import AccessPolicy
    from qserve_gateway.server import serve


@click.command()
@click.option("--host")
@click.option("--port", type=int)
@click.option("--app-dir")
def main(host: str, port: int, app_dir: str) -> None:
    """Serve the API for programs."""
    # user code, which a deploy imports, must not see the token
    access = AccessPolicy.from_env({ADMIN_TOKEN: os.environ.pop(ADMIN_TOKEN, "")}, ADMIN_TOKEN)
    serve(Settings.from_env(), host, port, name="api", create=partial(create_api, access=access, app_dir=app_dir))


if __name__ == "__main__":
    main()
