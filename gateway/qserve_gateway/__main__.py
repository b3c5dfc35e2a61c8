"""``python -m qserve_gateway``: the gateway's server process."""

from __future__ import annotations

import qserve  # noqa: F401  first of all: it takes the working folder off the path

# isort: split
from gevent import monkey

# before every import that takes locks, queues or sockets: a module that did `from queue import SimpleQueue` earlier
# would keep the original, and stop the whole process instead of one greenlet when it waits
monkey.patch_all()

import click  # noqa: E402

from qserve.base.import_path import all_at_once  # noqa: E402

with all_at_once():
    from qserve.base.settings import NO_BROKER, Settings
    from qserve.exceptions import QserveException
    from qserve_gateway.command import OPTIONS
    from qserve_gateway.server import serve


@click.command(params=OPTIONS)
def main(host: str, port: int, workers: int, broker: str | None, access_log: bool) -> None:
    """Serve the applications of a broker over HTTP."""
    try:
        settings = Settings.from_env(broker_url=broker)
    except QserveException as error:
        raise click.ClickException(str(error)) from error
    if settings.broker_url is None:
        raise click.ClickException(NO_BROKER)
    serve(settings, host, port, workers, access_log)


if __name__ == "__main__":
    main()
