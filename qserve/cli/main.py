"""The ``qserve`` command. Each subcommand is imported when it is called, so that the others cost nothing."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import click

from qserve import __version__

_OWN = {
    "run": "qserve.cli.run:run",
    "deploy": "qserve.cli.deploy:deploy",
    "status": "qserve.cli.status:status",
    "doctor": "qserve.cli.doctor:doctor",
    "dlq": "qserve.cli.dlq:dlq",
    "graph": "qserve.cli.graph:graph",
}
_ENTRY_POINTS = "qserve.commands"
"""Other packages add their commands under this group of entry points; nothing here points at them."""


class LazyGroup(click.Group):
    """A group whose commands are named here and imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, ours first."""
        return [*_OWN, *sorted(one.name for one in _of_others())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name in _OWN:
            module, _, attribute = _OWN[cmd_name].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        return next((one.load() for one in _of_others() if one.name == cmd_name), None)


def _of_others() -> Iterable[Any]:
    """The entry points of other packages' commands; what finds them takes 3 MB, which our own can do without."""
    found: Iterable[Any] = import_module("importlib.metadata").entry_points(group=_ENTRY_POINTS)
    return found


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qserve")
def main() -> None:
    """Serve graphs of models and business logic on a task queue."""
