"""Places and memory: who gets some, who is refused with which words, and that all of it is given back."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes import FakePlane, driver_app, plain_app
from hypothesis import given, settings
from hypothesis import strategies as st
from qserve_gateway.application import Gateway, create_app
from qserve_gateway.request import waiting
from qserve_gateway.request.environ import SMALL, Refused
from qserve_gateway.request.waiting import IN_FLIGHT_LIMIT, PROCESS_LIMIT, InFlightLimit, Place
from qserve_gateway.response import reply

from qserve.base.settings import Settings
from qserve.calls.items import ItemRef
from qserve.calls.ref import Ref
from qserve.exceptions import BrokerUnavailable
from qserve.graph.plan import InputKey, Plan, Slot, Step
from qserve.http.render import render
from qserve.wire.application import dump_plan
from qserve.wire.codec import Codec
from qserve.wire.envelope import Answer
from qserve.wire.outcome import ANNOUNCED, Outcome, State

HALF = IN_FLIGHT_LIMIT // 2


def enter(limit: InFlightLimit, route: str, count: int) -> list[Place]:
    """Take as many of ``count`` places as the route gets."""
    taken = []
    for _ in range(count):
        try:
            taken.append(limit.enter(route))
        except Refused:
            break
    return taken


def refusal_of(act: Callable[[], Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        act()
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    return caught.value


# -- places ----------------------------------------------------------------------------------------


def test_a_route_that_is_alone_may_take_all_places_and_no_more() -> None:
    limit = InFlightLimit()
    assert len(enter(limit, "/a", 2 * IN_FLIGHT_LIMIT)) == IN_FLIGHT_LIMIT
    refused = refusal_of(lambda: limit.enter("/a"))
    assert (refused.code, "/a" in str(refused), f"limit {IN_FLIGHT_LIMIT}" in str(refused)) == (
        "route_full",
        True,
        True,
    )


def test_a_route_may_not_have_more_than_half_while_others_ask() -> None:
    limit = InFlightLimit()
    enter(limit, "/b", 1)
    assert len(enter(limit, "/a", IN_FLIGHT_LIMIT)) == HALF
    assert refusal_of(lambda: limit.enter("/a")).code == "route_full"


def test_a_route_may_have_all_again_when_others_have_not_asked_for_a_second() -> None:
    now = 100.0
    limit = InFlightLimit(clock=lambda: now)
    limit.enter("/b").leave()
    assert len(enter(limit, "/a", IN_FLIGHT_LIMIT)) == HALF
    now += 1.1
    assert len(enter(limit, "/a", IN_FLIGHT_LIMIT)) == HALF


@given(st.integers(1, 6))
def test_a_route_that_has_all_places_takes_none_from_any_number_of_others(others: int) -> None:
    limit = InFlightLimit()
    enter(limit, "/hog", IN_FLIGHT_LIMIT)
    taken = [len(enter(limit, f"/{number}", IN_FLIGHT_LIMIT)) for number in range(others)]
    assert all(taken), taken
    assert refusal_of(lambda: limit.enter("/hog")).code == "route_full"
    assert limit.held <= PROCESS_LIMIT


def test_a_process_that_is_full_says_so() -> None:
    limit = InFlightLimit()
    for number in range(100):
        enter(limit, f"/{number}", HALF)
    refused = refusal_of(lambda: limit.enter("/0"))
    assert limit.held <= PROCESS_LIMIT
    assert refused.code in ("gateway_full", "route_full")
    assert refusal_of(lambda: limit.enter("/99")).code == "gateway_full"


# -- memory ----------------------------------------------------------------------------------------


def test_memory_is_taken_up_to_the_limit_and_the_refusal_names_it() -> None:
    limit = InFlightLimit(memory=100)
    first, second = limit.enter("/"), limit.enter("/")
    first.take(60)
    second.take(40)
    refused = refusal_of(lambda: limit.enter("/").take(1))
    assert (refused.code, "QSERVE_BODY_MEMORY" in str(refused)) == ("memory_full", True)
    first.leave()
    second.take(60)
    assert limit.taken == 100


def test_what_is_larger_than_all_memory_comes_alone() -> None:
    limit = InFlightLimit(memory=100)
    large = limit.enter("/")
    large.take(1000)
    refusal_of(lambda: limit.enter("/").take(1))
    large.leave()
    limit.enter("/").take(1)


def test_a_place_is_given_back_once_however_often_it_is_left() -> None:
    limit = InFlightLimit()
    place = limit.enter("/")
    limit.enter("/")
    place.take(10)
    for _ in range(3):
        place.leave()
    assert (limit.held, limit.taken) == (1, 0)


# -- whatever happens to requests, all is given back -------------------------------------------------


class MixedPlane(FakePlane):
    """Ends each call as the test says, some of them with a stream."""

    ends = "small"

    def submit(self, call: Any) -> Ref:
        self.calls.append(call)
        if self.ends == "error":
            raise BrokerUnavailable("away")
        if self.ends == "bug":
            raise RuntimeError("a bug")
        ref: Ref = ItemRef("0" * 32, None) if call.stream else Ref("0" * 32, None)
        if self.ends == "never":
            ref.acceptance.set(True)
        elif self.ends == "stream" and isinstance(ref, ItemRef):
            ref.acceptance.set(True)
            ref.add(b"\x92\xcc\xc8\x90")  # status 200, no headers
            for size in (10, 2 * SMALL, 0, 10):
                ref.items.append(b"x" * size)
            ref.done.set(Outcome(State.DONE, b""))
        elif self.ends == "failed":
            ref.settle(Outcome(State.FAILED, b"junk"))
        elif self.ends == "stored":
            ref.settle(Outcome(State.DONE, render("x" * (5 * SMALL), Answer.PLAIN, self.codec)))
        elif self.ends == "large":
            ref.settle(Outcome(ANNOUNCED, b"%d" % (3 * SMALL)))
        else:
            ref.settle(Outcome(State.DONE, render("hello", Answer.PLAIN)))
        return ref

    def fetch(self, request_id: str, timeout_s: float) -> Outcome:
        return Outcome(State.DONE, render("x" * (3 * SMALL), Answer.PLAIN))


BODY_LIMIT = 1 << 20
WHOLE = Plan((Step("d", args=(Slot(0),), needs=1),), {InputKey(): ((0, 0),)}, 0)


@pytest.fixture(scope="module")
def mixed() -> Iterator[tuple[MixedPlane, Gateway]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "POLL_INTERVAL_S", 0.001)
        patch.setattr(reply, "LINGER_S", 0.0)
        patch.setattr(waiting, "SUBMIT_LIMIT", 2 * SMALL)
        patch.setenv("QSERVE_CLIENT_IN_FLIGHT", "50")
        document = driver_app(name="json", prefix="/json", graphs={"": dump_plan(WHOLE, Codec())})
        plane = MixedPlane(plain_app("plain", "/plain"), document)
        own = Settings(request_timeout_s=0.01, max_body_bytes=BODY_LIMIT, max_json_bytes=BODY_LIMIT)
        app = create_app(own, plane, watch=False)  # type: ignore[arg-type]
        yield plane, app
        app._handler.parser.close()


def environ_of(**parts: Any) -> dict[str, Any]:
    body: bytes = parts.get("body", b"")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": parts.get("method", "POST"), "PATH_INFO": parts.get("path", "/plain"),
        "SERVER_NAME": "x", "SERVER_PORT": "80", "HTTP_HOST": "x", "wsgi.url_scheme": "http", "REMOTE_ADDR": "1.1.1.1",
        "wsgi.input": io.BytesIO(body[: len(body) - parts.get("missing", 0)]), **parts.get("headers", {}),
    }  # fmt: skip
    if parts.get("chunked"):
        environ["HTTP_TRANSFER_ENCODING"] = "chunked"
    else:
        environ["CONTENT_LENGTH"] = str(len(body))
    return environ


REQUESTS = st.fixed_dictionaries(
    {
        "ends": st.sampled_from(["small", "large", "stored", "stream", "stream", "failed", "error", "bug", "never"]),
        "method": st.sampled_from(["POST", "POST", "GET", "HEAD", "HEAD", "DELETE", "TRACE"]),
        "path": st.sampled_from(["/plain"] * 3 + ["/json", "/nowhere", "/-/routes", "/-/requests/" + "0" * 32]),
        "size": st.sampled_from([0, 10, SMALL, SMALL + 1, 3 * SMALL, BODY_LIMIT, BODY_LIMIT + 1]),
        "missing": st.sampled_from([0, 0, 1]),
        "chunked": st.booleans(),
        "headers": st.sampled_from(
            [
                {}, {}, {"HTTP_PREFER": "respond-async"}, {"HTTP_IDEMPOTENCY_KEY": "k"}, {"HTTP_IDEMPOTENCY_KEY": ""},
                {"HTTP_X_REQUEST_TIMEOUT_SECONDS": "0"}, {"HTTP_CONTENT_ENCODING": "gzip"},
                {"HTTP_SERVE_MULTIPLEXED_MODEL_ID": "\n"},
            ]
        ),
        "leaves": st.sampled_from(["at the end", "before the answer", "in the middle", "headers are refused"]),
    }
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300)
@given(REQUESTS, st.sampled_from([2 * SMALL, 256 << 20]))
def test_after_any_request_nothing_is_held(
    mixed: tuple[MixedPlane, Gateway], parts: dict[str, Any], memory: int
) -> None:
    plane, app = mixed
    limit = app._handler.in_flight
    limit.memory, plane.ends = memory, parts["ends"]
    body = b"[" + b" " * (parts["size"] - 2) + b"]" if parts["size"] > 1 else b""

    _send(app, environ_of(**{**parts, "body": body}), parts["leaves"])

    assert (limit.held, limit.taken, limit.submitting) == (0, 0, 0)
    assert plane.store.open == 0
    clients = app._handler.access.clients
    assert clients is not None and not any(client.in_flight for client in clients._clients.values())


@pytest.mark.parametrize("ends", ["large", "stored", "stream"])
def test_an_answer_that_finds_no_room_before_its_deadline_is_503_and_a_stream_ends(
    mixed: tuple[MixedPlane, Gateway], ends: str
) -> None:
    plane, app = mixed
    limit = app._handler.in_flight
    limit.memory, plane.ends = 256 << 20, ends
    plane.cancelled.clear()
    other = limit.enter("/other")
    other.take(limit.memory)
    try:
        refused = app.test_client().post("/plain")
    finally:
        other.leave()

    assert (refused.status_code, refused.get_json()["error"]["code"]) == (503, "memory_full")
    assert len(plane.cancelled) == (ends == "stream")
    assert (limit.held, limit.taken) == (0, 0)
    assert app.test_client().post("/plain", buffered=True).status_code == 200


def _send(app: Gateway, environ: dict[str, Any], leaves: str) -> None:
    """Handle a request as gunicorn does, for a client that leaves at some moment."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        environ["gunicorn.socket"] = ours
        if leaves == "before the answer":
            theirs.close()

        def start_response(status: str, headers: Any, *more: Any) -> None:
            if leaves == "headers are refused":
                raise ValueError("a header that HTTP does not have")

        try:
            answer = app.wsgi_app(environ, start_response)
        except ValueError:
            return
        try:
            for number, _ in enumerate(answer):
                if leaves == "in the middle" and number:
                    break
        finally:
            getattr(answer, "close", lambda: None)()
