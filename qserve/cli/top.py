"""``qserve top``: a live table of deployments, with the one that holds each application up."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import termios
import textwrap
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import click

from qserve.base.log import on_one_line
from qserve.base.settings import Settings
from qserve.broker.connection import broker_errors
from qserve.cli.options import broker_option
from qserve.deploy.installation import Installation
from qserve.deploy.named import application_named
from qserve.overview.observer import Observer
from qserve.overview.picture import Application, Deployment, Picture
from qserve.wire.status import RUNNING

_INTERVAL_S = 1.0
_RATES_WITHIN_S = 5.0
"""Workers publish what they have counted every two seconds, and a rate needs two of these."""
_COLUMNS = (("REPLICAS", 8), ("WAITING", 7), ("OLDEST", 7), ("CALLS/S", 7), ("ERR/S", 6), ("P50 MS", 7), ("P99 MS", 7))
_NUMBERS_WIDTH = sum(width + 1 for _, width in _COLUMNS)
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


@click.command()
@click.argument("app", metavar="[APP]", required=False)
@broker_option
@click.option("--once", is_flag=True, help="Print it once; without a terminal this is so anyway.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a second, each on a line.")
def top(app: str | None, settings: Settings, once: bool, as_json: bool) -> None:
    """Show the deployments of APP, or of all applications, once a second: their queues, rates and times.

    A `>` marks the deployment that holds its application up. Press q to end it. Rates and times are of the last
    seconds, in user code, and known after about four seconds.
    """
    installation = Installation(settings)
    with broker_errors():
        installation.client.ping()
    if app is not None:
        application_named(installation, app)  # or refuse
    observer = Observer(installation)
    if once or not (as_json or sys.stdout.isatty()):
        picture = _with_rates(observer)
        width = shutil.get_terminal_size().columns
        click.echo(_object_of(picture, app) if as_json else "\n".join(table(picture, app, width)))
    elif as_json:
        with suppress(KeyboardInterrupt):
            while True:
                click.echo(_object_of(observer.look(), app))
                time.sleep(_INTERVAL_S)
    else:
        _show(observer, app)


def table(picture: Picture, app: str | None = None, width: int = 80, height: int = 0) -> list[str]:
    """Return the lines of the table.

    Parameters:
      app: Only this application.
      width: The longest line, in characters; from 80 on there is room for all columns.
      height: How many lines there are at most; 0 for any number.
    """
    shown = [one for one in picture.applications if app in (None, one.name)]
    rows = [_row(one, deployment, width) for one in shown for deployment in one.deployments]
    held = [line for one in shown for line in _reason(one, width)]
    head = [_title(picture), _header(width)]
    if height:
        room = max(1, height - len(head) - len(held))
        rows = rows if len(rows) <= room else [*rows[: room - 1], f"  ... {len(rows) - room + 1} more"]
    if not rows:
        rows = ["  no application is deployed"]
    lines = [*head, *rows, *held]
    return [on_one_line(line, max(1, width - 2)) for line in (lines[:height] if height else lines)]


def _reason(app: Application, width: int) -> list[str]:
    held = app.bottleneck
    if held is None:
        return []
    words = f"> {app.name}/{held.deployment} holds it up, calls wait {held.delay_s:.1f} s: {held.why}"
    return textwrap.wrap(on_one_line(words, 1000), max(20, width - 2), subsequent_indent="  ", max_lines=4)


def _title(picture: Picture) -> str:
    broker = picture.broker
    at = time.strftime("%H:%M:%S", time.localtime(picture.at_s))
    limit = f" of {broker.limit_bytes >> 20}" if broker.limit_bytes else ""
    says = f": it refuses new requests: {broker.refuses}" if broker.refuses else ""
    about = f"broker {broker.used_bytes >> 20}{limit} MiB{says}"
    letters = f", {picture.dead_letters} dead letters" if picture.dead_letters else ""
    return f"{at}  {about if broker.is_up else 'the broker does not reply; this was so before'}{letters}"


def _header(width: int) -> str:
    return f"{'  DEPLOYMENT':<{_name_width(width)}}" + "".join(f" {name:>{size}}" for name, size in _COLUMNS)


def _name_width(width: int) -> int:
    return max(12, width - 2 - _NUMBERS_WIDTH)


def _row(app: Application, one: Deployment, width: int) -> str:
    is_held = app.bottleneck is not None and app.bottleneck.deployment == one.name
    name = on_one_line(f"{'>' if is_held else ' '} {app.name}/{one.name}{' (paused)' if one.paused_by else ''}")
    room = _name_width(width)
    cells = (
        f"{one.replicas.get(RUNNING, 0)}/{one.wanted}",
        str(one.waiting),
        _age(one.oldest_s) if one.waiting else "-",
        _number(one.rate),
        _number(one.errors),
        _number(one.p50_ms),
        _number(one.p99_ms),
    )
    short = name if len(name) <= room else f"{name[: room - 1]}…"
    return f"{short:<{room}}" + "".join(f" {cell:>{size}}" for cell, (_, size) in zip(cells, _COLUMNS, strict=True))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}" if value < 1e6 else f"{value:.0e}"


def _age(seconds: float) -> str:
    for limit, size, unit in ((100, 1, "s"), (6000, 60, "min"), (360_000, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.{1 if size == 1 else 0}f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def _object_of(picture: Picture, app: str | None) -> str:
    """Return a picture as one line of JSON: the table, with more columns."""
    rows: list[dict[str, Any]] = []
    for one in picture.applications:
        if app in (None, one.name):
            held = one.bottleneck
            rows += [
                {"application": one.name, **asdict(deployment), "bottleneck": why}
                for deployment in one.deployments
                for why in [asdict(held) if held is not None and held.deployment == deployment.name else None]
            ]
    broker = asdict(picture.broker)
    found = {"at": picture.at_s, "broker": broker, "dead_letters": picture.dead_letters, "deployments": rows}
    return json.dumps(found)


def _with_rates(observer: Observer) -> Picture:
    """Return a picture that has the rates, if they become known soon."""
    give_up = time.monotonic() + _RATES_WITHIN_S
    while True:
        picture = observer.look()
        found = [one for app in picture.applications for one in app.deployments]
        if not found or any(one.rate is not None for one in found) or time.monotonic() >= give_up:
            return picture
        time.sleep(_INTERVAL_S / 4)


def _show(observer: Observer, app: str | None) -> None:
    with _screen() as is_over:
        while True:
            size = os.get_terminal_size(sys.stdout.fileno())
            lines = table(observer.look(), app, size.columns, size.lines)
            # in one write, over what is there: nothing flickers
            text = "\r\n".join(f"{line}{_END_OF_LINE}" for line in lines)
            sys.stdout.write(f"{_HOME}{text}{_REST}")
            sys.stdout.flush()
            if is_over(_INTERVAL_S):
                return


@contextmanager
def _screen() -> Iterator[Callable[[float], bool]]:
    """Use the whole terminal, and give it back as it was.

    Yields:
      A function that waits for so many seconds, and returns whether the user has pressed q.
    """
    has_keys = sys.stdin.isatty()
    before = termios.tcgetattr(sys.stdin) if has_keys else None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # and not without giving it back

    def is_over(wait_s: float) -> bool:
        if not has_keys:
            time.sleep(wait_s)
            return False
        end = time.monotonic() + wait_s
        while select.select([sys.stdin], [], [], max(0.0, end - time.monotonic()))[0]:
            pressed = os.read(sys.stdin.fileno(), 64)
            if not pressed or pressed in (b"q", b"Q"):
                return True
        return False

    try:
        if has_keys:
            tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        yield is_over
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
