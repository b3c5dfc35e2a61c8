"""``qserve build``: write the config file, from applications in code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qserve.appfile.write import part_of, written
from qserve.base.import_path import search_for_user_code
from qserve.base.settings import Settings
from qserve.cli.options import app_dir_option
from qserve.cli.user_code import load_apart
from qserve.define.builder import parse_arguments
from qserve.deploy.registration import import_application
from qserve.exceptions import UsageProblem


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="MODULE:NODE... [KEY=VALUE]...")
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to write; - for standard output.")
@click.option(
    "--name", metavar="APP", help="The name of the application. [default: default; of several app1, app2, ...]"
)
@click.option("--force", is_flag=True, help="Write FILE even if that changes one that is there.")
@app_dir_option
def build(targets: tuple[str, ...], output: str, name: str | None, force: bool, app_dir: str) -> None:
    """Write a FILE for `qserve deploy` and `qserve run`.

    It has every deployment of the applications with the options that the code sets. KEY=VALUE are the arguments of a
    builder, MODULE:BUILDER.
    """
    search_for_user_code(app_dir)
    paths = [word for word in targets if "=" not in word]
    args = parse_arguments([word for word in targets if "=" in word])
    if not paths or (len(paths) > 1 and (args or name)):
        raise UsageProblem("name one MODULE:NODE; --name and KEY=VALUE belong to a single one")
    names = [f"app{number}" for number in range(1, len(paths) + 1)] if len(paths) > 1 else [name or "default"]
    command = f"qserve build {' '.join(targets)} -o {output}"
    header = f"Written by `{command}`.\n`qserve deploy FILE` and `qserve run FILE` read it."

    def load() -> bytes:
        return written(
            [_part(path, app, args, len(paths) > 1) for path, app in zip(paths, names, strict=True)], header
        ).encode()

    text = load_apart(" ".join(paths), Settings.from_env().start_timeout_s, load).decode()
    if output == "-":
        click.echo(text, nl=False)
        return
    path = Path(output)
    try:
        if path.exists() and not force and path.read_text(encoding="utf-8", errors="replace") != text:
            raise UsageProblem(f"{path} exists and says something else: pass --force to replace it")
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error
    click.echo(f"{path}: {', '.join(names)}")


def _part(path: str, app: str, args: dict[str, str], is_one_of_several: bool) -> dict[str, Any]:
    built, _ = import_application(path, app, args)
    part = part_of(built, path, dict(args))
    if is_one_of_several and part["route_prefix"] == "/":
        part["route_prefix"] = f"/{app}"
    return part
