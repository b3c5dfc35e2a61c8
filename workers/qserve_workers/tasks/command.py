"""``qserve tasks``: deployments as tasks of Celery's producers."""

from __future__ import annotations

import sys

import click

from qserve.base.log import log_to_terminal
from qserve.base.process import die_with_parent_if_asked
from qserve.base.settings import Settings
from qserve.broker.address import Address
from qserve.cli.options import WholeNumber, named_broker_option
from qserve.exceptions import UsageProblem
from qserve_workers.tasks.worker import TasksOptions, make_tasks_app, run_worker

DEFAULT_QUEUE = "qserve"


@click.command()
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    help=f"A queue to take tasks from; may be repeated. [default: {DEFAULT_QUEUE}] Those of task consumers are found.",
)
@click.option(
    "--celery-broker",
    envvar="QSERVE_CELERY_BROKER",
    metavar="URL",
    help="Celery's broker. [default: $QSERVE_CELERY_BROKER, or the broker of qserve]",
)
@click.option(
    "--celery-backend",
    envvar="QSERVE_CELERY_BACKEND",
    metavar="URL",
    help="Celery's result backend. [default: $QSERVE_CELERY_BACKEND, or Celery's broker]",
)
@click.option(
    "--concurrency",
    type=WholeNumber(1),
    default=100,
    show_default=True,
    help="How many tasks may wait for their results at a time, each in a thread.",
)
@click.option(
    "--visibility-timeout-s",
    type=WholeNumber(1),
    default=300,
    show_default=True,
    help="How long after the death of this process its tasks are given to another.",
)
@named_broker_option
def tasks(
    queues: tuple[str, ...],
    celery_broker: str | None,
    celery_backend: str | None,
    concurrency: int,
    visibility_timeout_s: int,
    settings: Settings,
) -> None:
    """Call deployments for Celery's producers, and store the results in Celery's result backend.

    `app.send_task("qserve.APP.DEPLOYMENT", args, queue="qserve")` calls a deployment. Messages are not sealed: whoever
    may write to the queues may call any deployment.
    """
    die_with_parent_if_asked()
    log_to_terminal("tasks", settings)
    address = celery_broker or celery_address(settings.named_broker)
    backend, queues = celery_backend or address, queues or (DEFAULT_QUEUE,)
    options = TasksOptions(address, backend, queues, concurrency, visibility_timeout_s)
    app = make_tasks_app(settings, options)
    sys.exit(run_worker(app, options))


def celery_address(url: str) -> str:
    """Return the address of our broker as Celery writes it.

    Raises:
      UsageProblem: Celery writes such an address in another way.
    """
    Address.of(url)  # raises for what is none
    scheme = url.partition("://")[0]
    if scheme == "rediss" and "ssl_cert_reqs" not in url:
        return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"
    if scheme in ("redis", "rediss"):
        return url
    if scheme == "unix" and "?" not in url:
        return f"redis+socket{url.removeprefix('unix')}"
    raise UsageProblem(
        f"Celery writes the address of a broker at {scheme}:// in another way: pass it by --celery-broker"
    )
