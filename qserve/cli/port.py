"""``qserve port``: move programs written for Ray Serve to qserve, or back."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from qserve.exceptions import UsageProblem


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--write", is_flag=True, help="Write the files. [default: only show what would change]")
@click.option("--to-ray", is_flag=True, help="Move programs from qserve to Ray Serve.")
@click.pass_context
def port(ctx: click.Context, path: Path, write: bool, to_ray: bool) -> None:
    """Move programs of Ray Serve to qserve: the file PATH, or all Python files below the folder PATH.

    Imports and names are renamed, and everything else stays as it is written. A diff shows what changes; nothing is
    written without --write. Then a list has what could not be moved, each with its place and advice, and the command
    ends with exit code 1 if there is something. Hidden folders, virtual environments and caches are left out.
    """
    try:
        import_module("libcst")  # an extra, and only this command needs it
    except ImportError as error:
        raise UsageProblem("`qserve port` needs the library libcst: pip install 'qserve-celery[port]'") from error
    porting: Any = import_module("qserve.porting.port")
    report = porting.port(path, to_ray=to_ray)
    if write:
        import_module("qserve.porting.files").write(report.changed)
        for name in report.changed:
            click.echo(f"wrote {name}")
        changed = len(report.changed)
        report = porting.port(path, to_ray=to_ray)  # the places of what is left, in the files as they are now
    else:
        changed = len(report.changed)
        for line in report.diffs():
            click.echo(line, nl=False)
    for name, found in report.left.items():
        for one in found:
            click.echo(f"{name}:{one.line}:{one.column}: {one.name} [{one.code}] {one.advice}")
    click.echo(_summary(report, changed, write))
    ctx.exit(1 if report.number_left else 0)


def _summary(report: Any, changed: int, write: bool) -> str:
    left, configs = report.number_left, sum(path not in report.left for path in report.config_files)
    words = f"{changed} of {report.programs} Python files {'were changed' if write else 'would change'}"
    if changed and not write:
        words += " (pass --write to change them)"
    if configs:
        words += f"; {configs} config file{' needs' if configs == 1 else 's need'} no change"
    return f"{words}; {f'{left} left to do by hand' if left else 'nothing is left to do by hand'}"
