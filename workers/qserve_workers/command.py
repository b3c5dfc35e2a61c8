"""``qserve worker``: replicas on this host, and the supervisor that keeps them alive."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import click
from click.core import ParameterSource

import qserve
from qserve.base import once
from qserve.base.import_path import search_for_user_code
from qserve.base.listening import listen
from qserve.base.log import get_logger, log_to_terminal
from qserve.base.numbers import number, size
from qserve.base.process import die_with_parent_if_asked, set_title
from qserve.base.settings import CHECKED, Settings
from qserve.broker.address import Address
from qserve.broker.doctor import check_broker_of
from qserve.cli.options import WholeNumber, app_dir_option, code_version_option, named_broker_option
from qserve.define.target import split_target
from qserve.exceptions import BrokerUnavailable, DeployError
from qserve.tracing.start import preload
from qserve_workers.process.boot import prepare
from qserve_workers.supervisor.offer import Capacity, device_names
from qserve_workers.supervisor.scope import Scope
from qserve_workers.supervisor.supervisor import Supervisor

log = get_logger(__name__)
POLL_INTERVAL_S = 0.05
_QUIET_FOR_S = 1.0
"""How long the wait for a broker is not logged: it may be started together with its workers."""


@click.command()
@click.argument("target", required=False, metavar="[MODULE:NODE]")
@click.option("--deployment", metavar="NAME", help="Run only this deployment. [default: all of the application]")
@click.option(
    "--replicas", type=WholeNumber(0), help="Replicas on this host, whatever is planned. [default: the plan's]"
)
@click.option(
    "--places",
    type=WholeNumber(1),
    envvar="QSERVE_PLACES",
    help="The most replicas on this host, each with one CPU."
    " [default: $QSERVE_PLACES, or as many as it has cores, and more where one would have none]",
)
@click.option("--host", metavar="NAME", help="The name of this host. [default: the system's]")
@click.option(
    "--label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    envvar="QSERVE_LABELS",
    help="What this host is, for label_selector and accelerator_type. [default: $QSERVE_LABELS]",
)
@click.option(
    "--resource",
    "resources",
    metavar="KEY=NUMBER",
    multiple=True,
    envvar="QSERVE_RESOURCES",
    help="What this host has, for resources. [default: $QSERVE_RESOURCES]",
)
@click.option(
    "--devices",
    metavar="0,1",
    envvar="QSERVE_DEVICES",
    help="The GPUs to use; none for none. [default: $QSERVE_DEVICES, or those that the system shows]",
)
@click.option(
    "--memory",
    metavar="SIZE",
    envvar="QSERVE_MEMORY",
    help="How much all replicas may take that have a limit, such as 8gb. [default: $QSERVE_MEMORY, or this host's]",
)
@click.option(
    "--metrics-port",
    metavar="[ADDRESS:]PORT",
    envvar="QSERVE_METRICS_PORT",
    help="Where Prometheus reads this worker's metrics, on 127.0.0.1 unless ADDRESS says otherwise."
    " [default: $QSERVE_METRICS_PORT, or none: the gateways show them]",
)
@click.option("--name", metavar="APP", help="The application. [default: every registered one]")
@app_dir_option
@code_version_option
@named_broker_option
def worker(
    target: str | None,
    deployment: str | None,
    replicas: int | None,
    places: int | None,
    host: str | None,
    labels: Sequence[str],
    resources: Sequence[str],
    devices: str | None,
    memory: str | None,
    metrics_port: str | None,
    name: str | None,
    app_dir: str,
    code_version: str | None,
    settings: Settings,
) -> None:
    """Run replicas of deployments until stopped.

    Code is imported from MODULE:NODE. Without MODULE:NODE, the worker uses the code that `qserve deploy` registered.
    You can start workers before the broker and before `qserve deploy`.
    """
    die_with_parent_if_asked()
    if target:
        split_target(target)
    settings = replace(settings, code_version=code_version or settings.code_version)
    scope = Scope(name or ("default" if target else None), deployment, replicas, target or "")
    if scope.is_pinned:
        _refuse_what_is_planned()
    capacity = Capacity(
        places,
        host or socket.gethostname(),
        None if devices is None else device_names(devices),
        _bytes(memory),
        {name: _amount(value) for name, value in _pairs(resources, "--resource")},
        dict(_pairs(labels, "--label")),
    )
    where = Address.of(settings.named_broker).where
    page = _listen(metrics_port) if metrics_port and settings.metrics else None
    search_for_user_code(app_dir)
    set_title(f"qserve worker {capacity.host}")
    once.share()
    log_to_terminal("supervisor", settings, members={"component_name": "supervisor", "component_id": capacity.host})
    text = "the worker of host %s starts (qserve %s, process %d), with the broker at %s"
    log.info(text, capacity.host, qserve.__version__, os.getpid(), where)
    if not os.environ.get(CHECKED):
        _wait_for_broker(settings)
    preload(settings)
    prepare(settings)
    Supervisor(settings, scope, capacity, page).run()


def _listen(place: str) -> socket.socket:
    """Return a socket that listens on [ADDRESS:]PORT."""
    address, _, port = place.rpartition(":")
    try:
        number = WholeNumber(1, 65535).convert(port, None, None)
        return listen(
            address.strip("[]") or "127.0.0.1", number, lambda family, at: socket.create_server(at[:2], family=family)
        )
    except click.BadParameter as error:
        raise click.UsageError(f"--metrics-port takes [ADDRESS:]PORT, got {place!r}: {error}") from error
    except DeployError as error:
        raise click.UsageError(f"--metrics-port: {str(error).partition(';')[0]}") from error


def _refuse_what_is_planned() -> None:
    """Refuse options that a worker has no use for which runs what it was started for; variables may be for others."""
    context = click.get_current_context()
    for name in ("places", "label", "resource", "memory"):
        parameter = name if name in context.params else f"{name}s"
        if context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name} is for what is planned: leave out --deployment and --replicas, or --{name}"
            )


def _bytes(text: str | None) -> int | None:
    try:
        found = None if text is None else size(text)
    except ValueError as error:
        raise click.UsageError(f"--memory: {error}, such as 8gb") from error
    if found == 0:
        raise click.UsageError("--memory must be larger than 0. Leave it out for the memory of this host")
    return found


def _pairs(given: Sequence[str], option: str) -> Iterator[tuple[str, str]]:
    for one in given:
        name, _, value = one.partition("=")
        if not name or not value:
            raise click.UsageError(f"{option} takes KEY=VALUE, got {one!r}")
        yield name, value


def _amount(text: str) -> float:
    try:
        return number(text)
    except ValueError as error:
        raise click.UsageError(f"--resource takes KEY=NUMBER: {error}") from error


def _wait_for_broker(settings: Settings) -> None:
    """Wait until the broker answers, then check it.

    Raises:
      BrokerError: It must not be used as it is; the message names the remedy.
    """
    for one in (signal.SIGTERM, signal.SIGINT):
        # process 1 of a container has no default for them, and a stop must not wait for a broker
        signal.signal(one, lambda *_: sys.exit(0))
    began, has_warned = time.monotonic(), False
    while True:
        try:
            return check_broker_of(settings)
        except BrokerUnavailable as error:
            if not has_warned and time.monotonic() - began > _QUIET_FOR_S:
                has_warned = True
                log.warning("%s; waiting for it", error)
            time.sleep(POLL_INTERVAL_S)
