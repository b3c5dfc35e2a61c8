"""``qserve deploy``: register an application with a broker."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from qserve.base.keys import Keys
from qserve.base.process import die_with_parent_if_asked
from qserve.base.settings import CHECKED, Settings
from qserve.base.tracebacks import user_traceback
from qserve.broker.connection import Client, connect, load_functions
from qserve.broker.registry import Registry
from qserve.define.compile import CompiledApplication, compile_application
from qserve.define.options import check_route_prefix
from qserve.define.target import load_target
from qserve.deploy.gateways import wait_for_gateways
from qserve.deploy.records import record_of
from qserve.deploy.replicas import Pool
from qserve.deploy.rollout import READY_FOR_S, Progress, new_version, roll_out
from qserve.exceptions import BrokerUnavailable, QserveException
from qserve.machine.command_options import app_dir_option, broker_option, name_option, named_broker, route_prefix_option
from qserve.machine.doctor import check_or_raise
from qserve.wire.codec import Codec
from qserve.wire.sealing import Seal

_BROKER_FOR_S = 10.0


@click.command()
@click.argument("target", metavar="MODULE:NODE")
@route_prefix_option
@name_option
@app_dir_option
@broker_option
@click.option(
    "--timeout-s",
    default=READY_FOR_S,
    show_default=True,
    help="How long replicas may take to be ready.",
)
@click.option("--gateways", default=0, metavar="N", help="Wait also until so many processes of gateways serve it.")
@click.option("--prefix-fd", type=int, hidden=True, help="An open file that is told where it answers.")
def deploy(
    target: str,
    route_prefix: str | None,
    name: str,
    app_dir: str,
    broker: str | None,
    timeout_s: float,
    gateways: int,
    prefix_fd: int | None,
) -> None:
    """Register MODULE:NODE, wait until its replicas are ready, and switch over to it.

    Replicas are run by `qserve worker`. A version that was deployed before serves until the new one is
    ready, and goes on serving when the new one fails.
    """
    die_with_parent_if_asked()
    sys.path.insert(0, str(Path(app_dir).resolve()))
    built = _build(target, name)
    try:
        settings = Settings.from_env(broker_url=broker)
        url = named_broker(settings)
        if route_prefix is not None:
            check_route_prefix(route_prefix)
        record = record_of(
            built,
            new_version(),
            Codec(settings.keyring),
            target=target,
            route_prefix=route_prefix or built.route_prefix,
        )
        client = connect(url)
        _wait_for_broker(client, settings)
        keys = Keys(settings.namespace)
        registry = Registry(client, keys, Seal(settings.keyring))
        change = roll_out(registry, Pool(client, keys, name), record, timeout_s=timeout_s, on_progress=_show)
        wait_for_gateways(client, keys, change, gateways)
    except (QserveException, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if prefix_fd is not None:
        os.write(prefix_fd, (record.route_prefix or "").encode())


def _build(target: str, name: str) -> CompiledApplication:
    try:
        return compile_application(load_target(target), app_name=name)
    except QserveException as error:
        raise click.ClickException(str(error)) from error
    except Exception as error:
        text = user_traceback(error)
        if "\n" in text:
            click.echo(text, err=True)
        raise click.ClickException(f"{target} cannot be loaded: {type(error).__name__}: {error}") from error


def _wait_for_broker(client: Client, settings: Settings) -> None:
    give_up = time.monotonic() + _BROKER_FOR_S
    while True:
        try:
            if not os.environ.get(CHECKED):
                check_or_raise(client, settings)
            return load_functions(client)
        except BrokerUnavailable:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _show(progress: Progress) -> None:
    state = "ready" if progress.running >= progress.wanted else "starting"
    click.echo(f"  {progress.deployment:<24} {progress.running}/{progress.wanted} {state}")
