"""``qserve dlq``: look at dead letters, replay them, throw them away."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from qserve.base.escapes import printable
from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.deploy.dead_letters import DeadLetter, DeadLetters, HeldCall
from qserve.exceptions import PayloadError, QserveException
from qserve.machine.command_options import broker_option, named_broker
from qserve.wire.codec import Codec

_VALUE_CHARS = 2000


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except QserveException as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group)
def dlq() -> None:
    """Dead letters: calls that failed for good, kept for seven days."""


@dlq.command("list")
@broker_option
@click.option("--limit", default=100, show_default=True, help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_letters(broker: str | None, limit: int, as_json: bool) -> None:
    """Show the newest dead letters, a line each."""
    letters, _ = _open(broker)
    found = list(letters.list(limit))
    if as_json:
        click.echo(json.dumps([_summary(letter) for letter in found], indent=2))
        return
    if not found:
        click.echo("there are no dead letters")
    for letter in found:
        one = _summary(letter)
        click.echo(f"{one['request_id']}  {one['at']}  {one['why']:<10}  {one['where']}  {one['error']}")
    if letters.dropped():
        click.echo(f"{letters.dropped()} older ones were dropped: there were more than 10000")


@dlq.command()
@click.argument("request_id", metavar="ID")
@broker_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(request_id: str, broker: str | None, as_json: bool) -> None:
    """Show one dead letter: its payload, why it failed, its traceback and its history."""
    letters, codec = _open(broker)
    letter = letters.show(request_id)
    if as_json:
        click.echo(json.dumps(_details(letter, codec), indent=2))
    else:
        _print(_details(letter, codec))


@dlq.command()
@click.argument("request_ids", metavar="[ID]...", nargs=-1)
@broker_option
@click.option("--all", "all_of_them", is_flag=True, help="All that there are.")
def replay(request_ids: tuple[str, ...], broker: str | None, all_of_them: bool) -> None:
    """Run dead letters again, from the step that failed; each answers under its own id.

    They run on the version that is deployed now.
    """
    letters, _ = _open(broker)
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
            click.echo(f"{request_id} runs again")
    if failed:
        raise click.ClickException(f"{failed} of them could not be replayed, and are dead letters still")


@dlq.command()
@click.argument("request_ids", metavar="[ID]...", nargs=-1)
@broker_option
@click.option("--all", "all_of_them", is_flag=True, help="All that there are.")
def purge(request_ids: tuple[str, ...], broker: str | None, all_of_them: bool) -> None:
    """Throw dead letters away."""
    letters, _ = _open(broker)
    count = letters.purge(_chosen(letters, request_ids, all_of_them))
    click.echo(f"{count} dead letters were thrown away")


def _open(broker: str | None) -> tuple[DeadLetters, Codec]:
    settings = Settings.from_env(broker_url=broker)
    letters = DeadLetters(connect(named_broker(settings)), Keys(settings.namespace), settings)
    return letters, Codec(settings.keyring)


def _chosen(letters: DeadLetters, request_ids: tuple[str, ...], all_of_them: bool) -> list[str]:
    if bool(request_ids) == all_of_them:
        raise QserveException("name the dead letters by their ids, or give --all")
    return letters.ids() if all_of_them else list(request_ids)


def _summary(letter: DeadLetter) -> dict[str, Any]:
    header, failure = letter.header, letter.failure
    return {
        "request_id": letter.request_id,
        "at": datetime.fromtimestamp(letter.at, UTC).isoformat(timespec="seconds"),
        "age_s": round(time.time() - letter.at, 1),
        "why": letter.why,
        "where": letter.call.stream.partition(":q:")[2] or letter.call.stream,
        "app": header.app if header else None,
        "error": "" if failure is None else _one_line(f"{failure.type}: {failure.message}"),
    }


def _details(letter: DeadLetter, codec: Codec) -> dict[str, Any]:
    return {
        **_summary(letter),
        "step": letter.call.step,
        "payload": _payload(letter.call, codec),
        "other_calls": len(letter.others),
        "traceback": letter.failure.traceback if letter.failure else "",
        "history": [asdict(event) for event in letter.history],
    }


def _payload(call: HeldCall, codec: Codec) -> list[str]:
    shown = []
    for value in call.values:
        try:
            text = repr(codec.decode(value))
        except PayloadError as error:
            text = f"<{error}>"
        shown.append(text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}… ({len(text)} characters)")
    return shown


def _print(details: dict[str, Any]) -> None:
    history, trace = details.pop("history"), details.pop("traceback")
    for name, value in details.items():
        click.echo(f"{name:<12} {value}")
    click.echo("history")
    for event in history:
        when = datetime.fromtimestamp(event["at"], UTC).isoformat(timespec="seconds")
        click.echo(f"  {when}  {event['replica']}  {_one_line(event['what'])}")
    if trace:
        click.echo(f"traceback\n{printable(trace)}")


def _one_line(text: str) -> str:
    line = text if text.isprintable() else repr(text)[1:-1]
    return line if len(line) <= 200 else f"{line[:200]}…"
