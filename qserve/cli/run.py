"""``qserve run``: everything on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from qserve.base.log import log_to_terminal
from qserve.base.process import Child
from qserve.base.settings import DEFAULT_HOST, DEFAULT_PORT, Settings
from qserve.exceptions import QserveException
from qserve.machine.command_options import app_dir_option, name_option, route_prefix_option
from qserve.machine.launch import Launch

_LOOK_S = 0.2


@click.command()
@click.argument("target", metavar="MODULE:NODE")
@click.option("--host", default=DEFAULT_HOST, show_default=True, help="Address that the gateway listens on.")
@click.option(
    "--port",
    default=DEFAULT_PORT,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Its port.",
)
@route_prefix_option
@name_option
@app_dir_option
@click.option(
    "--broker",
    metavar="URL",
    help="A broker to use. [default: $QSERVE_BROKER_URL, or an embedded one]",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Processes of the gateway.",
)
@click.option("--request-timeout-s", type=float, help="Deadline of a request. [default: 60]")
@click.option(
    "--show-errors",
    is_flag=True,
    default=None,
    help="Put user code's tracebacks into HTTP error bodies.",
)
def run(
    target: str,
    host: str,
    port: int,
    route_prefix: str | None,
    name: str,
    app_dir: str,
    broker: str | None,
    workers: int,
    request_timeout_s: float | None,
    show_errors: bool | None,
) -> None:
    """Serve MODULE:NODE: a broker, the replicas and the gateway, ended together by Ctrl-C."""
    began = time.monotonic()
    interrupts = Interrupts()
    try:
        settings = Settings.from_env(
            broker_url=broker, request_timeout_s=request_timeout_s, show_errors=show_errors or None
        )
        log_to_terminal("run", settings)
        click.echo(f"qserve: starting {target} on {'the embedded broker' if not settings.broker_url else 'the broker'}")
        with interrupts.held():
            launch = Launch(settings, host=host, port=port, gateway_workers=workers, import_paths=(app_dir,))
    except QserveException as error:
        raise click.ClickException(str(error)) from error
    try:
        interrupts.raise_held()
        prefix = _deploy(launch, target, name, route_prefix, app_dir, interrupts)
        launch.keep()
        click.echo(f"qserve: ready in {time.monotonic() - began:.1f} s: {launch.url}{prefix}  (Ctrl-C stops it)")
        while True:
            launch.check()
            time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        click.echo("\nqserve: stopping")
    except QserveException as error:
        launch.stop()
        raise click.ClickException(str(error)) from error
    finally:
        launch.stop()


def _deploy(
    launch: Launch, target: str, name: str, route_prefix: str | None, app_dir: str, interrupts: Interrupts
) -> str:
    """Run ``qserve deploy`` in a process of its own; answers the route prefix once the gateway serves.

    This process stays free of user code, and of all that it takes to talk to a broker.
    """
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "qserve", "deploy", target, "--name", name, "--app-dir", app_dir]
    command += ["--gateways", str(launch.gateway_workers), "--prefix-fd", str(write_end)]
    if route_prefix is not None:
        command += ["--route-prefix", route_prefix]
    with interrupts.held():
        child = Child("qserve deploy", command, launch.settings.to_env(), pass_fds=(write_end,))
        os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as prefix:
        _finish_deploy(launch, child, interrupts)
        return prefix.read()


def _finish_deploy(launch: Launch, child: Child, interrupts: Interrupts) -> None:
    try:
        interrupts.raise_held()
        while (code := child.wait(0.05)) is None:
            launch.check()
    except BaseException:
        child.kill()
        raise
    if code != 0:
        launch.check()  # what it says may only be how it noticed that another one is gone
        launch.stop()
        sys.exit(1)  # it has said why


class Interrupts:
    """Ctrl-C and SIGTERM as one KeyboardInterrupt, and only where nothing is half started.

    Processes begun between a start and the line that notes them would be left behind.
    """

    def __init__(self) -> None:
        self._held = False
        self._came = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self._came = not self._came, True
        if first and not self._held:  # a second Ctrl-C must not leave half of it running
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep an interrupt back until ``raise_held``."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def raise_held(self) -> None:
        """Raise the interrupt that was kept back."""
        if self._came:
            raise KeyboardInterrupt
