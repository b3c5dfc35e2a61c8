"""``qserve graph``: draw a graph without running it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import click

from qserve.define.target import load_target
from qserve.drawing.dot import to_dot
from qserve.drawing.mermaid import to_mermaid
from qserve.drawing.picture import Picture, picture_of, to_json
from qserve.drawing.svg import to_svg
from qserve.exceptions import QserveException
from qserve.machine.command_options import app_dir_option

_WRITERS: dict[str, Callable[[Picture], str]] = {
    "dot": to_dot,
    "mermaid": to_mermaid,
    "svg": to_svg,
    "json": to_json,
}
_SUFFIXES = {".dot": "dot", ".gv": "dot", ".mmd": "mermaid", ".mermaid": "mermaid", ".svg": "svg", ".json": "json"}


@click.command()
@click.argument("target", metavar="MODULE:NODE")
@click.option(
    "--format",
    "chosen",
    type=click.Choice(list(_WRITERS)),
    help="What to write. [default: by FILE's suffix, or dot]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write it. [default: standard output]",
)
@app_dir_option
def graph(target: str, chosen: str | None, output: Path | None, app_dir: str) -> None:
    """Draw MODULE:NODE and all that it needs; nothing is deployed or run."""
    written = _WRITERS[chosen or _format_of(output)](_picture(target, app_dir))
    if output is None:
        click.echo(written, nl=False)
        return
    try:
        output.write_text(written, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error


def _format_of(output: Path | None) -> str:
    if output is None:
        return "dot"
    found = _SUFFIXES.get(output.suffix.lower())
    if found is None:
        raise click.UsageError(
            f"{output.suffix or output.name!r} is no format known here: end FILE in {', '.join(_SUFFIXES)},"
            " or give --format"
        )
    return found


def _picture(target: str, app_dir: str) -> Picture:
    sys.path.insert(0, str(Path(app_dir).resolve()))
    try:
        node = load_target(target)
    except QserveException as error:
        raise click.ClickException(str(error)) from error
    except Exception as error:
        click.echo(traceback.format_exc(), nl=False, err=True)
        raise click.ClickException(f"{target} cannot be loaded: {type(error).__name__}: {error}") from error
    try:
        return picture_of(node)
    except TypeError as error:
        raise click.ClickException(f"{target}: {error}") from error
