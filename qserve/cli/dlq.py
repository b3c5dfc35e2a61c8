"""``qserve dlq``: list, show, replay and delete dead letters."""

from __future__ import annotations

import json
from typing import Any

import click

from qserve.base.log import on_one_line, printable
from qserve.base.settings import Settings
from qserve.cli.options import WholeNumber, broker_option, json_option
from qserve.deploy.dead_letters import DeadLetters, not_there
from qserve.deploy.installation import Installation
from qserve.exceptions import QserveException
from qserve.overview.letters import details_of, summary_of, time_of

_ids_argument = click.argument("request_ids", metavar="[ID]...", nargs=-1)
_all_option = click.option("--all", "all_of_them", is_flag=True, help="All dead letters.")


@click.group()
def dlq() -> None:
    """List, replay and delete dead letters.

    A dead letter is a call that failed for good. It is kept for seven days.
    """


@dlq.command("list")
@broker_option
@click.option("--limit", type=WholeNumber(1), default=100, show_default=True, help="Show at most this many.")
@json_option
def list_letters(settings: Settings, limit: int, as_json: bool) -> None:
    """List the newest dead letters, one per line."""
    letters = DeadLetters(Installation(settings))
    summaries = [summary_of(letter) for letter in letters.list(limit)]
    if as_json:
        click.echo(json.dumps(summaries, indent=2))
        return
    if not summaries:
        click.echo("there are no dead letters")
    for row in summaries:
        of = f"  {row['client_id']}" if row["client_id"] != row["request_id"] else ""
        click.echo(f"{row['request_id']}  {row['at']}  {row['why']:<10}  {row['where']}  {row['error']}{of}")
    if letters.dropped():
        click.echo(f"{letters.dropped()} older ones were dropped: there were more than 10000")


@dlq.command()
@click.argument("request_id", metavar="ID")
@broker_option
@json_option
def show(request_id: str, settings: Settings, as_json: bool) -> None:
    """Show a dead letter.

    Shows its payload, why it failed, its traceback and its history. ID is its own, or the X-Request-ID of the client.
    """
    letters = DeadLetters(Installation(settings))
    found = letters.named(request_id)
    if len(found) > 1:
        raise QserveException(f"{len(found)} dead letters have that X-Request-ID; pass one of: {', '.join(found)}")
    letter = letters.show(found[0])
    details = details_of(letter, letters.shown(letter))
    if as_json:
        click.echo(json.dumps(details, indent=2))
    else:
        _print(details)


@dlq.command()
@_ids_argument
@broker_option
@_all_option
def replay(request_ids: tuple[str, ...], settings: Settings, all_of_them: bool) -> None:
    """Run dead letters again.

    Each resumes at the step that failed, on the version that is deployed now. Each result has the ID of its request.
    """
    letters = DeadLetters(Installation(settings))
    failed = 0
    for request_id in _chosen(letters, request_ids, all_of_them):
        try:
            letters.replay(request_id)
        except QserveException as error:
            if not all_of_them:
                raise
            failed += 1
            click.echo(f"{request_id}: {error}", err=True)
        else:
            click.echo(f"{request_id} is running again")
    if failed:
        raise click.ClickException(f"{failed} of them could not be replayed and are still dead letters")


@dlq.command()
@_ids_argument
@broker_option
@_all_option
def purge(request_ids: tuple[str, ...], settings: Settings, all_of_them: bool) -> None:
    """Delete dead letters. IDs without one are an error, after the others are deleted."""
    letters = DeadLetters(Installation(settings))
    chosen = dict.fromkeys(_chosen(letters, request_ids, all_of_them))
    if all_of_them:
        count, missing = letters.purge(chosen), []
    else:
        missing = [request_id for request_id in chosen if not letters.purge([request_id])]
        count = len(chosen) - len(missing)
    if count or not missing:
        click.echo(f"deleted {count} dead letter{'' if count == 1 else 's'}")
    if missing:
        raise not_there(*missing)


def _chosen(letters: DeadLetters, request_ids: tuple[str, ...], all_of_them: bool) -> list[str]:
    if bool(request_ids) == all_of_them:
        raise QserveException("pass the IDs of dead letters, or --all")
    if all_of_them:
        return letters.ids()
    return [found for request_id in request_ids for found in letters.named(request_id)]


def _print(details: dict[str, Any]) -> None:
    history, trace = details.pop("history"), details.pop("traceback")
    for name, value in details.items():
        click.echo(f"{name:<12} {value}")
    click.echo("history")
    for event in history:
        click.echo(f"  {time_of(event['at'])}  {on_one_line(event['replica'])}  {on_one_line(event['what'])}")
    if trace:
        click.echo(f"traceback\n{printable(trace)}")
