"""What the commands that write stacks share: the plan of the stack, and the files that they write or compare."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from qserve import __version__
from qserve.appfile.read import read_file
from qserve.base.import_path import search_for_user_code
from qserve.base.log import printable
from qserve.base.settings import Settings
from qserve.cli.options import app_dir_option, is_file, name_option, only_of_file, route_prefix_option
from qserve.cli.user_code import load_apart
from qserve.define.builder import parse_arguments
from qserve.deploy.files import release_of_part
from qserve.deploy.registration import import_application, release_of
from qserve.exceptions import UsageProblem
from qserve.stacks.files import SECRETS_FOLDER, copy_own_code, difference, keep_out, own_requirement, theirs, write
from qserve.stacks.image import CONSTRAINTS, IGNORED, OWN_FOLDER, Image, constraints, dockerfile, requirements_of
from qserve.stacks.plan import Plan, services_of, slug
from qserve.wire.application import ApplicationRecord

DOCKERFILE = "Dockerfile"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class Given:
    """What the user has said.

    Parameters:
      more: Options of one command with their values; None for one that was not given, "" for one without a value.
    """

    command: str
    target: str
    arguments: tuple[str, ...]
    name: str
    route_prefix: str | None
    app_dir: str
    env: tuple[str, ...]
    python: str
    more: tuple[tuple[str, str | None], ...] = ()

    @property
    def words(self) -> list[str]:
        """The command as it was typed, but for what is said of one run alone."""
        options = []
        for option, value, default in (
            ("--name", self.name, "default"),
            ("--route-prefix", self.route_prefix, None),
            ("--app-dir", self.app_dir, "."),
            ("--python", self.python, _this_python()),
            *((option, value, None) for option, value in self.more),
        ):
            options += [option, *filter(None, [value])] if value != default else []
        variables = [word for variable in self.env for word in ("--env", variable)]
        return ["qserve", self.command, self.target, *self.arguments, *options, *variables]


def stack_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say what the stack is of, and whether files are written or compared."""
    for option in reversed((
        click.argument("target", metavar="MODULE:NODE|FILE"),
        click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]..."),
        name_option,
        route_prefix_option,
        app_dir_option,
        click.option(
            "--env", multiple=True, metavar="NAME[=VALUE]", callback=_check_variables,
            help="A variable of the containers that run your code; without a VALUE, that of the engine's environment.",
        ),
        click.option(
            "--python", default=_this_python(), metavar="VERSION", help="The images' version of Python."
            " [default: of this command]",
        ),
        click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file is not up to date."),
        click.option("--force", is_flag=True, help="Also replace files that this command has not written."),
    )):  # fmt: skip
        command = option(command)
    return command


def _this_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _check_variables(ctx: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for variable in given:
        if not _VARIABLE.fullmatch(variable.partition("=")[0]):
            raise click.BadParameter(f"{variable!r} is not NAME or NAME=VALUE")
    return given


def plan_of(given: Given, *, has_token: bool = False, spreads_gpus: bool = False) -> Plan:
    """Import the applications, and return what their stack consists of.

    Parameters:
      has_token, spreads_gpus: See ``Plan`` and ``services_of``.

    Raises:
      UsageProblem: The target, or the folder, cannot be used.
    """
    if Path.cwd() not in (folder := Path(given.app_dir).resolve(), *folder.parents):
        raise UsageProblem(f"--app-dir {given.app_dir}: it must be inside this folder, from which the images are built")
    search_for_user_code(given.app_dir)
    settings = replace(Settings.from_env(), secret_key=os.urandom(32).hex().encode())  # nothing of this is sent
    environment: dict[str, str] = {}
    scaled: list[str] = []
    host, port = "", "8000"
    if is_file(given.target):
        only_of_file(given.name, given.route_prefix, given.arguments)
        if Path(given.target).is_absolute() or ".." in Path(given.target).parts:
            raise UsageProblem(f"{given.target}: it must be inside this folder, from which the images are built")
        file = read_file(Path(given.target))
        records = [_load(app.import_path, settings, _part_loader(file, number, settings))
                   for number, app in enumerate(file.applications)]  # fmt: skip
        environment = dict(file.variables)
        host, port = environment.pop("QSERVE_HOST", ""), environment.pop("QSERVE_PORT", port)
        scaled = [app.name for app in file.applications if app.external_scaler_enabled]
        target: tuple[str, ...] = (Path(given.target).as_posix(),)
    else:
        records = [_load(given.target, settings, _node_loader(given, settings))]
        prefix = () if given.route_prefix is None else ("--route-prefix", given.route_prefix)
        name = () if given.name == "default" else ("--name", given.name)
        target = (given.target, *given.arguments, *name, *prefix)
    first = (
        records[0].name
        if records and records[0].name != "default"
        else given.target.partition(":")[0].partition(".")[0]
    )
    return Plan(
        name=slug(first),
        target=target,
        services=services_of(records, scaled, spreads_gpus=spreads_gpus),
        has_token=has_token,
        app_dir=Path(given.app_dir).as_posix(),
        environment={"QSERVE_REQUEST_TIMEOUT_S": "60"} | environment,
        own_environment={
            name: value if is_set else None for name, is_set, value in (v.partition("=") for v in given.env)
        },
        port=port if host in _EVERYWHERE else f"{host}:{port}",
        written_by=printable(shlex.join(given.words)),
    )


def _load(target: str, settings: Settings, load: Callable[[], bytes]) -> ApplicationRecord:
    return ApplicationRecord.decode(load_apart(target, settings.start_timeout_s, load))


def _part_loader(file: Any, number: int, settings: Settings) -> Callable[[], bytes]:
    return lambda: release_of_part(file, number, settings.keyring).record.encode()


def _node_loader(given: Given, settings: Settings) -> Callable[[], bytes]:
    def load() -> bytes:
        args = parse_arguments(given.arguments)
        built, modules = import_application(given.target, given.name, args)
        return release_of(built, settings.keyring, given.target, modules, args=args).record.encode()

    return load


def finish(given: Given, plan: Plan, texts: dict[str, str], *, check: bool, force: bool) -> None:
    """Write the files of a stack, or compare them and end with 1 if one is not up to date.

    A Dockerfile of the user's own stays as it is.

    Raises:
      UsageProblem: Another file is the user's own; nothing is written.
    """
    for service in plan.services:
        ignored = service.ignored(in_cluster=given.command == "kubernetes")
        if ignored:
            what = f"deployment {service.deployment.name!r}: nothing in this stack obeys {', '.join(ignored)}"
            click.echo(printable(what), err=True)
    folder = Path()
    files, install = requirements_of(folder)
    image = Image(given.python, own_requirement(__version__), files, install)
    texts = texts | {DOCKERFILE: dockerfile(plan, image), CONSTRAINTS: constraints(plan)}
    for name in [] if force else theirs(folder, texts):
        if name != DOCKERFILE:
            raise UsageProblem(f"{name} exists and was not written by qserve: pass --force to replace it")
        click.echo(f"{name}: is your own, with the targets `worker` and `gateway`; --force replaces it")
        del texts[name]
    if check:
        differs = difference(folder, texts)
        if differs:
            click.echo("\n".join(map(printable, differs.splitlines())))
            raise click.ClickException(f"not up to date: run `{plan.written_by}`")
        click.echo(f"{', '.join(texts)}: up to date")
        return
    changed = write(folder, texts)
    own = [OWN_FOLDER] if image.qserve.startswith(".") else []
    keep_out(folder / ".dockerignore", [SECRETS_FOLDER, *(f"!{name}" for name in own)], IGNORED)
    keep_out(folder / ".gitignore", [f"{name}/" for name in (SECRETS_FOLDER, *own)])
    copy_own_code(folder)
    click.echo(f"{', '.join(texts)}: {f'wrote {len(changed)}' if changed else 'up to date'}")
