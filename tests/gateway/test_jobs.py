"""What is below ``/-/requests/``, over a broker that says what the test wants."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from fakes import FakePlane, plain_app
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from qserve_gateway import jobs
from qserve_gateway.application import create_app
from qserve_gateway.jobs import VALUE_LIMIT, Preference, preference_of
from qserve_gateway.response import events

from qserve.base.keyring import Keyring
from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.calls.ref import Ref
from qserve.http.render import render
from qserve.wire.codec import Codec
from qserve.wire.envelope import Answer, Header
from qserve.wire.outcome import Outcome, end_of_items
from qserve.wire.request_ids import new_response_id, new_value_id
from qserve.wire.sealing import Seal, seal_end, seal_header

ID = new_response_id()
KEY = Keyring(b"k" * 32)
SEAL = Seal(Keyring())


class Broker(FakePlane):
    """Answers commands with what was prepared for them."""

    def __init__(self, *replies: Any) -> None:
        super().__init__(plain_app())
        self.replies = list(replies)
        self.commands: list[Any] = []

    def execute(self, command: Any) -> Any:
        self.commands.append(command)
        reply = self.replies.pop(0)
        if isinstance(reply, OSError | redis.ConnectionError):
            raise reply
        return reply


def ask(plane: FakePlane, method: str = "GET", request_id: str = ID) -> Any:
    client: FlaskClient = create_app(Settings(), plane, watch=False).test_client()  # type: ignore[arg-type]
    return client.open(f"/-/requests/{request_id}", method=method)


def header(left_s: float) -> bytes:
    return seal_header(SEAL, Header(ID, "app", None, int((time.time() + left_s) * 1000)).encode())


RESULT = seal_end(SEAL, ID, "d", render("x", Answer.PLAIN))


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (redis.ConnectionError("secret-host:6379"), "broker_unavailable"),
        (OSError("secret-host"), "broker_unavailable"),
        (redis.ResponseError("LOADING secret-host"), "broker_unavailable"),
        (redis.ResponseError("WRONGTYPE secret-host"), "broker_error"),
    ],
)
def test_a_broker_in_trouble_is_503_and_says_nothing_of_itself(method: str, reply: Any, code: str) -> None:
    answer = ask(Broker(reply), method)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, code)
    assert answer.headers["Retry-After"] == "1"
    assert "secret-host" not in answer.text


def test_an_id_that_was_given_out_is_told_from_one_that_never_was() -> None:
    nothing = [None] * 3
    for method in ("GET", "DELETE"):
        assert ask(Broker(nothing), method).status_code == 410
        assert ask(Broker(nothing), method, new_value_id()).status_code == 410
        never = ask(Broker(), method, "0" * 32)
        assert (never.status_code, never.get_json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_request_whose_id_nobody_was_given_is_not_looked_up(method: str) -> None:
    plane = Broker([b"d", RESULT, None])
    assert ask(plane, method, os.urandom(16).hex()).status_code == 404
    assert not plane.commands


def ask_for_value(payload: bytes) -> Any:
    """Fetch the result of a request from Python."""
    request_id = new_value_id()
    answer = ask(Broker([b"d", seal_end(SEAL, request_id, "d", payload), None]), "GET", request_id)
    assert answer.headers["X-Request-ID"]
    return answer


def test_a_value_of_a_request_from_python_comes_as_json() -> None:
    assert ask_for_value(Codec().encode(51)).get_json() == 51
    value = {"day": datetime.date(2026, 1, 2), "pair": (1, 2.5), "text": "\u00e9", "none": None}
    answer = ask_for_value(Codec().encode(value))
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.get_json() == {"day": "2026-01-02", "pair": [1, 2.5], "text": "\u00e9", "none": None}


class Sneaky:
    def __reduce__(self) -> Any:
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(Codec(KEY).encode(Sneaky()), id="a signed pickle"),
        pytest.param(Codec(KEY).encode({"a": [Sneaky()]}), id="one inside of plain data"),
        pytest.param(Codec().encode(float("nan")), id="not in JSON"),
        pytest.param(Codec().encode(b"\xff"), id="not text"),
        pytest.param(Codec().encode("x" * VALUE_LIMIT), id="too long"),
        pytest.param(b"\xc1 nonsense", id="not a value"),
    ],
)
def test_a_value_that_json_cannot_have_is_refused_with_the_call_to_use(payload: bytes) -> None:
    answer = ask_for_value(payload)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (406, "not_json")
    assert "qserve.get_ref(" in answer.get_json()["error"]["message"]


@pytest.mark.parametrize("payload", [b"", end_of_items(0), end_of_items(300)])
def test_a_stream_from_python_has_no_stored_value(payload: bytes) -> None:
    answer = ask_for_value(payload)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (410, "result_unavailable")


def test_a_request_that_is_open_past_its_deadline_is_ended_by_who_asks() -> None:
    plane = Broker([b"o", None, header(-2)], 1, [b"x", b"", None])
    assert ask(plane).status_code == 504
    close = plane.commands[1]
    assert (close[3], close[5]) == (Keys().request(ID), "x")


@pytest.mark.parametrize("head", [60.0, 0.1, b"no header", None])
def test_a_request_that_may_still_be_answered_is_left_alone(head: float | bytes | None) -> None:
    plane = Broker([b"o", None, header(head) if isinstance(head, float) else head])
    assert ask(plane).status_code == 202
    assert len(plane.commands) == 1


def test_a_request_that_ends_while_it_is_being_cancelled_has_ended() -> None:
    plane = Broker([b"o", None, header(5)], 0, [b"d", RESULT, None])
    answer = ask(plane, "DELETE")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "already_finished")


@pytest.mark.parametrize("state", [b"d", b"f", b"x"])
def test_what_has_ended_in_any_way_but_one_cannot_be_cancelled(state: bytes) -> None:
    assert ask(Broker([state, seal_end(SEAL, ID, state.decode(), b""), None]), "DELETE").status_code == 409
    assert ask(Broker([b"c", seal_end(SEAL, ID, "c", b""), None]), "DELETE").status_code == 204


def test_a_stored_answer_that_cannot_be_read_is_500_and_no_traceback() -> None:
    foreign = seal_end(SEAL, "0" * 32, "d", render("x", Answer.PLAIN))
    for stored in (b"\xc1 nonsense", seal_end(SEAL, ID, "d", b"\xc1 nonsense"), Seal(Keyring(b"k")).seal(b"", foreign)):
        answer = ask(Broker([b"d", stored, None]))
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (500, "bad_payload")


# -- those who follow a request --------------------------------------------------------------------


class Followed(Broker):
    """Knows one open request, and who follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.refs: list[Ref[Any]] = []

    def execute(self, command: Any) -> Any:
        return [b"o", None, header(60)]

    def follow(self, ref: Ref[Any]) -> None:
        self.refs.append(ref)


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Ask for the events of the request; nothing of the response is read by itself."""
    monkeypatch.setattr(jobs, "READERS_LIMIT", 2)
    monkeypatch.setattr(events, "_KEPT_ALIVE_S", 0.0)
    plane = Followed()
    client = create_app(Settings(), plane, watch=False).test_client()  # type: ignore[arg-type]

    def ask(method: str = "GET") -> Any:
        return client.open(f"/-/requests/{ID}/events", method=method)

    ask.plane = plane  # type: ignore[attr-defined]
    return ask


def test_so_many_clients_may_follow_requests_and_a_place_is_free_when_one_leaves(follow: Any) -> None:
    for _ in range(3):
        assert follow("HEAD").status_code == 200  # takes no place
    first, second = follow(), follow()
    full = follow()
    assert (first.status_code, second.status_code, full.status_code) == (200, 200, 503)
    assert full.get_json()["error"]["code"] == "readers_full"
    assert full.get_json()["error"]["message"] == "this gateway process already has 2 clients that follow requests"
    assert full.headers["Retry-After"] == "5"

    first.close()
    third = follow()
    assert (third.status_code, follow().status_code) == (200, 503)
    for response in (second, third):
        response.close()


def test_who_follows_a_request_hears_from_it_while_nothing_happens(follow: Any) -> None:
    response = follow()
    pieces = iter(response.response)
    begin, accepted, *silence = [next(pieces) for _ in range(5)]
    assert begin == b"retry: 1000\n\n"
    assert accepted.startswith(b"event: accepted\nid: 0\n")
    assert silence == [b":\n\n"] * 3, "comments, which an EventSource ignores"

    (ref,) = follow.plane.refs
    ref.settle(Outcome("d", RESULT))
    rest = list(pieces)
    assert rest[-1].startswith(b"event: end\nid: end\n")
    response.close()


# -- what requests say of themselves ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("respond-async", Preference(True, 0)),
        ("Respond-Async, wait=10", Preference(True, 10)),
        ('wait="5"; x=1,respond-async;y', Preference(True, 5)),
        ("wait=31", Preference(False, 30)),
        ("wait=" + "9" * 5000, Preference(False, 30)),
        ("wait=-1, wait=x, wait, wait=\u0663, return=minimal", Preference(False, 0)),
        ("", Preference(False, 0)),
        (",,;=;,", Preference(False, 0)),
    ],
)
def test_preferences_are_read_and_what_makes_no_sense_is_ignored(text: str, understood: Preference) -> None:
    assert preference_of({"HTTP_PREFER": text}) == understood


@given(st.text(max_size=60))
def test_any_preference_can_be_read(text: str) -> None:
    assert 0 <= preference_of({"HTTP_PREFER": text}).wait_s <= 30
