"""``qserve run``: serve an application on this machine until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import FrameType
from typing import Any

import click

from qserve.base.environment import read_environment
from qserve.base.import_path import search_for_user_code, user_folders
from qserve.base.log import log_to_terminal
from qserve.base.settings import DEFAULT_HOST, DEFAULT_PORT, Settings, listening
from qserve.cli.options import (
    Seconds,
    WholeNumber,
    app_dir_option,
    is_file,
    name_option,
    only_of_file,
    route_prefix_option,
)
from qserve.exceptions import UsageProblem
from qserve.machine.children import Child, ReasonGiven
from qserve.machine.local_cluster import LocalCluster

_POLL_INTERVAL_S = 0.05
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


_REFUSED = {
    "--address": "name the broker with --broker",
    "--non-blocking": "use `qserve deploy`, with `qserve worker` and `qserve gateway`",
    "--runtime-env": "install packages and set variables where `qserve run` is started",
    "--runtime-env-json": "install packages and set variables where `qserve run` is started",
}
"""Options of Ray Serve's command that this one does not have, with what to use instead."""


def _refuse(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    if value:
        raise UsageProblem(f"{option.opts[0]} is not an option of `qserve run`: {_REFUSED[option.opts[0]]}")


def _refusing(command: Callable[..., Any]) -> Callable[..., Any]:
    for name in _REFUSED:
        is_flag = name == "--non-blocking"
        command = click.option(name, is_flag=is_flag, expose_value=False, hidden=True, callback=_refuse)(command)
    return command


@click.command()
@click.argument("target", metavar="MODULE:NODE|FILE")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--host",
    help="The address that the gateway listens on."
    f" [default: $QSERVE_HOST, `http_options.host` of FILE, or {DEFAULT_HOST}]",
)
@click.option(
    "--port",
    type=WholeNumber(1, 65535),
    help="The port that the gateway listens on."
    f" [default: $QSERVE_PORT, `http_options.port` of FILE, or {DEFAULT_PORT}]",
)
@route_prefix_option
@name_option
@app_dir_option
@click.option("--working-dir", metavar="FOLDER", help="Ray Serve's name of --app-dir.")
@click.option(
    "--blocking", is_flag=True, expose_value=False, help="Accepted for Ray Serve's scripts: `qserve run` always waits."
)
@click.option("-r", "--reload", is_flag=True, help="Deploy again whenever a module in --app-dir, or FILE, has changed.")
@_refusing
@click.option("--broker", metavar="URL", help="The broker to use. [default: $QSERVE_BROKER_URL, or an embedded broker]")
@click.option("--workers", default=1, show_default=True, type=WholeNumber(1), help="The number of gateway processes.")
@click.option("--request-timeout-s", type=Seconds(), help="The deadline of a request, in seconds. [default: 60]")
@click.option(
    "--show-errors", is_flag=True, default=None, help="Include tracebacks of user code in the bodies of HTTP errors."
)
def run(
    target: str,
    arguments: tuple[str, ...],
    host: str | None,
    port: int | None,
    route_prefix: str | None,
    name: str,
    app_dir: str,
    working_dir: str | None,
    workers: int,
    broker: str | None,
    request_timeout_s: float | None,
    show_errors: bool | None,
    reload: bool,
) -> None:
    """Serve MODULE:NODE, or all applications of a FILE, on this machine.

    Starts a broker, the replicas and the gateway, and stops all of them on Ctrl-C. KEY=VALUE are the arguments of a
    builder, MODULE:BUILDER.
    """
    began = time.monotonic()
    env = listening(read_environment())
    options = ["--name", name]
    if is_file(target):
        only_of_file(name, route_prefix, arguments)
        env, options = _variables(target) | env, []
    if "QSERVE_ACCESS_LOG" in env:  # of the file: the gateway reads it
        os.environ.setdefault("QSERVE_ACCESS_LOG", env["QSERVE_ACCESS_LOG"])
    app_dir = working_dir or app_dir
    search_for_user_code(app_dir)
    changes = _changes(app_dir, target) if reload else None
    interrupts = Interrupts()
    settings = Settings.from_env(
        env, broker_url=broker, request_timeout_s=request_timeout_s, show_errors=show_errors or None
    )
    log_to_terminal("run", settings)
    click.echo(f"qserve: starting {target} on {'the embedded broker' if not settings.broker_url else 'the broker'}")
    options += ["--app-dir", app_dir, "--gateways", str(workers)]
    if route_prefix is not None:
        options += ["--route-prefix", route_prefix]
    with contextlib.ExitStack() as cleanup:
        try:
            host = host or env.get("QSERVE_HOST", DEFAULT_HOST)
            ui_token = _ui_token(host, env)
            cluster = LocalCluster(
                settings,
                host=host,
                port=port or _port(env.get("QSERVE_PORT", str(DEFAULT_PORT))),
                gateway_workers=workers,
                import_paths=user_folders(),
                uninterrupted=interrupts.deferred,
                gateway_env={"QSERVE_UI_ACTIONS_TOKEN": ui_token} if ui_token else {},
            )
            cleanup.callback(cluster.stop)
            cluster.start()
            prefixes = _deploy(cluster, [target, *arguments, *options], interrupts)
            cluster.keep_running(target)
            urls = [f"{cluster.url}{prefix}" for prefix in prefixes]
            if ui_token:
                click.echo(f"qserve: live page: {cluster.url}/-/ui#token={ui_token}")
            click.echo(f"qserve: ready in {time.monotonic() - began:.1f} s: {urls[0]}  (Ctrl-C stops it)")
            for url in urls[1:]:
                click.echo(f"qserve: and {url}")
            for changed in changes or ():
                cluster.check()
                if changed:
                    click.echo(f"qserve: {', '.join(changed)} changed; deploying again")
                    with contextlib.suppress(SystemExit):  # it has printed its error, and the old version goes on
                        _deploy(cluster, [target, *arguments, *options], interrupts)
            cluster.wait()
        except ReasonGiven:
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("\nqserve: stopping")


def _ui_token(host: str, env: Mapping[str, str]) -> str:
    """Return a token for the live page of this run; "" if it has one already, or if others can reach its address."""
    is_set = env.get("QSERVE_UI_TOKEN") or env.get("QSERVE_UI_ACTIONS_TOKEN")
    return "" if is_set or host not in _LOOPBACK else secrets.token_hex(16)


def _variables(file: str) -> dict[str, str]:
    """Return what a file says of the gateway and the logs, as environment variables.

    It is read in a process of its own, as all that checks it would stay in the memory of this one.
    """
    command = [sys.executable, "-P", "-m", "qserve", "config", file, "--variables"]
    read = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if read.returncode:
        sys.exit(read.returncode)  # it has printed its error
    return dict(line.split("=", 1) for line in read.stdout.splitlines())


def _changes(folder: str, target: str) -> Iterator[list[str]]:
    watch = import_module("qserve.cli.reload").changes  # with its library, which others need not have
    found: Iterator[list[str]] = watch(folder, target if is_file(target) else None)
    return found


def _port(text: str) -> int:
    try:
        return WholeNumber(1, 65535).convert(text, None, None)  # type: ignore[no-any-return]
    except click.BadParameter as error:
        raise UsageProblem(f"QSERVE_PORT: {error}") from error


def _deploy(cluster: LocalCluster, arguments: list[str], interrupts: Interrupts) -> list[str]:
    """Run ``qserve deploy`` in its own process, and return the route prefixes once the gateway serves.

    This process imports neither user code nor the client of the broker.
    """
    read_end, write_end = os.pipe()
    command = [sys.executable, "-P", "-m", "qserve", "deploy", *arguments, "--prefix-fd", str(write_end)]
    with os.fdopen(read_end, encoding="utf-8") as prefix, contextlib.ExitStack() as cleanup:
        with interrupts.deferred():
            child = Child("qserve deploy", command, cluster.user_code_env, pass_fds=(write_end,))
            cleanup.callback(child.kill)
            os.close(write_end)
        code = None
        while code is None:
            # an interrupt inside of subprocess may leave its lock taken, and `kill` would wait for that for ever
            with interrupts.deferred():
                code = child.wait(_POLL_INTERVAL_S)
                cluster.check()
        cleanup.pop_all()
        if code != 0:
            cluster.check()  # its error may only be a consequence of another process that has died
            sys.exit(min(code, 2) if code > 0 else 1)  # it has printed its error
        prefixes, *tasks = prefix.read().split("\0")
        cluster.serve_tasks(place.split(" ") for place in tasks)
        return prefixes.split("\n")


class Interrupts:
    """Raises one KeyboardInterrupt for Ctrl-C and SIGTERM, and never while processes are being started.

    An interrupt between the start of a process and the assignment that records it would leave the process behind.
    """

    def __init__(self) -> None:
        self._deferred = False
        self._received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self._received = not self._received, True
        if first and not self._deferred:  # a second Ctrl-C must not leave half of the processes running
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Raise an interrupt at the end of the block only."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._received:
            raise KeyboardInterrupt
