"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import click

from qserve.base.numbers import number, whole_number
from qserve.base.settings import LEAST_S, MOST_S, NO_BROKER, Settings
from qserve.exceptions import QserveException, UsageProblem
from qserve.machine.running import none_found, settings_of_run

_RUN = "qserve.run"


class BadInput(click.ClickException):
    """Bad input of a user: one line, exit code 2, and nothing was changed."""

    exit_code = 2


def is_file(target: str) -> bool:
    """Return whether a command's target is a config file, and not ``module:node``."""
    return target.endswith((".yaml", ".yml", ".json")) or (Path(target).is_file() and not target.endswith(".py"))


def only_of_file(name: str, route_prefix: str | None, arguments: Collection[str]) -> None:
    """Refuse options that say what a file says itself."""
    if arguments or route_prefix is not None or name != "default":
        raise UsageProblem("KEY=VALUE, --name and --route-prefix are for MODULE:NODE; a FILE says all of this itself")


class WholeNumber(click.IntRange):
    """A whole number in decimal digits; click itself takes all that Python's ``int`` takes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            try:
                value = whole_number(value)
            except ValueError as error:
                self.fail(f"{error} in the range {self._describe_range()}.", param, ctx)
        return super().convert(value, param, ctx)


class Seconds(click.FloatRange):
    """A duration in seconds."""

    def __init__(self) -> None:
        super().__init__(LEAST_S, MOST_S)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            try:
                value = number(value)
            except ValueError as error:
                self.fail(f"{error} of seconds.", param, ctx)
        return super().convert(value, param, ctx)


def _read_settings(ctx: click.Context, option: click.Parameter, url: str | None) -> Settings:
    try:
        return Settings.from_env(broker_url=url)
    except QserveException as error:
        raise click.ClickException(str(error)) from error


def _find_settings(ctx: click.Context, option: click.Parameter, url: str | None) -> Settings:
    pid = ctx.meta[_RUN]
    if url and pid:
        raise click.UsageError("pass --broker or --run, and not both")
    settings = _read_settings(ctx, option, url)
    if settings.broker_url is not None and not pid:
        return settings
    found = settings_of_run(pid or "")
    if found is None:
        raise click.ClickException(f"{NO_BROKER}; {none_found()}")
    return found


def _not_empty(ctx: click.Context, option: click.Parameter, text: str) -> str:
    if not text:
        raise click.BadParameter("it must not be empty: leave it out, or set it")
    return text


named_broker_option: Final = click.option(
    "--broker",
    "settings",
    metavar="URL",
    callback=_read_settings,
    help="The broker's address. [default: $QSERVE_BROKER_URL or $REDIS_URL]",
)


def broker_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the settings of the broker that is named, or of the `qserve run` of this user."""
    command = click.option(
        "--run",
        metavar="PID",
        expose_value=False,
        is_eager=True,  # the callback of --broker reads it
        callback=lambda ctx, option, pid: ctx.meta.update({_RUN: pid}),
        help="The `qserve run` of yours to use, where several run. [default: $QSERVE_RUN]",
    )(command)
    return click.option(
        "--broker",
        "settings",
        metavar="URL",
        callback=_find_settings,
        help="The broker's address. [default: $QSERVE_BROKER_URL, $REDIS_URL, or the broker of your `qserve run`]",
    )(command)


app_dir_option: Final = click.option(
    "--app-dir", default=".", show_default=True, help="The folder in which MODULE is searched for first."
)
name_option: Final = click.option(
    "--name",
    default="default",
    show_default=True,
    metavar="APP",
    callback=_not_empty,
    help="The name of the application.",
)
route_prefix_option: Final = click.option(
    "--route-prefix",
    metavar="PATH",
    help="The URL path of the application. [default: the ingress's route_prefix, or /]",
)
code_version_option: Final = click.option(
    "--code-version",
    metavar="NAME",
    help="The name of the code on this host, such as the tag of its image. Only replicas with this code run it."
    " [default: $QSERVE_CODE_VERSION, or the content of the modules]",
)
json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
