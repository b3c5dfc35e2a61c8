"""The waterfall of a request: when each of its steps waited, ran, and was passed on, with tries and takeovers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qserve.base.clock import clock
from qserve.base.keys import EVENTS_KEPT
from qserve.broker.connection import broker_errors
from qserve.deploy.installation import Installation
from qserve.exceptions import NameNotFound
from qserve.overview.requests import OPEN, OpenCall, Request, all_named, of_trace, request, traces_kept
from qserve.wire.events import Happening
from qserve.wire.outcome import RUNS
from qserve.wire.traces import TraceRecord, Written, read_log

LOST = "lost"


@dataclass(frozen=True)
class Try:
    """One try of a step, as a line of the waterfall: it waited, then ran, then its result was passed on.

    Parameters:
      deployment, step: What was called; the step is its number in the graph, or the name of a method.
      attempt: Which try of the step, from 1.
      outcome: "done", "retried" (it failed, and there was another), "lost" (its replica was, and another one took it
        over), "running", "waiting" or "retrying" of one that is open, or the state of the request that it ended in.
      at_s: When it began to wait, in seconds from the beginning of the request.
      queued_s: How long it waited, for a replica and for its turn there; of one that is open, as long as its replica
        has not said that it runs.
      run_s: How long its code ran, up to now if it runs.
      forward_s: How long it then took until the broker had the result, and the next steps could begin.
      replica: Which replica ran it.
      is_taken_over: Whether it took the place of one whose replica was lost.
    """

    deployment: str
    step: str
    attempt: int
    outcome: str
    at_s: float
    queued_s: float
    run_s: float
    forward_s: float
    replica: str
    is_taken_over: bool = False


@dataclass(frozen=True)
class Trace:
    """What happened to a request, as far as that was written down.

    Parameters:
      request: The request.
      tries: In the order in which they began to wait.
      inner: The requests that its code made, by handles, which were traced with it: those with the same
        ``X-Request-ID`` that began while it ran.
    """

    request: Request
    tries: tuple[Try, ...]
    inner: tuple[Trace, ...] = ()


def trace(installation: Installation, name: str) -> Trace:
    """Return the waterfall of a request that is open, or has ended in the last minutes.

    Parameters:
      name: Its ID, or the ``X-Request-ID`` of its client: then the first of those requests, with the others below it.

    Raises:
      NameNotFound: It is not known, or was not traced.
    """
    kept = {one.header.request_id: one for one in traces_kept(installation)}
    ids = [name] if name in kept else all_named(installation, name)
    found = [_of_record(kept[one]) if one in kept else _of_open(installation, one) for one in ids]
    first = min((one for one in found if one.tries or one.request.is_traced), key=_began, default=None)
    if first is None:
        raise NameNotFound(
            f"request {name!r} was not traced. Those are that have the header `X-Qserve-Trace: 1`, and"
            " QSERVE_TRACE_SAMPLE a second of all others"
        )
    others = [_of_record(one) for one in kept.values() if _is_within(one, first.request)]
    return replace(first, inner=tuple(sorted(others, key=_began)))


def tries_of(events: Collection[Written], began: float, end: float, outcome: str) -> tuple[Try, ...]:
    """Return the tries that events tell of.

    Parameters:
      began: When the request was accepted, in Unix seconds.
      end, outcome: How long a try ran whose end was not written down, and what became of it.
    """
    found: dict[tuple[str, str, int], Try] = {}
    for event, written_ms in events:
        key = (event.deployment, event.step, event.attempt)
        known = found.get(key)
        if event.name == Happening.STARTED and known is None:
            queued_s = event.queued_ms / 1000
            found[key] = Try(*key, "", event.at - began - queued_s, queued_s, 0.0, 0.0, event.replica)
        elif event.name in _ENDS and known is not None:
            run_s = max(0.0, event.at - began - known.at_s - known.queued_s)
            forward_s = max(0.0, written_ms / 1000 - event.at) if written_ms else 0.0
            found[key] = replace(known, outcome=str(event.name), run_s=run_s, forward_s=forward_s)
    over = {(one.deployment, one.step, one.attempt) for one, _ in events if one.name == Happening.TAKEN_OVER}
    for name, step, attempt in over & found.keys():
        # its replica may have died before it could say that it had begun
        lost = Try(name, step, attempt - 1, LOST, found[name, step, attempt].at_s, 0.0, 0.0, 0.0, "")
        found.setdefault((name, step, attempt - 1), lost)
    shown = [replace(one, is_taken_over=key in over) for key, one in found.items()]
    shown.sort(key=lambda one: (one.at_s, one.attempt))
    return tuple(_ended(one, shown, end - began, outcome) for one in shown)


_ENDS = (Happening.DONE, Happening.RETRIED)


def _ended(one: Try, others: Sequence[Try], end_s: float, outcome: str) -> Try:
    """Return a try with its end: without one it was lost by the time at which the next try was put on the queue."""
    if one.outcome:
        return one
    next_ones = [
        other.at_s
        for other in others
        if (other.deployment, other.step) == (one.deployment, one.step) and other.attempt > one.attempt
    ]
    run_s = max(0.0, min(next_ones, default=end_s) - one.at_s - one.queued_s)
    return replace(one, outcome=LOST if next_ones else outcome, run_s=run_s)


def _of_record(record: TraceRecord) -> Trace:
    found = Request(**of_trace(record))
    return Trace(found, tries_of(record.events, record.began_ms / 1000, record.ended_ms / 1000, found.state))


def _of_open(installation: Installation, request_id: str) -> Trace:
    found = request(installation, request_id)
    with broker_errors():
        entries: Any = installation.client.xrange(installation.keys.events(request_id), count=EVENTS_KEPT)
    events = read_log(installation.seal, request_id, entries)
    now, is_open = clock.now_ms() / 1000, found.state in OPEN
    first = min((event.at - event.queued_ms / 1000 for event, _ in events), default=now)
    began = min(found.began or now, first)
    end = now if is_open else max((event.at for event, _ in events), default=now)
    tries = tries_of(events, began, end, RUNS if is_open else found.state)
    begun = {(one.step, one.attempt) for one in tries}
    waits = [call for call in found.calls if (call.step, call.attempt) not in begun and call.since is not None]
    return Trace(found, (*tries, *(_waiting(call, began, now) for call in waits)))


def _waiting(call: OpenCall, began: float, now: float) -> Try:
    since = min(call.since or now, now)
    return Try(call.deployment, call.step, call.attempt, call.state, since - began, now - since, 0.0, 0.0, call.replica)


def _began(one: Trace) -> float:
    return one.request.began or 0.0


def _is_within(record: TraceRecord, outer: Request) -> bool:
    """Return whether a request began while ``outer`` was open, with the same ``X-Request-ID``."""
    began, of_outer = record.began_ms / 1000, outer.began or 0.0
    is_other = record.header.request_id != outer.request_id and record.header.trace_id == outer.client_id
    return is_other and of_outer <= began and (outer.ended is None or began <= outer.ended)
