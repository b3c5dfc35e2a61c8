"""``qserve requests``: list requests, show one, draw its waterfall, and cancel some."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import click

from qserve.base.log import on_one_line, printable
from qserve.base.settings import Settings
from qserve.cli.options import WholeNumber, broker_option, json_option
from qserve.deploy.installation import Installation
from qserve.overview.requests import STATES, OpenCall, Request, all_named, cancel, list_requests, request
from qserve.overview.traces import Trace, Try, trace

_WIDTH = 40
_BARS, _PLAIN_BARS = "░█▒", ".#+"
"""What stands for waiting, running and being passed on, where the terminal has these characters and where not."""


@click.group()
def requests() -> None:
    """List, show, trace and cancel requests.

    ID is that of a request, or the X-Request-ID of its client.
    """


@requests.command("list")
@click.argument("app", metavar="[APP]", required=False)
@broker_option
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--slowest", is_flag=True, help="Those that took longest first.")
@click.option("--limit", type=WholeNumber(1, 1000), default=50, show_default=True, help="Show at most this many.")
@json_option
def list_of_them(
    app: str | None, settings: Settings, state: str | None, slowest: bool, limit: int, as_json: bool
) -> None:
    """List the requests of APP, or of all applications, one per line.

    Those that are open, the oldest first, then those that have ended: the ones that were traced in the last fifteen
    minutes, and dead letters.
    """
    found = list_requests(Installation(settings), app, state, slowest, limit)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
    elif not found:
        click.echo("no such request is known")
    for one in () if as_json else found:
        click.echo(_line(one))


@requests.command()
@click.argument("request_id", metavar="ID")
@broker_option
@json_option
def get(request_id: str, settings: Settings, as_json: bool) -> None:
    """Show what is known of a request: its calls, how far it is, its result or its error."""
    found = request(Installation(settings), request_id)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    for name, value in vars(found).items():
        if value not in (None, "", False) and name not in ("calls", "traceback"):
            shown = _time(value) if name in ("began", "ended", "deadline") else str(value)
            click.echo(f"{name:<15} {on_one_line(shown, 2000)}")
    for one in found.calls:
        since = "" if one.since is None else f" since {_time(one.since)}"
        by = f" on {one.replica}" if one.replica else ""
        click.echo(on_one_line(f"{'call':<15} {_step(one)} {one.state}{since}{by}, try {one.attempt}"))
    if found.traceback:
        click.echo(f"traceback\n{printable(found.traceback)}")


@requests.command("trace")
@click.argument("request_id", metavar="ID")
@broker_option
@json_option
def show_trace(request_id: str, settings: Settings, as_json: bool) -> None:
    """Draw the waterfall of a request: when each step waited, ran, and was passed on.

    It is there for requests with the header `X-Qserve-Trace: 1`, and for QSERVE_TRACE_SAMPLE a second of all others,
    while they are open and for fifteen minutes after.
    """
    found = trace(Installation(settings), request_id)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    for line in waterfall(found, _bars_of(sys.stdout.encoding)):
        click.echo(line)


@requests.command("cancel")
@click.argument("request_ids", metavar="ID...", nargs=-1, required=True)
@broker_option
@json_option
def cancel_some(request_ids: tuple[str, ...], settings: Settings, as_json: bool) -> None:
    """Cancel requests.

    Their calls leave the queues, code that runs is told to end, and their clients get the error `cancelled`.
    """
    installation = Installation(settings)
    ids = list(dict.fromkeys(found for name in request_ids for found in all_named(installation, name)))
    ended = {request_id: cancel(installation, request_id) for request_id in ids}
    if as_json:
        click.echo(json.dumps(ended, indent=2))
    for request_id, is_cancelled in () if as_json else ended.items():
        click.echo(f"{request_id} {'is cancelled' if is_cancelled else 'had ended'}")


def waterfall(found: Trace, bars: str = _BARS) -> Iterator[str]:
    """Yield the lines of a waterfall.

    Parameters:
      bars: The characters for waiting, running and being passed on.
    """
    version = found.request.version
    yield _line(found.request) + on_one_line(f"  version {version}" if version else "")
    began = found.request.began or 0.0
    rows = [(0.0, "", one) for one in found.tries]
    for inner in found.inner:
        rows += [((inner.request.began or began) - began, "> ", one) for one in inner.tries]
    end_s = max((at_s + _end_s(one) for at_s, _, one in rows), default=0.0)
    names = [on_one_line(f"{mark}{_step(one)}") for _, mark, one in rows]
    width = min(max(map(len, names), default=0), 40)
    if rows:
        yield f"{'':{width}} |{'0':<{_WIDTH - 1}}{_ms(end_s):>10}"
    for name, (at_s, _, one) in zip(names, rows, strict=True):
        yield f"{name[:width]:{width}} |{bar(one, at_s, end_s, bars):{_WIDTH}}| {on_one_line(_words(one))}"
    if rows:
        yield f"{'':{width}}  {bars[0]} waits  {bars[1]} runs  {bars[2]} is passed on"
    else:
        yield "none of its steps has begun"


def bar(one: Try, at_s: float, end_s: float, bars: str) -> str:
    """Return the line of a try as a picture; what has run is at least one character long."""
    begin = at_s + one.at_s
    ends = (begin, begin + one.queued_s, begin + one.queued_s + one.run_s, at_s + _end_s(one))
    places = [min(_WIDTH, max(0, round(_WIDTH * at / end_s))) if end_s > 0 else 0 for at in ends]
    first, runs = min(places[0], _WIDTH - 1), min(places[1], _WIDTH - 1)
    over = max(places[2], runs + 1)
    parts = (" " * first, bars[0] * (runs - first), bars[1] * (over - runs), bars[2] * (places[3] - over))
    return "".join(parts)


def _bars_of(encoding: str | None) -> str:
    try:
        _BARS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _PLAIN_BARS
    return _BARS


def _end_s(one: Try) -> float:
    return one.at_s + one.queued_s + one.run_s + one.forward_s


def _words(one: Try) -> str:
    how = f"{one.outcome}{', after a takeover' if one.is_taken_over else ''}"
    by = f" on {one.replica}" if one.replica else ""
    attempt = f", try {one.attempt}" if one.attempt > 1 or one.outcome != "done" else ""
    return f"{_ms(one.queued_s)} + {_ms(one.run_s)} + {_ms(one.forward_s)}  {how}{attempt}{by}"


def _line(one: Request) -> str:
    took = f"{one.duration_s:.3f} s" if one.duration_s is not None else "-"
    where = ", ".join(f"{_step(call)} {call.state}" for call in one.calls) or one.error
    of = f"  {one.client_id}" if one.client_id not in ("", one.request_id) else ""
    return on_one_line(f"{one.request_id}  {one.state:<9}  {took:>10}  {one.application}  {where}{of}")


def _step(one: OpenCall | Try) -> str:
    return " ".join(filter(None, (one.deployment, one.step)))


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
