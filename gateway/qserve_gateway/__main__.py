"""``python -m qserve_gateway``: the gateway's server process."""

from __future__ import annotations

import qserve_gateway.patched  # noqa: F401  must come first, see there

# isort: split
import click

from qserve.base.settings import Settings
from qserve.exceptions import QserveException
from qserve_gateway.command import gateway_options
from qserve_gateway.server import serve


@click.command()
@gateway_options
def main(host: str, port: int, workers: int, broker: str | None, access_log: bool) -> None:
    """Serve the applications of a broker over HTTP."""
    try:
        settings = Settings.from_env(broker_url=broker)
    except QserveException as error:
        raise click.ClickException(str(error)) from error
    if settings.broker_url is None:
        raise click.ClickException("no broker is named: give --broker or set QSERVE_BROKER_URL")
    serve(settings, host, port, workers, access_log)


if __name__ == "__main__":
    main()
