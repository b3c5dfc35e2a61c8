"""The ``qserve`` command. Each subcommand is imported when it is called, so that the others cost nothing."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import click

from qserve import __version__
from qserve.base.import_path import all_at_once
from qserve.exceptions import QserveException, UsageProblem

_COMMANDS = (
    "init",
    "run",
    "deploy",
    "build",
    "config",
    "rollback",
    "delete",
    "shutdown",
    "status",
    "top",
    "queues",
    "pause",
    "resume",
    "scale",
    "drain",
    "logs",
    "requests",
    "doctor",
    "dlq",
    "graph",
    "compose",
    "kubernetes",
    "port",
)
"""Each is the function of its name in the module of its name in ``qserve.cli``."""
_ENTRY_POINTS = "qserve.commands"
"""The group of entry points under which other packages add their commands; nothing here names these packages."""


class LazyGroup(click.Group):
    """A group that imports a command when it is used, and prints an error of qserve as one message."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except QserveException as error:
            is_usage = isinstance(error, UsageProblem)
            kind = import_module("qserve.cli.options").BadInput if is_usage else click.ClickException
            raise kind(str(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *sorted({point.name for point in _entry_points()})]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            with all_at_once():
                command: click.Command = getattr(import_module(f"qserve.cli.{cmd_name}"), cmd_name)
            return command
        with all_at_once():
            return next((point.load() for point in _entry_points() if point.name == cmd_name), None)


def _entry_points() -> Iterable[Any]:
    # imported on use: it takes 3 MB, which our own commands do not need
    found: Iterable[Any] = import_module("importlib.metadata").entry_points(group=_ENTRY_POINTS)
    return found


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qserve")
def main() -> None:
    """Serve graphs of models and business logic on a task queue."""


if __name__ == "__main__":
    main()
