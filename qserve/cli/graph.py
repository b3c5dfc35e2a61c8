"""``qserve graph``: draw a graph without running it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from qserve.base.import_path import search_for_user_code
from qserve.base.settings import Settings
from qserve.cli.options import app_dir_option
from qserve.cli.user_code import load_apart
from qserve.define.builder import built_target
from qserve.define.target import load_target
from qserve.drawing.dot import to_dot
from qserve.drawing.mermaid import to_mermaid
from qserve.drawing.picture import Picture, picture_of, to_json
from qserve.drawing.svg import to_svg
from qserve.exceptions import QserveException

_WRITERS: dict[str, Callable[[Picture], str]] = {"dot": to_dot, "mermaid": to_mermaid, "svg": to_svg, "json": to_json}
_SUFFIXES = {".dot": "dot", ".gv": "dot", ".mmd": "mermaid", ".mermaid": "mermaid", ".svg": "svg", ".json": "json"}


@click.command()
@click.argument("target", metavar="MODULE:NODE")
@click.option(
    "--format",
    "chosen",
    type=click.Choice(list(_WRITERS)),
    help="The format. [default: from the suffix of FILE, or dot]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file to write. [default: standard output]",
)
@app_dir_option
def graph(target: str, chosen: str | None, output: Path | None, app_dir: str) -> None:
    """Draw MODULE:NODE as a graph.

    Draws the node and everything bound to it. Nothing is deployed or run.
    """
    write = _WRITERS[chosen or _format_of(output)]
    search_for_user_code(app_dir)

    def draw() -> bytes:
        node = built_target(load_target(target), {}, target)
        try:
            return write(picture_of(node)).encode()
        except TypeError as error:
            raise QserveException(f"{target}: {error}") from error

    written = load_apart(target, Settings.from_env().start_timeout_s, draw).decode()
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
        suffix, known = output.suffix or output.name, ", ".join(_SUFFIXES)
        raise click.UsageError(f"{suffix!r} is not a known format: end FILE in {known}, or pass --format")
    return found
