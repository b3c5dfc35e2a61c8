"""Requests: those that are open, as they lie in the queues, and those that have ended, as traces and dead letters.

Nothing is written for this on the way of a request: an open one is found by its calls, and one that has ended only if
it was traced, is a dead letter, or has a result that is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qserve.base.clock import clock
from qserve.base.keys import COUNTS, TRACES_KEPT, TRACES_TTL_MS, app_in, deployment_in, version_in
from qserve.broker import functions
from qserve.broker.connection import broker_errors, if_permitted
from qserve.broker.registry import ACTIVE, NEXT
from qserve.deploy.dead_letters import DeadLetters
from qserve.deploy.installation import Installation
from qserve.deploy.named import versions_named
from qserve.exceptions import NameNotFound, PayloadError, UsageProblem, WrongType
from qserve.http.render import parse_apart
from qserve.http.shown import ShownCodec
from qserve.wire import replies
from qserve.wire.dead_letter import DeadLetter
from qserve.wire.envelope import Header
from qserve.wire.events import Event
from qserve.wire.failure import Failure
from qserve.wire.outcome import ANNOUNCED, AWAITS, ENDED, RETRIES, RUNS, WAITS, Field, Outcome, State, items_in
from qserve.wire.progress import Progress
from qserve.wire.replies import Found, Peeked
from qserve.wire.request_ids import is_of_response, is_of_value, is_request_id
from qserve.wire.sealing import event_context, open_end, open_header
from qserve.wire.traces import TraceRecord

OPEN = (RUNS, WAITS, RETRIES, AWAITS)
STATES = (*OPEN, *(state.word for state in State if state in ENDED))
"""What a request does, or how it has ended. An open one does the first of these that one of its calls does."""
_SEARCHED = 1000
"""How many calls of each queue, and dead letters, are searched for the ``X-Request-ID`` of a client."""


@dataclass(frozen=True)
class OpenCall:
    """A call of an open request.

    Parameters:
      deployment, step: What is called; the step is its number in the graph, or the name of a method.
      state: "running", "waiting" (for a replica), "retrying" (it failed, and waits for its next try) or "awaiting"
        (the result of another request).
      attempt: Which try this is, from 1.
      since: When it was put on its queue, in Unix seconds; for "retrying" when it comes back to it. None if that is not
        known.
      replica: The replica that runs it; "" for none.
    """

    deployment: str
    step: str
    state: str
    attempt: int = 1
    since: float | None = None
    replica: str = ""


@dataclass(frozen=True)
class Request:
    """A request, as far as it is known.

    Parameters:
      request_id: Its ID.
      client_id: What people see of it: ``X-Request-ID``.
      application, version: What was called.
      deployment: Which deployment of it, by its handle or as the ingress; "" for a graph.
      state: One of ``STATES``.
      began: When it was accepted, in Unix seconds. For an open one that is not traced: when its oldest call was put on
        its queue.
      ended: When it ended, in Unix seconds.
      duration_s: How long it took, or has taken until now.
      deadline: When it expires, in Unix seconds.
      calls: Its calls, if it is open.
      error: The type of the error with which it failed, and its text.
      is_traced: Whether ``trace`` knows of its steps.
      is_dead_letter: Whether `qserve dlq` shows more of it.
      progress, result, traceback: How far its code says that it is, its result as text, without the headers of HTTP,
        and where it failed. Only ``request`` fills these.
    """

    request_id: str
    client_id: str = ""
    application: str = ""
    version: str = ""
    deployment: str = ""
    state: str = ""
    began: float | None = None
    ended: float | None = None
    duration_s: float | None = None
    deadline: float | None = None
    calls: tuple[OpenCall, ...] = ()
    error: str = ""
    is_traced: bool = False
    is_dead_letter: bool = False
    progress: Progress | None = None
    result: str = ""
    traceback: str = ""


def list_requests(
    installation: Installation,
    app: str | None = None,
    state: str | None = None,
    slowest: bool = False,
    limit: int = 100,
) -> list[Request]:
    """Return requests: those that are open, the oldest first, then those that have ended, the latest first.

    Of each queue the oldest ``limit`` calls are looked at. Those that have ended are the ones that were traced in the
    last fifteen minutes, and dead letters.

    Parameters:
      app: Only those of this application.
      state: Only those in one of ``STATES``.
      slowest: Those that took longest come first, whether they have ended or not.
      limit: How many at most.

    Raises:
      UsageProblem: There is no such application or state.
      BrokerUnavailable: The broker does not reply.
    """
    if state is not None and state not in STATES:
        raise UsageProblem(f"{state!r} is not a state of a request; they are: {', '.join(STATES)}")
    found: list[Request] = []
    if state is None or state in OPEN:
        found += sorted(_open_requests(installation, app, limit), key=lambda one: one.began or 0.0)
    if state not in OPEN:
        if app is not None:
            versions_named(installation, app)  # or refuse
        found += sorted(_ended(installation, limit), key=lambda one: one.ended or 0.0, reverse=True)
    chosen = [one for one in found if app in (None, one.application) and state in (None, one.state)]
    if slowest:
        chosen.sort(key=lambda one: one.duration_s or 0.0, reverse=True)
    return chosen[:limit]


def request(installation: Installation, name: str) -> Request:
    """Return all that is known of a request.

    Parameters:
      name: Its ID, or the ``X-Request-ID`` of its client.

    Raises:
      NameNotFound: It is not known, or no longer.
      UsageProblem: Several requests have that ``X-Request-ID``; the message names them.
    """
    request_id = one_named(installation, name)
    found = _stored(installation, request_id)
    if found.get("state") in OPEN:
        return Request(**found)
    letter, ended = _letter(installation, request_id), trace_of(installation, request_id)
    found |= {} if letter is None else _of_letter(letter)
    found |= {} if ended is None else of_trace(ended)
    if not found:  # it has ended since its ID was found
        raise _not_known(name)
    return Request(**found)


def cancel(installation: Installation, request_id: str) -> bool:
    """End a request; return whether it was open until now.

    Crash before the command is sent: it goes on. Crash after: no call of it is queued, and its code is told to end.
    """
    command = functions.end(installation.seal, installation.keys.request(request_id), request_id, State.CANCELLED)
    with broker_errors():
        return replies.number(installation.client.execute_command(*command)) == 1


# -- which request is meant ------------------------------------------------------------------------


def all_named(installation: Installation, name: str) -> list[str]:
    """Return the IDs of the requests that are meant: the one of that ID, or those with this ``X-Request-ID``.

    Raises:
      NameNotFound: There is none.
    """
    if is_request_id(name) and _is_known(installation, name):
        return [name]
    opened = (one for one in _open_requests(installation, None, _SEARCHED) if one.client_id == name)
    ended = (one for one in _ended(installation, _SEARCHED) if one.client_id == name)
    found = [*dict.fromkeys(one.request_id for one in (*opened, *ended))]
    if not found:
        raise _not_known(name)
    return found


def one_named(installation: Installation, name: str) -> str:
    """Return the ID of the one request that is meant; raises as ``request`` does."""
    found = all_named(installation, name)
    if len(found) > 1:
        raise UsageProblem(f"{len(found)} requests have the X-Request-ID {name!r}; pass one of: {', '.join(found)}")
    return found[0]


def _is_known(installation: Installation, request_id: str) -> bool:
    with broker_errors():
        is_stored = bool(installation.client.exists(installation.keys.request(request_id)))
    return is_stored or bool(_letter(installation, request_id) or trace_of(installation, request_id))


def _not_known(name: str) -> NameNotFound:
    return NameNotFound(
        f"request {name!r} is not known: there was none, or it has ended, was not traced, and its result is not kept."
        " `qserve requests list` shows those that are known"
    )


# -- those that are open ---------------------------------------------------------------------------


def _open_requests(installation: Installation, app: str | None, limit: int) -> list[Request]:
    streams = list(_streams(installation, app))
    pipe = installation.client.pipeline(transaction=False)
    for stream in streams:
        pipe.execute_command(*functions.peek(stream, limit))
    with broker_errors():
        found: Any = pipe.execute() if streams else ()
    requests: dict[str, list[Peeked]] = {}
    for call in (call for reply in found for call in replies.peeked(reply)):
        requests.setdefault(replies.claimed_id(call.header), []).append(call)
    return [Request(**one) for one in replies.each(requests.values(), partial(_open, installation))]


def _streams(installation: Installation, app: str | None) -> Iterator[str]:
    registry = installation.registry
    for name in sorted(registry.names()) if app is None else [app]:
        active = versions_named(installation, name) if app is not None else registry.readable(name, ACTIVE, NEXT)
        for record in {one.version: one for one in (*registry.old(name), *active)}.values():
            yield from (record.stream(installation.keys, deployment) for deployment in record.replicated)


def _open(installation: Installation, found: Sequence[Peeked]) -> dict[str, Any]:
    """Return what is known of an open request by its calls; PayloadError if they are not ours."""
    header = open_header(installation.seal, found[0].header)
    calls = tuple(map(_open_call, found))
    now = clock.now_ms() / 1000
    since = [min(call.since, now) for call in calls if call.since is not None and call.state != RETRIES]
    return {
        **_of_header(header),
        "version": max(version_in(one.stream) for one in found),
        "deployment": _called(header, deployment_in(found[0].stream)),
        "state": min((call.state for call in calls), key=OPEN.index),
        "began": min(since, default=None),
        "duration_s": now - min(since) if since else None,
        "calls": calls,
    }


def _open_call(found: Peeked) -> OpenCall:
    since = found.since_ms / 1000 if found.since_ms and found.how != AWAITS else None
    return OpenCall(deployment_in(found.stream), found.step, found.how, found.attempt, since, found.replica)


def _called(header: Header, deployment: str) -> str:
    return deployment if header.graph is None else ""


def _of_header(header: Header) -> dict[str, Any]:
    return {
        "request_id": header.request_id,
        "client_id": header.trace_id,
        "application": header.app,
        "deadline": header.deadline_ms / 1000,
    }


def _stored(installation: Installation, request_id: str) -> dict[str, Any]:
    """Return what is stored of a request under its ID: that it is open, or its result."""
    key, pipe = installation.keys.request(request_id), installation.client.pipeline(transaction=False)
    # a long result is not wanted, as by the reader of such a mailbox
    pipe.execute_command(*functions.look(key, COUNTS)).execute_command(*functions.inspect(key))
    pipe.hmget(key, [Field.PROGRESS, Field.TRACED])
    with broker_errors():
        reply, calls, (progress, began) = pipe.execute()
    found = replies.found(reply)
    if not found.state:
        return {}
    if found.state != State.OPEN:
        return {"request_id": request_id, **_of_end(installation, request_id, found)}
    known: dict[str, Any] = {**_of_header(open_header(installation.seal, found.header)), "state": AWAITS}
    if calls:
        known |= _open(installation, replies.peeked(calls))
    if began is not None:
        known["began"] = replies.number(began, "a time") / 1000
        known["duration_s"] = clock.now_ms() / 1000 - known["began"]
    return {**known, "is_traced": began is not None, "progress": _progress(installation, request_id, progress)}


def _progress(installation: Installation, request_id: str, sealed: bytes | None) -> Progress | None:
    if not sealed:
        return None
    event = Event.decode(installation.seal.open(event_context(request_id), sealed))
    return Progress(event.fraction, event.message)


# -- those that have ended -------------------------------------------------------------------------


def _of_end(installation: Installation, request_id: str, found: Found) -> dict[str, Any]:
    if found.state == ANNOUNCED:
        return {"state": "done", "result": f"<{replies.shown(found.payload)} bytes>"}
    end = open_end(installation.seal, request_id, Outcome(found.state, found.payload))
    state = State(end.state)
    failure = Failure.decode(end.payload) if state == State.FAILED else None
    result = _shown(installation, request_id, end.payload) if state == State.DONE else ""
    return {"state": state.word, "result": result, **_of_failure(failure)}


def _of_failure(failure: Failure | None) -> dict[str, Any]:
    return {} if failure is None else {"error": failure.summary, "traceback": failure.traceback}


def _shown(installation: Installation, request_id: str, payload: bytes) -> str:
    """Return a result as text; the headers of a response may hold secrets."""
    count = items_in(payload)
    if count is not None:
        return f"<{count} items>"
    if is_of_value(request_id):
        return ShownCodec(installation.settings.keyring).show(payload)
    if is_of_response(request_id):
        found = parse_apart(payload)
        (status, _, body), length = found.response, found.length
        more = f"… ({length} bytes)" if length > replies.NAME_LIMIT else ""
        return f"<HTTP {status}: {replies.shown(body)}{more}>"
    return f"<{len(payload)} bytes>"


def _ended(installation: Installation, limit: int) -> list[Request]:
    found = {letter.request_id: _of_letter(letter) for letter in _letters(installation, limit)}
    for record in traces_kept(installation):
        known = found.get(record.header.request_id, {})
        found[record.header.request_id] = {**known, **of_trace(record)}
    return [Request(**{**one, "traceback": ""}) for one in found.values()]


def of_trace(record: TraceRecord) -> dict[str, Any]:
    """Return what a trace says of its request, as the fields of ``Request``."""
    return {
        **_of_header(record.header),
        **({"version": record.version} if record.version else {}),
        "deployment": _called(record.header, record.deployment),
        "state": record.state.word,
        "began": record.began_ms / 1000,
        "ended": record.ended_ms / 1000,
        "duration_s": (record.ended_ms - record.began_ms) / 1000,
        "is_traced": True,
        **_of_failure(record.failure),
    }


def traces_kept(installation: Installation) -> list[TraceRecord]:
    """Return the traces of requests that have ended, the latest first; those that cannot be read are left out."""
    oldest_ms = clock.now_ms() - TRACES_TTL_MS
    with broker_errors():
        found: Any = installation.client.xrevrange(installation.keys.traces, "+", f"{oldest_ms:.0f}-0", TRACES_KEPT)
    return list(replies.each(found, partial(TraceRecord.read, seal=installation.seal)))


def trace_of(installation: Installation, request_id: str) -> TraceRecord | None:
    """Return the trace of a request that has ended; None if there is none."""
    kept = traces_kept(installation)
    return next((one for one in kept if one.header.request_id == request_id), None)


def _letters(installation: Installation, limit: int) -> list[DeadLetter]:
    letters = DeadLetters(installation)
    return [*if_permitted(lambda: {one.request_id: one for one in letters.list(limit)}).values()]


def _letter(installation: Installation, request_id: str) -> DeadLetter | None:
    letters = DeadLetters(installation)
    try:
        return if_permitted(lambda: {request_id: letters.find(request_id)}).get(request_id)
    except (PayloadError, WrongType) as error:
        replies.warn_once(str(error))
        return None


def _of_letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "request_id": letter.request_id,
        **({} if letter.header is None else _of_header(letter.header)),
        "application": app_in(letter.call.stream),
        "version": version_in(letter.call.stream),
        "deployment": "" if letter.header is None else _called(letter.header, deployment_in(letter.call.stream)),
        "state": "failed",
        "ended": letter.at,
        "is_dead_letter": True,
        **_of_failure(letter.failure),
    }
