"""``qserve init``: write a small application to start from, with its test."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import click

from qserve.base.log import printable
from qserve.cli.compose import compose
from qserve.cli.stack import DOCKERFILE
from qserve.cli.starter import TARGET, starter
from qserve.exceptions import UsageProblem
from qserve.stacks.compose import FILE
from qserve.stacks.files import SECRETS_FOLDER
from qserve.stacks.image import CONSTRAINTS, OWN_FOLDER

_STACK = (FILE, DOCKERFILE, CONSTRAINTS, ".dockerignore", SECRETS_FOLDER, OWN_FOLDER)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_NEEDED = ("qserve-celery", "pytest", "mypy")


@click.command()
@click.argument("folder", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", metavar="NAME", help="The name of the project. [default: that of the folder]")
@click.option(
    "--compose", "with_stack", is_flag=True,
    help="Also write docker-compose.yml and a Dockerfile, as `qserve compose` does.",
)  # fmt: skip
@click.pass_context
def init(ctx: click.Context, folder: Path, name: str | None, with_stack: bool) -> None:
    """Write a small application into FOLDER.

    These are hello.py with a graph, its test, pyproject.toml, README.md and .gitignore. FOLDER is this one by default,
    and is made if it does not exist. Files that exist are never replaced.
    """
    texts = starter(_checked(folder.resolve().name if name is None else name))
    names = [*texts, *(_STACK if with_stack else ())]
    taken = [str(folder / name) for name in names if os.path.lexists(folder / name)]
    if taken:
        raise UsageProblem(
            f"these exist already, and qserve init replaces nothing: {', '.join(taken)}. Choose another folder, or"
            " move them away"
        )
    try:
        with _all_or_nothing(folder, names):
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
            if with_stack:
                with contextlib.chdir(folder):
                    ctx.invoke(compose, target=TARGET)
    except OSError as error:
        raise click.ClickException(f"{error.filename} cannot be written: {error.strerror}") from error
    there = f"cd {shlex.quote(str(folder))} && " if folder.resolve() != Path.cwd() else ""
    click.echo(f"wrote {printable(', '.join(str(folder / name) for name in texts))}\n\nNow type:")
    for command in (f"{printable(there)}pip install -e '.[dev]'", "pytest", f"qserve run {TARGET} --reload"):
        click.echo(f"  {command}")


def _checked(project: str) -> str:
    if not _NAME.fullmatch(project):
        better = re.sub(r"[^A-Za-z0-9._-]+", "-", project).strip("-_.") or "hello"
        raise UsageProblem(
            f"{project!r} cannot be the name of a project, which consists of letters, digits, '-', '_' and '.', and"
            f" begins and ends with a letter or digit: pass --name {better}"
        )
    if re.sub(r"[-_.]+", "-", project).lower() in _NEEDED:
        raise UsageProblem(f"{project!r} is the name of a package that the project needs: pass --name my-{project}")
    return project


@contextlib.contextmanager
def _all_or_nothing(folder: Path, names: Collection[str]) -> Iterator[None]:
    """Make the folder if need be; if the block fails, remove these names, which were not there, and what was made."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    caches = {"__pycache__"} - {path.name for path in folder.glob("__pycache__")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for name in (*names, *caches):
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for one in made:
            with contextlib.suppress(FileNotFoundError):
                one.rmdir()
        raise
