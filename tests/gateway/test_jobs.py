"""What is below ``/-/requests/``, over a broker that says what the test wants."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import redis
from fakes import FakePlane, plain_app
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from qserve_gateway.application import create_app
from qserve_gateway.jobs import Preference, id_of_key, is_genuine, new_id, preference_of

from qserve.base.keyring import Keyring
from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.http.render import render
from qserve.wire.envelope import Answer, Header
from qserve.wire.sealing import Seal, seal_end, seal_header

ID = new_id()
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
    nothing = [None] * 4
    for method in ("GET", "DELETE"):
        assert ask(Broker(nothing), method).status_code == 410
        never = ask(Broker(nothing), method, "0" * 32)
        assert (never.status_code, never.get_json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_is_no_answer_to_http_is_not_there(method: str) -> None:
    assert ask(Broker([b"d", RESULT, None, None]), method).status_code == 410


def test_a_request_that_is_open_past_its_deadline_is_ended_by_who_asks() -> None:
    plane = Broker([b"o", None, b"once", header(-2)], 1, [b"x", b"", b"once", None])
    assert ask(plane).status_code == 504
    close = plane.commands[1]
    assert (close[3], close[5]) == (Keys().request(ID), "x")


@pytest.mark.parametrize("head", [60.0, 0.1, b"no header", None])
def test_a_request_that_may_still_be_answered_is_left_alone(head: float | bytes | None) -> None:
    plane = Broker([b"o", None, b"once", header(head) if isinstance(head, float) else head])
    assert ask(plane).status_code == 202
    assert len(plane.commands) == 1


def test_a_request_that_ends_while_it_is_being_cancelled_has_ended() -> None:
    plane = Broker([b"o", None, b"once", header(5)], 0, [b"d", RESULT, b"once", None])
    answer = ask(plane, "DELETE")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "already_finished")


@pytest.mark.parametrize("state", [b"d", b"f", b"x"])
def test_what_has_ended_in_any_way_but_one_cannot_be_cancelled(state: bytes) -> None:
    assert ask(Broker([state, b"", b"once", None]), "DELETE").status_code == 409
    assert ask(Broker([b"c", b"", b"once", None]), "DELETE").status_code == 204


def test_a_stored_answer_that_cannot_be_read_is_500_and_no_traceback() -> None:
    foreign = seal_end(SEAL, "0" * 32, "d", render("x", Answer.PLAIN))
    for stored in (b"\xc1 nonsense", seal_end(SEAL, ID, "d", b"\xc1 nonsense"), Seal(Keyring(b"k")).seal(b"", foreign)):
        answer = ask(Broker([b"d", stored, b"once", None]))
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (500, "bad_payload")


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


def test_an_id_tells_that_it_is_genuine() -> None:
    ids = [new_id() for _ in range(100)] + [id_of_key(str(number), "app", "ns", None) for number in range(100)]
    assert len(set(ids)) == 200
    assert all(re.fullmatch("[0-9a-f]{32}", one) and is_genuine(one) for one in ids)
    assert not any(is_genuine(f"{number:032x}") for number in range(1000))


def test_the_id_of_a_key_depends_on_all_that_it_belongs_to() -> None:
    made = {id_of_key(*given) for given in [
        ("k", "a", "n", None), ("k", "a", "n", b"s"), ("k", "a", "n", b"t"), ("l", "a", "n", b"s"),
        ("k", "b", "n", b"s"), ("k", "a", "m", b"s"),
    ]}  # fmt: skip
    assert len(made) == 6
    assert id_of_key("k", "a", "n", b"s") == id_of_key("k", "a", "n", b"s")
