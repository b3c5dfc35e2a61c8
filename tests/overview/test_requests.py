"""Requests as an operator finds them: those in the queues, those that have ended, and the waterfall of one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict

import pytest
from desk import SEAL, A, B, Desk, header_of

from qserve.base.keys import TRACE_BYTES, TRACES_KEPT
from qserve.broker import functions
from qserve.broker.registry import Registry
from qserve.deploy.installation import Installation
from qserve.exceptions import NameNotFound, UsageProblem
from qserve.overview.requests import Request, all_named, cancel, list_requests, request
from qserve.overview.traces import trace
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.codec import Codec
from qserve.wire.envelope import Header
from qserve.wire.events import Event, Happening
from qserve.wire.failure import Failure
from qserve.wire.moves import Awaited, Join, Start
from qserve.wire.request_ids import new_value_id
from qserve.wire.sealing import event_context, seal_end, seal_header

C = "c" * 32
HOSTILE = "\x1b]0;owned\x07\r\n{qserve}:r:*"


@pytest.fixture(autouse=True)
def deployed(installation: Installation) -> ApplicationRecord:
    record = ApplicationRecord("app", "v", "one", deployments={n: DeploymentRecord(n) for n in ("one", "two")})
    registry = Registry(installation.client, installation.keys, SEAL)
    registry.stage(record)
    registry.promote(record)
    return record


def header(request_id: str, client_id: str = "", deadline_ms: int = 0) -> bytes:
    made = Header(request_id, "app", None, deadline_ms, trace_id=client_id or request_id)
    return seal_header(SEAL, made.encode())


def submit(desk: Desk, request_id: str, stream: str = "", client_id: str = "", is_traced: bool = False) -> None:
    moves = [Start(stream or desk.one, "0", [b"x"])]
    desk.submit(request_id, moves, header=header(request_id, client_id), is_traced=is_traced)


def said(name: str, request_id: str, at: float, attempt: int = 1, queued_ms: float = 0.0) -> bytes:
    event = Event(name, at, "one", "0", attempt, queued_ms=queued_ms, replica=f"replica-{attempt}")
    return SEAL.seal(event_context(request_id), event.encode())


def note(desk: Desk, request_id: str, entry: bytes, event: bytes) -> None:
    desk.client.execute_command(*functions.note(desk.keys.request(request_id), desk.one, entry, "0", event, False))


def end(desk: Desk, request_id: str, state: str = "d", payload: bytes = b"x", queue: str = "") -> None:
    """Run a traced request from its first event to its end."""
    ((entry, _),) = desk.fetch(queue or desk.one)
    now = time.time()
    note(desk, request_id, entry, said(Happening.STARTED, request_id, now, queued_ms=40.0))
    done = said(Happening.DONE, request_id, now + 0.5) if state == "d" else b""
    sealed = seal_end(SEAL, request_id, state, payload)
    assert desk.commit(desk.one, entry, request_id, state=state, payload=sealed, event=done) == b"OK"


def states(found: list[Request]) -> dict[str, str]:
    return {one.request_id: one.state for one in found}


def test_open_requests_are_found_by_what_their_calls_do(desk: Desk, installation: Installation) -> None:
    submit(desk, A)
    ((entry, _),) = desk.fetch(desk.one, "replica-1")
    submit(desk, B, desk.two, "the-client's")
    desk.submit(
        C,
        [Join(desk.two, "m", 2, [(0, b"template")])],
        awaited=[Awaited(desk.keys.request(A), desk.two, "m", 2, 1)],
        header=header(C),
    )

    assert states(list_requests(installation)) == {A: "running", B: "waiting", C: "awaiting"}
    assert states(list_requests(installation, state="waiting")) == {B: "waiting"}
    assert len(list_requests(installation, limit=2)) == 2
    (running,) = list_requests(installation, "app", "running")
    (call,) = running.calls
    assert (call.deployment, call.step, call.attempt, call.replica) == ("one", "0", 1, "replica-1")
    assert (running.application, running.version, running.client_id) == ("app", "v", A)
    assert running.duration_s is not None and 0 <= running.duration_s < 60

    delayed = desk.keys.delayed_of(desk.one)
    desk.client.execute_command(
        *functions.postpone(desk.one, desk.keys.request(A), delayed, entry, 5000, 1, 60_000, "replica-1", "no")
    )
    (again,) = list_requests(installation, state="retrying")
    assert (again.request_id, again.calls[0].attempt) == (A, 2)
    assert request(installation, A).state == "retrying"
    assert request(installation, "the-client's").calls[0].deployment == "two"


def test_what_cannot_be_read_in_a_queue_hides_no_other_request(desk: Desk, installation: Installation) -> None:
    desk.client.xadd(desk.one, {"h": b"forged" * 10, "s": "0"})
    desk.client.xadd(desk.one, {"x": b"\xff"})
    submit(desk, A)

    assert states(list_requests(installation)) == {A: "waiting"}


def test_a_traced_request_is_found_when_it_has_ended_with_what_happened_to_it(
    desk: Desk, installation: Installation
) -> None:
    submit(desk, A, client_id="order-7", is_traced=True)
    end(desk, A)

    (found,) = list_requests(installation, state="done")
    assert (found.request_id, found.client_id, found.is_traced) == (A, "order-7", True)
    assert (found.application, found.version, found.deployment) == ("app", "v", "one")
    assert [request(installation, A).version, trace(installation, A).request.version] == ["v", "v"]
    for name in (A, "order-7"):
        shown = trace(installation, name)
        (one,) = shown.tries
        assert (one.deployment, one.outcome, one.replica) == ("one", "done", "replica-1")
        assert one.queued_s == pytest.approx(0.04)
        assert one.run_s == pytest.approx(0.5)
        assert json.loads(json.dumps(asdict(shown)))["tries"][0]["attempt"] == 1
    assert request(installation, A).state == "done"


def test_a_request_that_nobody_asked_to_trace_leaves_nothing_behind(desk: Desk, installation: Installation) -> None:
    submit(desk, A)
    desk.client.execute_command(*functions.observe(desk.keys.request(A), A, 0))  # somebody follows it
    end(desk, A)

    assert list_requests(installation) == []
    assert not desk.client.exists(desk.keys.traces)
    (one,) = trace(installation, A).tries  # as long as its events are there for those who follow it
    assert (one.outcome, one.run_s) == ("done", pytest.approx(0.5))
    submit(desk, B)
    ((entry, _),) = desk.fetch(desk.one)
    desk.commit(desk.one, entry, B, state="d", payload=b"x")
    with pytest.raises(NameNotFound, match="was not traced"):
        trace(installation, B)


def test_a_call_of_which_no_replica_has_said_that_it_runs_waits(desk: Desk, installation: Installation) -> None:
    submit(desk, A)

    for outcome in ("waiting", "running"):
        (one,) = trace(installation, A).tries
        assert (one.outcome, one.run_s) == (outcome, 0.0)
        assert 0 <= one.queued_s < 60
        desk.fetch(desk.one)


def test_the_error_of_a_failed_request_is_kept_if_it_is_not_long(desk: Desk, installation: Installation) -> None:
    for request_id, text in ((A, "no such model"), (B, "x" * TRACE_BYTES)):
        submit(desk, request_id, is_traced=True)
        end(desk, request_id, "f", Failure("builtins", "ValueError", text, "Traceback ...", "one").encode())

    found = {one.request_id: one for one in list_requests(installation, state="failed")}

    assert [found[A].error, found[B].error] == ["ValueError: no such model", ""]
    assert request(installation, A).traceback == "Traceback ..."
    assert trace(installation, B).tries[0].outcome == "failed"


def test_a_retry_and_a_takeover_are_lines_of_the_waterfall(desk: Desk, installation: Installation) -> None:
    now = time.time()
    submit(desk, A, is_traced=True)
    ((entry, _),) = desk.fetch(desk.one, "replica-1")
    note(desk, A, entry, said(Happening.STARTED, A, now))
    requests, delayed = desk.keys.request(""), desk.keys.delayed_of(desk.one)
    assert desk.client.execute_command(*functions.reclaim(desk.one, desk.one, "replica-1", 3, b"", requests)) == 1
    ((entry, _),) = desk.fetch(desk.one, "replica-2")
    for name in (Happening.TAKEN_OVER, Happening.STARTED):
        note(desk, A, entry, said(name, A, now + 0.2, 2, 100.0))
    retried = said(Happening.RETRIED, A, now + 0.3, 2)
    desk.client.execute_command(
        *functions.postpone(desk.one, requests + A, delayed, entry, 0, 1, 60_000, "replica-2", "no", retried)
    )
    desk.client.execute_command(*functions.wake(delayed, desk.one))
    ((entry, _),) = desk.fetch(desk.one, "replica-3")
    note(desk, A, entry, said(Happening.STARTED, A, now + 0.5, 3, 50.0))

    of_open = trace(installation, A)
    desk.commit(desk.one, entry, A, state="d", payload=b"", event=said(Happening.DONE, A, now + 0.9, 3))
    ended = trace(installation, A)

    assert [one.outcome for one in of_open.tries] == ["lost", "retried", "running"]
    assert [one.outcome for one in ended.tries] == ["lost", "retried", "done"]
    assert [one.is_taken_over for one in ended.tries] == [False, True, False]
    assert [round(one.run_s, 3) for one in ended.tries] == [0.1, 0.1, 0.4]
    assert [round(one.at_s - ended.tries[0].at_s, 3) for one in ended.tries] == [0.0, 0.1, 0.45]


def test_a_replica_that_died_before_it_could_say_anything_is_in_the_waterfall(
    desk: Desk, installation: Installation
) -> None:
    submit(desk, A, is_traced=True)
    desk.fetch(desk.one, "replica-1")
    desk.client.execute_command(*functions.reclaim(desk.one, desk.one, "replica-1", 3, b"", desk.keys.request("")))
    ((entry, _),) = desk.fetch(desk.one, "replica-2")
    for name in (Happening.TAKEN_OVER, Happening.STARTED):
        note(desk, A, entry, said(name, A, time.time(), 2))

    assert [(one.attempt, one.outcome) for one in trace(installation, A).tries] == [(1, "lost"), (2, "running")]


def test_calls_that_a_traced_request_makes_are_below_it(desk: Desk, installation: Installation) -> None:
    submit(desk, A, client_id="order-7", is_traced=True)
    ((outer, _),) = desk.fetch(desk.one)
    note(desk, A, outer, said(Happening.STARTED, A, time.time()))
    submit(desk, B, client_id="order-7", is_traced=True)
    end(desk, B)
    submit(desk, C, client_id="another", is_traced=True)
    end(desk, C)

    assert [one.request.request_id for one in trace(installation, "order-7").inner] == [B]
    assert trace(installation, "order-7").request.request_id == A
    desk.commit(desk.one, outer, A, state="d", payload=b"")
    assert trace(installation, A).inner[0].request.request_id == B


def test_the_slowest_come_first_whether_they_have_ended_or_not(desk: Desk, installation: Installation) -> None:
    for request_id, slept in ((A, 0.0), (B, 0.05)):
        submit(desk, request_id, is_traced=True)
        desk.client.hincrby(desk.keys.request(request_id), "tr", -int(slept * 1e6))
        end(desk, request_id)

    assert [one.request_id for one in list_requests(installation, slowest=True)] == [B, A]
    assert [one.request_id for one in list_requests(installation, slowest=True, limit=1)] == [B]


def test_a_dead_letter_is_a_request_that_failed(desk: Desk, installation: Installation) -> None:
    submit(desk, A, client_id="order-7")
    ((entry, _),) = desk.fetch(desk.one)
    failure = Failure("builtins", "ValueError", "no such model", "Traceback ...", "one").encode()
    desk.dead_letter(desk.one, entry, A, "retries", seal_end(SEAL, A, "f", failure))

    (found,) = list_requests(installation)
    assert (found.state, found.is_dead_letter, found.error) == ("failed", True, "ValueError: no such model")
    assert request(installation, "order-7").traceback == "Traceback ..."


def test_a_result_that_is_kept_is_shown_and_a_long_one_only_by_its_length(
    desk: Desk, installation: Installation
) -> None:
    short, long = new_value_id(), new_value_id()
    for request_id, value in ((short, {"label": "cat"}), (long, "x" * 100_000)):
        submit(desk, request_id)
        ((entry, _),) = desk.fetch(desk.one)
        payload = seal_end(SEAL, request_id, "d", Codec(installation.settings.keyring).encode(value))
        desk.commit(desk.one, entry, request_id, state="d", payload=payload)

    assert request(installation, short).result == "{'label': 'cat'}"
    assert request(installation, long).result.startswith("<100")


def test_a_cancelled_request_is_open_no_longer(desk: Desk, installation: Installation) -> None:
    submit(desk, A)

    assert [cancel(installation, A), cancel(installation, A)] == [True, False]
    assert request(installation, A).state == "cancelled"
    assert list_requests(installation) == []


@pytest.mark.parametrize("name", [HOSTILE, "", "*", "a" * 31, "A" * 32, "d" * 32, "\ud800", "x" * 100_000])
@pytest.mark.parametrize("ask", [request, trace, all_named])
def test_a_name_that_is_not_one_of_a_request_is_refused(
    installation: Installation, desk: Desk, name: str, ask: Callable[[Installation, str], object]
) -> None:
    submit(desk, A)

    with pytest.raises(NameNotFound, match="is not known"):
        ask(installation, name)


def test_a_hostile_x_request_id_finds_its_request(desk: Desk, installation: Installation) -> None:
    submit(desk, A, client_id=HOSTILE)
    submit(desk, B, client_id="twice")
    submit(desk, C, client_id="twice")

    assert request(installation, HOSTILE).request_id == A
    assert sorted(all_named(installation, "twice")) == [B, C]
    with pytest.raises(UsageProblem, match=rf"2 requests have the X-Request-ID 'twice'; pass one of: .*{B}"):
        request(installation, "twice")


def test_an_unknown_application_or_state_is_refused(installation: Installation) -> None:
    with pytest.raises(UsageProblem, match="'lost' is not a state of a request; they are: running, waiting"):
        list_requests(installation, state="lost")
    for state in (None, "done"):
        with pytest.raises(NameNotFound, match="application 'ap' is not deployed.*Did you mean 'app'"):
            list_requests(installation, "ap", state)


@pytest.mark.slow
def test_traces_take_no_more_than_their_share_of_memory(desk: Desk, installation: Installation) -> None:
    event = b"x" * 1000
    for number in range(TRACES_KEPT + 10):
        request_id = f"{number:032x}"
        submit(desk, request_id, is_traced=True)
        ((entry, _),) = desk.fetch(desk.one)
        pipe = desk.client.pipeline(transaction=False)
        for _ in range(40):
            pipe.execute_command(*functions.note(desk.keys.request(request_id), desk.one, entry, "0", event, False))
        pipe.execute()
        desk.commit(desk.one, entry, request_id, state="f", payload=b"x" * 9000, event=event)

    assert desk.client.xlen(desk.keys.traces) == TRACES_KEPT
    used = desk.client.memory_usage(desk.keys.traces, samples=0)
    assert used is not None and TRACES_KEPT * TRACE_BYTES / 2 < used < 1.3 * TRACES_KEPT * TRACE_BYTES
    assert 0 < desk.client.pttl(desk.keys.traces) <= 15 * 60_000


def test_a_trace_that_was_changed_in_the_broker_is_left_out(desk: Desk, installation: Installation) -> None:
    for request_id in (A, B):
        submit(desk, request_id, is_traced=True)
        end(desk, request_id)
    ((_, parts), _) = desk.client.xrevrange(desk.keys.traces)
    desk.client.xadd(desk.keys.traces, {**parts, "h": header_of(C)[:-1] + b"?"})
    desk.client.xadd(desk.keys.traces, {**parts, "st": "?"})
    desk.client.xadd(desk.keys.traces, {"x": "y"})

    assert states(list_requests(installation)) == {A: "done", B: "done"}


def test_a_key_in_the_place_of_the_traces_costs_them_and_no_request(desk: Desk, installation: Installation) -> None:
    desk.client.set(desk.keys.traces, "something else", ex=60)
    submit(desk, A, is_traced=True)
    end(desk, A)

    assert desk.client.get(desk.keys.traces) == b"something else"
    assert desk.mail() == [A.encode() + b"d" + seal_end(SEAL, A, "d", b"x")]
