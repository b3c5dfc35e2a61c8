"""Answers that outlive their connections: ``Prefer: respond-async``, ``/-/requests/<id>``, ``Idempotency-Key``."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import pytest
from http_client import WAIT_FOR_S, Answer, Client
from processes import Started, is_open, wait_until
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import GetTimeoutError, RequestCancelledError, ResultUnavailable
from qserve.http_adapters import json_request
from qserve.wire.request_ids import new_response_id, new_value_id


class JobClient(Client):
    """A client that also begins jobs, and waits for them."""

    def start(self, path: str = "/", body: Any = None, **headers: str) -> str:
        """Begin a job, and answer where its answer will be."""
        answer = self.send("POST", path, body, Prefer="respond-async", **headers)
        assert answer.status == 202, answer
        assert answer.headers["preference-applied"] == "respond-async"
        assert answer.headers["retry-after"] == "1"
        request_id = answer.json["request_id"]
        assert answer.json == {"request_id": request_id, "status": "accepted"}
        assert answer.headers["x-qserve-request-id"] == request_id
        assert answer.headers["location"] == f"/-/requests/{request_id}"
        return answer.headers["location"]

    def wait(self, place: str) -> Answer:
        """The answer to a job, once it has one."""
        answer = self.send("GET", place, Prefer="wait=20")
        assert answer.status != 202
        return answer


@pytest.fixture
def client(started: Started) -> JobClient:
    made = JobClient(started.url)
    wait_until(lambda: is_open(made.address[1]), description="the gateway listens")
    return made


class Ledger:
    """A file in which user code writes what it does, and a gate for it to wait at."""

    def __init__(self, folder: Path) -> None:
        self.file, self.gate = folder / "ledger", folder / "gate"
        self.file.touch()

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines()

    def open(self) -> None:
        self.gate.touch()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path)
    yield made
    made.open()  # nobody waits on when the test is over


def run_slow(ledger: Ledger, **options: Any) -> None:
    """Serve an application that notes each request, and answers it when the gate is open."""
    file, gate = str(ledger.file), str(ledger.gate)

    @qserve.deployment(**options)
    class Slow:
        async def __call__(self, request: Request) -> Any:
            body = (await request.body()).decode()
            with open(file, "a") as out:  # noqa: PTH123
                out.write(f"{body}\n")
            while not os.path.exists(gate):  # noqa: PTH110
                await asyncio.sleep(0.01)
            return JSONResponse({"body": body}, 201, {"x-own": "1"})

    qserve.run(Slow.bind())


# -- a job and its answer --------------------------------------------------------------------------


def test_a_job_is_accepted_at_once_and_its_answer_fetched_when_it_is_there(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)

    place = client.start("/", b"x")
    running = client.send("GET", place, X_Request_ID="asker")
    ledger.open()
    first, second = client.wait(place), client.send("GET", place)
    head = client.send("HEAD", place)

    assert (running.status, running.headers["retry-after"]) == (202, "1")
    assert "preference-applied" not in running.headers
    assert running.headers["x-request-id"] == "asker"
    for answer in (first, second):
        assert (answer.status, answer.json, answer.headers["x-own"]) == (201, {"body": "x"}, "1")
        assert answer.headers["x-qserve-request-id"] == place.rpartition("/")[2]
    assert (head.status, head.body, head.headers["x-own"]) == (201, b"", "1")
    assert ledger.lines() == ["x"]


def test_a_fetch_waits_as_long_as_it_is_told_to_and_no_longer(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    place = client.start()
    began = time.monotonic()
    assert client.send("GET", place, Prefer="wait=1").status == 202
    assert 1.0 <= time.monotonic() - began < 20.0  # by itself it would wait for 30 s


def test_a_client_may_wait_a_little_before_it_is_sent_away(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    assert client.send("POST", "/", b"x", Prefer="respond-async, wait=1").status == 202
    ledger.open()
    answer = client.send("POST", "/", b"x", Prefer="wait=20, respond-async")
    assert (answer.status, answer.json) == (201, {"body": "x"})


def test_a_graph_behind_a_driver_takes_jobs_as_well(client: JobClient) -> None:
    @qserve.deployment
    def double(value: int) -> int:
        return 2 * value

    with InputNode() as value:
        qserve.run(DAGDriver.bind(double.bind(double.bind(value)), http_adapter=json_request))

    assert client.wait(client.start("/", 3)).json == 12


def test_an_error_of_user_code_is_the_jobs_answer(client: JobClient) -> None:
    @qserve.deployment
    def broken(request: Request) -> None:
        raise ValueError("not today")

    qserve.run(broken.bind())
    answer = client.wait(client.start())
    assert (answer.status, answer.code) == (500, "user_code_failed")
    assert answer.json["error"]["message"] == "ValueError: not today"


def test_a_stream_that_is_asked_for_later_comes_whole(client: JobClient) -> None:
    @qserve.deployment
    class Streams:
        async def __call__(self, request: Request) -> Any:
            if request.url.path == "/response":
                return StreamingResponse(self.items(), 203, {"x-own": "1"}, "text/csv")
            return self.items()

        async def items(self) -> Any:
            for number in range(30):
                await asyncio.sleep(0.001)
                yield f"{number},"

    qserve.run(Streams.bind())
    whole = "".join(f"{number}," for number in range(30)).encode()

    plain, response = (client.wait(client.start(path)) for path in ("/generator", "/response"))

    assert (plain.status, plain.body, plain.headers["content-length"]) == (200, whole, str(len(whole)))
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    assert (response.status, response.body, response.headers["x-own"]) == (203, whole, "1")


def test_a_stream_without_an_end_is_stopped_when_its_job_is(client: JobClient, ledger: Ledger) -> None:
    file = str(ledger.file)

    @qserve.deployment
    class Endless:
        async def __call__(self, request: Request) -> Any:
            try:
                while True:
                    await asyncio.sleep(0.02)
                    yield "x"
            finally:
                with open(file, "a") as out:  # noqa: PTH123
                    out.write("stopped\n")

    qserve.run(Endless.bind())
    cancelled, late = client.start(), client.start(x_request_timeout_seconds="2")

    assert client.send("DELETE", cancelled).status == 204
    wait_until(lambda: ledger.lines() == ["stopped"] * 2, description="both streams are stopped")
    assert (client.send("GET", cancelled).status, client.send("GET", late).status) == (410, 504)


def test_a_job_that_is_not_finished_in_time_is_504_for_whoever_asks(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    place = client.start(x_request_timeout_seconds="0.2")
    wait_until(lambda: client.send("GET", place).status != 202, description="the deadline has passed")
    answer = client.send("GET", place)
    assert (answer.status, answer.code) == (504, "deadline_exceeded")


def test_a_job_that_is_refused_is_no_job(client: JobClient, ledger: Ledger) -> None:
    fill_up(client, ledger)
    refused = client.send("POST", "/", b"3", Prefer="respond-async", Idempotency_Key="k")
    assert (refused.status, refused.code) == (503, "queue_full")
    assert "location" not in refused.headers
    assert "x-qserve-request-id" not in refused.headers
    ledger.open()
    wait_until(lambda: ledger.lines() == ["1", "2"], description="the others ran")
    # it was never accepted, so its key is free
    assert client.send("POST", "/", b"4", Idempotency_Key="k").json == {"body": "4"}


def test_an_answer_that_somebody_waited_for_cannot_be_asked_for_again(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    ledger.open()
    answer = client.send("POST", "/", b"x", Prefer="wait=5")
    assert (answer.status, answer.json) == (201, {"body": "x"})
    assert "x-qserve-request-id" not in answer.headers
    assert "preference-applied" not in answer.headers


# -- cancelling ------------------------------------------------------------------------------------


def test_a_job_that_waits_never_starts_once_it_is_cancelled(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger, max_concurrent_queries=1)
    first = client.start("/", b"1")
    wait_until(lambda: ledger.lines() == ["1"], description="one runs")
    second = client.start("/", b"2")

    assert [client.send("DELETE", second).status for _ in range(2)] == [204, 204]
    ledger.open()

    assert client.wait(first).status == 201
    gone = client.send("GET", second)
    assert (gone.status, gone.code) == (410, "cancelled")
    assert client.wait(client.start("/", b"3")).status == 201
    assert ledger.lines() == ["1", "3"]


def test_a_job_that_runs_has_no_answer_once_it_is_cancelled(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    place = client.start("/", b"1")
    wait_until(lambda: ledger.lines() == ["1"], description="it runs")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.send, "GET", place, Prefer="wait=20")
        assert client.send("DELETE", place).status == 204
        assert waiting.result().status == 410
    ledger.open()
    assert client.wait(client.start("/", b"2")).status == 201
    assert client.send("GET", place).code == "cancelled"


def test_a_job_that_has_ended_cannot_be_cancelled(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    ledger.open()
    place = client.start()
    assert client.wait(place).status == 201
    refused = client.send("DELETE", place)
    assert (refused.status, refused.code) == (409, "already_finished")
    assert client.send("GET", place).status == 201


def test_of_cancellation_and_result_exactly_one_happens(client: JobClient) -> None:
    @qserve.deployment
    async def quick(request: Request) -> str:
        return "done"

    qserve.run(quick.bind())

    def race(number: int) -> tuple[int, int]:
        place = client.start()
        return client.send("DELETE", place).status, client.wait(place).status

    with ThreadPoolExecutor(4) as pool:
        ends = set(pool.map(race, range(100)))
    assert ends <= {(204, 410), (409, 200)}


# -- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0" * 31,
        "0" * 33,
        "A" * 32,
        "..%2f..%2fetc%2fpasswd",
        "%0d%0aforged",
        "a%00b",
        "%ff%zz",
        "0" * 32 + "/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_id_that_is_none_is_400(client: JobClient, method: str, text: str) -> None:
    answer = client.send(method, f"/-/requests/{text}")
    assert (answer.status, answer.code) == (400, "invalid_id")


# -- requests from Python, and from Python about those from HTTP --------------------------------------


def test_a_request_from_python_is_fetched_and_cancelled_by_its_id(client: JobClient, ledger: Ledger) -> None:
    gate = str(ledger.gate)

    @qserve.deployment
    class Answer:
        async def slow(self, value: Any) -> Any:
            while not os.path.exists(gate):  # noqa: PTH110
                await asyncio.sleep(0.01)
            return value

        def broken(self) -> None:
            raise ValueError("not today")

        def value(self) -> Any:
            return Answer  # neither plain data nor for a process without this code

        def items(self) -> Any:
            yield from range(3)

    handle = qserve.run(Answer.bind())
    not_html = [200, [["content-type", "text/html"]], "<script>"]
    waiting, cancelled, broken = handle.slow.remote(not_html), handle.slow.remote(1), handle.broken.remote()
    classes, stream = handle.value.remote(), handle.items.options(stream=True).remote()
    assert list(stream) == [0, 1, 2]
    places = [f"/-/requests/{call.request_id}" for call in (waiting, cancelled, broken, classes, stream)]

    running = client.send("GET", places[0])
    deleted = [client.send("DELETE", places[1]).status for _ in range(2)]
    ledger.open()
    answer = client.wait(places[0])

    assert (running.status, running.headers["retry-after"]) == (202, "1")
    assert (answer.status, answer.headers["content-type"], answer.json) == (200, "application/json", not_html)
    assert answer.headers["x-qserve-request-id"] == waiting.request_id
    assert client.send("DELETE", places[0]).code == "already_finished"
    assert deleted == [204, 204]
    with pytest.raises(RequestCancelledError):
        cancelled.result(60)
    assert client.send("GET", places[1]).code == "cancelled"
    assert client.wait(places[2]).error["message"] == "ValueError: not today"
    for place, status, code in [(places[3], 406, "not_json"), (places[4], 410, "result_unavailable")]:
        refused = client.wait(place)
        assert (refused.status, refused.code) == (status, code)


def test_a_ref_is_had_by_id_of_any_request(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    place = client.start("/", b"x")
    deleted = qserve.get_ref(client.start("/", b"y").rpartition("/")[2])
    ref = qserve.get_ref(place.rpartition("/")[2])

    ref.accepted(timeout_s=60)
    with pytest.raises(GetTimeoutError):
        ref.result(0.1)
    deleted.cancel()
    with pytest.raises(RequestCancelledError):  # before the gate opens: the request might end first otherwise
        deleted.result(60)
    ledger.open()
    response = pickle.loads(pickle.dumps(ref)).result(60)

    assert (response.status, response.body) == (201, b'{"body":"x"}')
    assert ["x-own", "1"] in response.headers


@pytest.mark.row("F58")
def test_a_job_is_followed_by_its_progress_until_it_ends(client: JobClient, ledger: Ledger) -> None:
    file, gate = str(ledger.file), str(ledger.gate)

    @qserve.deployment
    class Steps:
        async def __call__(self, request: Request) -> str:
            qserve.report_progress(0.25, "first\nstep")
            while not os.path.exists(gate):  # noqa: PTH110
                await asyncio.sleep(0.01)
            qserve.report_progress(0.75)
            while os.path.exists(file):  # noqa: PTH110
                await asyncio.sleep(0.01)
            return "done"

    qserve.run(Steps.bind())
    place = client.start("/", b"x")
    with follow(client, place) as stream:
        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
        events = read_events(stream)
        begin = list(islice(events, 3))
        asked = client.send("GET", place)
        ledger.open()
        second = next(events)
        with follow(client, place, second["id"]) as again:
            ledger.file.unlink()
            rest, same = list(events), list(read_events(again))

    step = {"deployment": "Steps", "step": "__call__", "attempt": 1}
    first = {"fraction": 0.25, "message": "first\nstep"}
    assert [(one["event"], json.loads(one["data"])) for one in (*begin, second, *rest)] == [
        ("accepted", {}),
        ("started", step),
        ("progress", first | {"deployment": "Steps"}),
        ("progress", {"fraction": 0.75, "message": "", "deployment": "Steps"}),
        ("done", step),
        ("end", {"status": "done"}),
    ]
    assert asked.json["progress"] == first
    assert [one["id"] for one in (*begin, second, *rest)] == ["0", "1", "2", "3", "4", "end"]
    assert same == rest
    assert client.send("GET", f"{place}/events", Last_Event_ID="end").status == 204  # an EventSource asks no more
    assert client.send("HEAD", f"{place}/events").status == 200
    with follow(client, place, "not an id") as late:
        assert [one["id"] for one in read_events(late)] == ["0", "1", "2", "3", "4", "end"]
    assert client.send("DELETE", f"{place}/events").status == 405
    assert client.send("GET", place).text == "done"


@pytest.mark.parametrize("end", ["cancelled", "failed", "gone"])
def test_events_say_how_a_job_ended(client: JobClient, ledger: Ledger, end: str) -> None:
    gate = str(ledger.gate)

    @qserve.deployment
    class Model:
        async def __call__(self, request: Request) -> None:
            while not os.path.exists(gate):  # noqa: PTH110
                await asyncio.sleep(0.01)
            raise ValueError("not today")

    qserve.run(Model.bind())
    place = client.start("/", b"x")
    with follow(client, place) as stream:
        if end == "cancelled":
            client.send("DELETE", place)
        else:
            ledger.open()
        ended = list(read_events(stream))[-1]

    assert json.loads(ended["data"]) == {"status": "cancelled" if end == "cancelled" else "failed"}
    assert client.send("GET", f"/-/requests/{new_value_id()}/events").status == 410
    assert client.send("GET", f"/-/requests/{'0' * 32}/events").status == 404


def follow(client: JobClient, place: str, last_id: str = "") -> HTTPResponse:
    """Ask for the events of a job."""
    asked = UrlRequest(f"{client.url}{place}/events", headers={"Last-Event-ID": last_id} if last_id else {})
    return urlopen(asked, timeout=WAIT_FOR_S)


def read_events(stream: Any) -> Iterator[dict[str, str]]:
    """The events of a response, as they come."""
    event: dict[str, str] = {}
    for line in stream:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name in ("event", "id", "data"):
            event[name] = value
        elif event:
            yield event
            event = {}


def test_what_is_private_stays_so(client: JobClient) -> None:
    @qserve.deployment
    class Inner:
        def __call__(self) -> str:
            return "inner"

    @qserve.deployment
    class Outer:
        def __init__(self, inner: Any) -> None:
            self.inner, self.refs = inner, []

        async def __call__(self, request: Request) -> Any:
            ref = await self.inner.remote()
            await ref
            self.refs.append(ref)
            return ref.request_id

    qserve.run(Outer.bind(Inner.bind()))
    inner = client.get("/").text
    assert [client.send(method, f"/-/requests/{inner}").status for method in ("GET", "DELETE")] == [404, 404]


@pytest.mark.parametrize("text", ["", "x", "0" * 31, "A" * 32, None, b"0" * 32])
def test_what_is_not_an_id_has_no_ref(text: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not a request id, which has 32 hexadecimal digits")):
        qserve.get_ref(text)


@pytest.mark.parametrize(
    ("request_id", "message"),
    [(new_value_id(), "is no longer stored"), (new_response_id(), "is no longer stored"), ("0" * 32, "is not known")],
    ids=["a value", "a response", "nothing"],
)
def test_a_ref_to_nothing_says_whether_there_was_something(started: Started, request_id: str, message: str) -> None:
    ref = qserve.get_ref(request_id)
    ref.cancel()
    for wait in (lambda: ref.accepted(timeout_s=60), lambda: ref.result(60), lambda: asyncio.run(awaited(ref))):
        with pytest.raises(ResultUnavailable, match=message):
            wait()


async def awaited(ref: Any) -> Any:
    return await ref


def test_other_methods_are_told_which_there_are(client: JobClient) -> None:
    answer = client.send("POST", f"/-/requests/{'0' * 32}")
    assert (answer.status, answer.headers["allow"]) == (405, "DELETE, GET, HEAD")


# -- idempotency keys ------------------------------------------------------------------------------


def test_the_same_key_again_follows_the_first_and_has_its_answer(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    with ThreadPoolExecutor(6) as pool:
        same = [pool.submit(client.send, "POST", "/", b"x", Idempotency_Key="order-7") for _ in range(3)]
        same += [pool.submit(client.send, "POST", "/", b"x", Idempotency_Key='"order-7"') for _ in range(3)]
        wait_until(lambda: ledger.lines() == ["x"], description="it runs")
        ledger.open()
        answers = [one.result() for one in same]
    answers.append(client.send("POST", "/", b"x", Idempotency_Key="order-7"))

    assert {(one.status, one.body) for one in answers} == {(201, b'{"body":"x"}')}
    (request_id,) = {one.headers["x-qserve-request-id"] for one in answers}
    assert client.send("GET", f"/-/requests/{request_id}").body == b'{"body":"x"}'
    assert ledger.lines() == ["x"]


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/", b"other", {}),
        ("/other", b"x", {}),
        ("/?q=1", b"x", {}),
        ("/", b"x", {"Content_Type": "text/csv"}),
        ("/", b"x", {"Authorization": "Basic eDp5"}),
        ("/", b"x", {"serve_multiplexed_model_id": "m"}),
    ],
)
def test_a_key_that_comes_with_another_request_is_422(
    client: JobClient, ledger: Ledger, path: str, body: bytes, headers: dict[str, str]
) -> None:
    run_slow(ledger)
    ledger.open()
    key = os.urandom(8).hex()
    assert client.send("POST", "/", b"x", Idempotency_Key=key).status == 201
    refused = client.send("POST", path, body, Idempotency_Key=key, **headers)
    assert (refused.status, refused.code) == (422, "idempotency_mismatch")
    assert "x-qserve-request-id" not in refused.headers
    assert client.send("PUT", "/", b"x", Idempotency_Key=key).status == 422
    assert ledger.lines() == ["x"]


def test_a_key_that_is_refused_does_not_disturb_who_holds_it(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.send, "POST", "/", b"x", Idempotency_Key="mine")
        wait_until(lambda: ledger.lines() == ["x"], description="it runs")
        assert client.send("POST", "/", b"y", Idempotency_Key="mine").status == 422
        ledger.open()
        assert first.result().status == 201


@pytest.mark.parametrize("key", ["", "a" * 129, "a b", "a,b", "\u00e4", '"', "a\tb"])
def test_a_key_that_is_none_is_400(client: JobClient, ledger: Ledger, key: str) -> None:
    run_slow(ledger)
    answer = client.send("POST", "/", b"x", Idempotency_Key=key)
    assert (answer.status, answer.code) == (400, "invalid_idempotency_key")
    assert ledger.lines() == []


def test_a_key_belongs_to_one_application(client: JobClient, tmp_path: Path) -> None:
    @qserve.deployment
    async def name(request: Request) -> str:
        return request.scope["root_path"] or "root"

    for app, prefix in (("one", "/one"), ("two", "/two")):
        qserve.run(name.bind(), name=app, route_prefix=prefix)
    assert [client.send("GET", path, Idempotency_Key="k").body for path in ("/one", "/two")] == [b"/one", b"/two"]


def test_a_job_may_have_a_key(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    place = client.start("/", b"x", Idempotency_Key="job")
    assert client.start("/", b"x", Idempotency_Key="job") == place
    ledger.open()
    assert client.wait(place).status == 201
    assert client.start("/", b"x", Idempotency_Key="job") == place
    again = client.send("POST", "/", b"x", Idempotency_Key="job", Prefer="respond-async, wait=1")
    assert (again.status, again.json) == (201, {"body": "x"})
    assert ledger.lines() == ["x"]


def test_a_client_that_leaves_finds_its_answer_by_its_key(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger)
    request = b"POST / HTTP/1.1\r\nHost: x\r\nIdempotency-Key: left\r\nContent-Length: 1\r\n\r\nx"
    with socket.create_connection(client.address) as sock:
        sock.sendall(request)
        wait_until(lambda: ledger.lines() == ["x"], description="it runs")
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(client.send, "POST", "/", b"x", Idempotency_Key="left")
        # longer than the gateway takes to see that the first one is gone
        with pytest.raises(TimeoutError):
            again.result(timeout=0.8)
        ledger.open()
        assert again.result().status == 201
    assert ledger.lines() == ["x"]


# -- admission -------------------------------------------------------------------------------------


def fill_up(client: JobClient, ledger: Ledger) -> None:
    run_slow(ledger, max_queued_requests=1, max_concurrent_queries=1)
    client.start("/", b"1")
    wait_until(lambda: ledger.lines() == ["1"], description="one runs")
    client.start("/", b"2")


def test_a_full_queue_says_how_long_its_oldest_call_has_waited(client: JobClient, ledger: Ledger) -> None:
    fill_up(client, ledger)

    first = int(client.send("POST", "/", b"3").headers["retry-after"])
    answer = wait_until(
        lambda: next(
            (one for one in [client.send("POST", "/", b"3")] if int(one.headers["retry-after"]) > first),
            None,
        ),
        description="the oldest has waited for a second more",
    )
    assert (answer.status, answer.code, answer.json["error"]["retryable"]) == (503, "queue_full", True)


def test_a_refusal_is_quick(client: JobClient, ledger: Ledger) -> None:
    fill_up(client, ledger)

    def refuse() -> float:
        began = time.perf_counter()
        assert client.send("POST", "/", b"x").status == 503
        return time.perf_counter() - began

    assert sorted(refuse() for _ in range(21))[10] < 0.2


def test_a_caller_in_python_is_told_when_to_come_back(client: JobClient, ledger: Ledger) -> None:
    fill_up(client, ledger)
    handle = qserve.get_app_handle("default")
    with pytest.raises(qserve.exceptions.BackPressureError) as caught:
        qserve.get(handle.remote(1))
    assert caught.value.retry_after_s >= 1
