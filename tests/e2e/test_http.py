"""HTTP as a client sees it: routes, requests, answers, adapters and refusals."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_client import Answer, Client
from processes import Started, wait_until
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

import qserve
from qserve import api
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import BackPressureError
from qserve.handle import RayServeHandle
from qserve.http_adapters import json_request, json_to_multi_ndarray, json_to_ndarray


@qserve.deployment
def echo(value: Any) -> Any:
    """Give back what came."""
    return value


def run_graph(adapter: Any = json_request, body: Any = echo, **options: Any) -> Any:
    """Serve a graph of one step."""
    with InputNode() as value:
        return qserve.run(DAGDriver.bind(body.bind(value), http_adapter=adapter), **options)


# -- routes ----------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_several_graphs_answer_at_exactly_their_paths(client: Client) -> None:
    @qserve.deployment
    class Model:
        def __call__(self, value: int) -> int:
            return value + 100

        def fixed(self) -> str:
            return "fixed"

    with InputNode() as value:
        routes = {"/echo": echo.bind(value), "/hello/world": Model.bind(), "/fixed": Model.bind().fixed.bind()}
    handle = qserve.run(DAGDriver.bind(routes, http_adapter=json_request))

    assert client.post("/echo", 5).json == client.get("/echo", 5).json == 5
    assert client.post("/hello/world", 5).json == 105
    assert client.post("/fixed", 5).json == client.get("/fixed", 5).json == "fixed"
    for unknown in ("/", "/nowhere", "/echo/more", "/hello"):
        refused = client.post(unknown, 5)
        assert (refused.status, refused.json["detail"]) == (404, "Not Found"), unknown
    assert client.send("DELETE", "/echo").status == 405
    assert client.get("/-/routes").json == {"/": "DAGDriver"}
    assert qserve.get(handle.predict_with_route.remote("/echo", 7)) == 7


def test_routes_may_have_parameters_in_their_path(client: Client) -> None:
    @qserve.deployment
    def show(given: Any) -> Any:
        return given

    async def adapter(request: Request, name: str, number: int = 0) -> Any:
        return {"name": name, "number": number, "path": dict(request.path_params)}

    with InputNode() as value:
        shown = show.bind(value)
        routes = {"/users/me": echo.bind("me"), "/users/{name}": shown, "/n/{name}/{number:int}": shown}
        handle = qserve.run(DAGDriver.options(route_prefix="/api").bind(routes, http_adapter=adapter))

    assert client.get("/api/users/me?name=x").json == "me"
    assert client.post("/api/users/Ada%20L?number=2").json == {
        "name": "Ada L", "number": 2, "path": {"name": "Ada L"},
    }  # fmt: skip
    assert client.get("/api/n/x/7").json == {"name": "x", "number": 7, "path": {"name": "x", "number": 7}}
    assert client.get("/api/n/x/y").status == client.get("/api/users/a/b").status == 404
    assert qserve.get(handle.predict_with_route.remote("/users/{name}", 1)) == 1


# -- requests --------------------------------------------------------------------------------------


def test_without_an_adapter_the_input_is_the_request_itself(client: Client) -> None:
    @qserve.deployment
    def kind(value: Any) -> Any:
        return "starlette!" if isinstance(value, Request) else value

    handle = run_graph(None, kind)

    assert client.post().text == '"starlette!"'
    assert qserve.get(handle.predict.remote(42)) == 42


def test_a_callable_without_parameters_is_called_without_the_request(client: Client) -> None:
    @qserve.deployment
    def hello() -> str:
        return "hello"

    @qserve.deployment
    class Model:
        def __call__(self) -> str:
            return "model"

    @qserve.deployment
    class Front:
        def __init__(self, model: RayServeHandle) -> None:
            self.model = model

        async def __call__(self, anything: Any) -> str:
            return await (await self.model.remote(anything))

    for node, text in ((hello.bind(), "hello"), (Model.bind(), "model"), (Front.bind(Model.bind()), "model")):
        qserve.run(node)
        assert client.get().text == client.post("/", {"a": 1}).text == text


def test_a_deployment_takes_the_request_whatever_its_parameter_is_called(client: Client) -> None:
    @qserve.deployment
    def by_any_name(starlette_request_of_mine: dict[str, int]) -> str:
        return type(starlette_request_of_mine).__name__

    qserve.run(by_any_name.bind())

    assert client.get().text == "Request"


def test_a_request_has_starlettes_interface(client: Client) -> None:
    @qserve.deployment
    async def show(request: Request) -> Any:
        return {
            "json": await request.json(),
            "bytes": len(await request.body()),
            "query": dict(request.query_params),
            "k": request.query_params["k"],
            "none": request.query_params.get("none", "default"),
            "all": request.query_params.getlist("n"),
            "method": request.method,
            "header": request.headers["X-Own"],
            "cookie": request.cookies.get("session"),
            "path": request.url.path,
            "root": request.scope["root_path"],
        }

    qserve.run(show.bind(), route_prefix="/show")

    answer = client.send("PATCH", "/show/any?k=a%20b&n=1&n=2", {"x": [1]}, X_Own="é", Cookie="session=s1")
    assert answer.json == {
        "json": {"x": [1]},
        "bytes": 10,
        "query": {"k": "a b", "n": "2"},
        "k": "a b",
        "none": "default",
        "all": ["1", "2"],
        "method": "PATCH",
        "header": "é",
        "cookie": "s1",
        "path": "/show/any",
        "root": "/show",
    }


@pytest.mark.smoke
def test_json_text_and_forms_are_read_with_or_without_a_content_type(client: Client) -> None:
    @qserve.deployment
    async def read(request: Request) -> Any:
        if request.query_params["as"] == "form":
            return dict(await request.form())
        return await request.json() if request.query_params["as"] == "json" else (await request.body()).decode()

    qserve.run(read.bind())
    form = {"Content_Type": "application/x-www-form-urlencoded"}

    assert client.post("/?as=json", {"a": 1}, Content_Type="application/json").json == {"a": 1}
    assert client.post("/?as=json", {"a": 1}).json == {"a": 1}
    assert client.post("/?as=json", b"5", Content_Type="text/plain").json == 5
    assert client.post("/?as=form", b"x=1&y=z", **form).json == {"x": "1", "y": "z"}
    assert client.post("/?as=text", "ünï".encode()).text == "ünï"
    assert client.get("/?as=text").text == ""


def test_a_request_passes_through_handles_and_keeps_its_type(client: Client) -> None:
    @qserve.deployment
    class Inner:
        async def __call__(self, request: Request) -> list[Any]:
            return [type(request).__name__, await request.json(), request.query_params["q"]]

    @qserve.deployment
    class Outer:
        def __init__(self, inner: RayServeHandle, reads: bool) -> None:
            self.inner, self.reads = inner, reads

        async def __call__(self, request: Request) -> list[Any]:
            if self.reads:
                await request.json()
            return await (await self.inner.remote(request))

    for reads in (False, True):
        qserve.run(Outer.bind(Inner.bind(), reads))
        assert client.post("/?q=1", [2]).json == ["Request", [2], "1"]


def test_bodies_of_640_kib_arrive_whole_through_adapters_and_handles(client: Client) -> None:
    @qserve.deployment
    def size(text: str) -> int:
        return len(text)

    @qserve.deployment
    class Front:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, request: Request) -> int:
            return await (await self.inner.remote((await request.body()).decode()))

    qserve.run(Front.bind(size.bind()))
    assert client.post("/", b"x" * 640 * 1024).json == 640 * 1024

    run_graph(json_request, size)
    assert client.post("/", "y" * 640 * 1024).json == 640 * 1024


@pytest.mark.smoke
def test_concurrent_requests_get_their_own_answers(client: Client) -> None:
    @qserve.deployment(num_replicas=2)
    async def double(value: int) -> int:
        await asyncio.sleep(0.01)
        return value * 2

    run_graph(json_request, double)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda number: client.post("/", number).json, range(100)))
    assert answers == [number * 2 for number in range(100)]


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text", "kind"),
    [
        ("got me", "got me", "text/plain; charset=utf-8"),
        (b"\x00raw", "\x00raw", "text/plain"),
        (None, "", None),
        (1, "1", "application/json"),
        ([1, 2], "[1, 2]", "application/json"),
        ({"a": None}, '{"a": null}', "application/json"),
    ],
)
def test_a_plain_ingress_answers_by_the_type_of_the_value(
    client: Client, value: Any, text: str, kind: str | None
) -> None:
    @qserve.deployment
    def plain() -> Any:
        return value

    qserve.run(plain.bind())
    answer = client.get()

    assert answer.status == 200
    if kind == "application/json":
        assert answer.json == json.loads(text)
    else:
        assert answer.text == text
    if kind is not None:
        assert answer.headers["content-type"].startswith(kind)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("got me", '"got me"'),
        (3, "3"),
        (None, "null"),
        ({"result": 101.5}, '{"result": 101.5}'),
        (np.array([[1, 2]]), "[[1, 2]]"),
        ({"a": [np.float64(0.5), np.int64(2)]}, '{"a": [0.5, 2]}'),
        (b"raw", '"raw"'),
    ],
)
def test_a_driver_always_answers_json(client: Client, value: Any, text: str) -> None:
    @qserve.deployment
    def give(ignored: Any) -> Any:
        return value

    run_graph(None, give)
    answer = client.get()

    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json == json.loads(text)


@pytest.mark.smoke
def test_response_objects_pass_through(client: Client) -> None:
    @qserve.deployment
    def respond(request: Request) -> Response:
        match request.query_params["kind"]:
            case "html":
                return HTMLResponse("<p>hi</p>", status_code=201, headers={"x-own": "1"})
            case "plain":
                return PlainTextResponse("plain")
            case "json":
                return JSONResponse({"a": 1}, status_code=418)
            case "redirect":
                return RedirectResponse("/elsewhere")
            case "stream":
                return StreamingResponse(iter(["a", "b"]), status_code=418)
        return Response(b"\0", media_type="application/x-own")

    qserve.run(respond.bind())

    def answer(kind: str) -> tuple[int, str, str]:
        got = client.get(f"/?kind={kind}")
        return got.status, got.headers.get("content-type", "").partition(";")[0], got.text

    assert answer("html") == (201, "text/html", "<p>hi</p>")
    assert answer("plain") == (200, "text/plain", "plain")
    assert answer("json") == (418, "application/json", '{"a":1}')
    assert answer("stream")[::2] == (418, "ab")
    assert answer("other") == (200, "application/x-own", "\0")
    redirect = client.get("/?kind=redirect")
    assert (redirect.status, redirect.headers["location"]) == (307, "/elsewhere")
    assert client.get("/?kind=html").headers["x-own"] == "1"


# -- adapters --------------------------------------------------------------------------------------


def test_json_request_takes_any_json_by_get_and_post(client: Client) -> None:
    run_graph()

    for sent in (b"5", b'"text"', b'[1, {"a": null}]', b'{"b": 2.5}', b"true", b"null"):
        assert client.post("/", sent).json == client.get("/", sent).json == json.loads(sent)


@pytest.mark.parametrize("body", [b'{"a":', b"", b"\xff"])
def test_broken_json_that_user_code_reads_is_400_unless_it_is_caught(client: Client, body: bytes) -> None:
    @qserve.deployment
    class Reader:
        async def __call__(self, request: Request) -> Any:
            if request.query_params.get("careful"):
                try:
                    return await request.json()
                except json.JSONDecodeError:
                    return "caught"
            return await request.json()

    qserve.run(Reader.bind())

    answer = client.send("POST", "/", body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")
    assert ("it is empty. Send a JSON value" in answer.error["message"]) == (not body)
    assert client.send("POST", "/?careful=1", body).body == b"caught"


def test_typed_parameters_of_an_adapter_are_query_parameters(client: Client) -> None:
    def resolver(my_custom_param: int) -> int:
        return my_custom_param

    run_graph(resolver)

    assert client.get("/?my_custom_param=100").text == client.post("/?my_custom_param=100").text == "100"
    missing, wrong = client.get("/"), client.get("/?my_custom_param=abc")
    assert missing.status == wrong.status == 422
    assert missing.json["detail"][0]["loc"] == ["query", "my_custom_param"]
    assert missing.json["detail"][0]["type"] == "missing"
    assert wrong.json["detail"][0]["type"] == "int_parsing"


def test_a_pydantic_model_validates_the_body(client: Client) -> None:
    class ModelInput(BaseModel):
        model_input1: int
        model_input2: str

    @qserve.deployment
    def use(data: Any) -> int:
        return data.model_input1 + 10 * (data.model_input2 == "test")

    handle = run_graph(ModelInput, use)

    assert client.post("/", {"model_input1": 1, "model_input2": "test"}).text == "11"
    assert qserve.get(handle.predict.remote(ModelInput(model_input1=1, model_input2="test"))) == 11
    invalid = client.post("/", {"model_input1": "x"})
    assert invalid.status == 422
    assert [one["loc"] for one in invalid.json["detail"]] == [["body", "model_input1"], ["body", "model_input2"]]
    assert (invalid.error["code"], invalid.error["pointer"]) == ("invalid_request", "/model_input1")


def test_arrays_come_in_as_json(client: Client) -> None:
    run_graph(json_to_ndarray)
    assert client.post("/", {"array": [1, 2]}).json == [1, 2]
    assert client.post("/", {"array": [[1], [2]], "shape": [1, 2]}).json == [[1, 2]]
    assert client.post("/", {"array": [[1.9], [2.1]], "shape": [1, 2], "dtype": "int"}).text == "[[1,2]]"
    assert client.post("/", {"shape": [1]}).status == 422

    run_graph(json_to_multi_ndarray)
    sent = {"a": {"array": [1]}, "b": {"array": [3]}}
    assert client.post("/", sent).json == {"a": [1], "b": [3]}


def test_an_adapter_that_fails_is_the_users_error(client: Client) -> None:
    def resolver(request: Request) -> Any:
        raise LookupError("no such tenant")

    run_graph(resolver)
    answer = client.post("/", 1)

    assert answer.status == 500
    assert "LookupError: no such tenant" in answer.error["message"]


def test_an_http_exception_of_an_adapter_is_its_answer(client: Client) -> None:
    def adapter(request: Request) -> Any:
        if "token" not in request.headers:
            raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Bearer"})
        return 1

    run_graph(adapter)
    refused = client.get(X_Request_ID="mine")

    assert (refused.status, refused.json) == (401, {"detail": "who are you?"})
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.headers["x-request-id"] == "mine"
    assert client.get(token="t").json == 1


# -- errors ----------------------------------------------------------------------------------------


@qserve.deployment(name="Divider")
def divide(value: int) -> float:
    """Divide by what came."""
    return 1 / value


@pytest.mark.smoke
def test_an_error_of_user_code_is_500_with_its_name_and_place_but_no_traceback(
    client: Client, started: Started
) -> None:
    run_graph(json_request, divide)

    answer = client.post("/", 0, X_Request_ID="of-zero")

    assert answer.status == 500
    assert answer.error["request_id"] == answer.headers["x-request-id"] == "of-zero"
    assert answer.error["deployment"] == "Divider"
    assert "ZeroDivisionError: division by zero" in answer.error["message"]
    assert answer.error["retryable"] is False
    assert "Traceback" not in answer.text
    assert "return 1 / value" not in answer.text
    wait_until(
        lambda: "of-zero" in started.log.read_text() and "return 1 / value" in started.log.read_text(),
        description="the traceback and the request's id are in the log",
    )
    assert client.post("/", 2).json == 0.5


@pytest.mark.smoke
def test_a_deadline_that_passes_is_504_and_what_is_queued_never_runs(client: Client, tmp_path: Path) -> None:
    ran, gate = tmp_path / "ran", tmp_path / "gate"

    @qserve.deployment(max_concurrent_queries=1)
    async def slow(value: str) -> str:
        with ran.open("a") as file:
            file.write(value)
        while value == "a" and not gate.exists():
            await asyncio.sleep(0.01)
        return value

    handle = run_graph(json_request, slow, request_timeout_s=3)

    with ThreadPoolExecutor() as threads:
        first = threads.submit(client.post, "/", "a")
        wait_until(ran.exists, description="the first is running")
        second = threads.submit(client.post, "/", "b", X_Request_Timeout_Seconds="0.3")
        answers = [first.result(), second.result()]
    assert [answer.status for answer in answers] == [504, 504]
    assert {answer.error["code"] for answer in answers} == {"deadline_exceeded"}
    gate.touch()
    wait_until(lambda: client.post("/", "c").status == 200, description="it answers again")
    assert "b" not in ran.read_text()
    del handle


@pytest.mark.smoke
def test_a_full_queue_is_503_with_a_time_to_come_back(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @qserve.deployment(max_concurrent_queries=1, max_queued_requests=1)
    async def gated(value: int) -> int:
        while not gate.exists():
            await asyncio.sleep(0.005)
        return value

    handle = run_graph(json_request, gated)

    answers: list[Answer] = []
    senders = [
        threading.Thread(target=lambda number=number: answers.append(client.post("/", number))) for number in range(6)
    ]
    for sender in senders:
        sender.start()
    try:
        wait_until(lambda: len(answers) == 4, description="those beyond the queue are refused")
        refused = list(answers)
        with pytest.raises(BackPressureError):
            handle.predict.remote(7)
    finally:
        gate.touch()
        for sender in senders:
            sender.join()

    assert {answer.status for answer in refused} == {503}
    assert refused[0].error["code"] == "queue_full"
    assert refused[0].error["retryable"] is True
    assert int(refused[0].headers["retry-after"]) >= 1
    assert [answer.status for answer in answers[4:]] == [200, 200]


def test_a_full_queue_below_a_parent_deployment_is_refused_as_its_deployment_says(
    client: Client, tmp_path: Path
) -> None:
    gate, began = tmp_path / "gate", tmp_path / "began"

    @qserve.deployment(
        max_ongoing_requests=1, max_queued_requests=1, backpressure_config={"status_code": 429, "retry_after_s": 7}
    )
    class Narrow:
        async def __call__(self) -> str:
            began.touch()
            while not gate.exists():
                await asyncio.sleep(0.005)
            return "done"

    @qserve.deployment
    class Parent:
        def __init__(self, narrow: Any) -> None:
            self.narrow = narrow

        async def __call__(self, request: Request) -> str:
            return await (await self.narrow.remote())

    qserve.run(Parent.bind(Narrow.bind()))
    handle = qserve.get_deployment_handle("Narrow")
    first = handle.remote()
    wait_until(began.exists, description="the only place is taken")
    second = handle.remote()
    second.accepted(20)
    refused = client.get()
    gate.touch()

    assert refused.status == 429
    assert refused.headers["retry-after"] == "7"
    assert refused.code == "queue_full"
    assert [first.result(timeout_s=60), second.result(timeout_s=60)] == ["done", "done"]


def test_a_request_whose_client_left_while_it_was_queued_never_runs(client: Client, tmp_path: Path) -> None:
    gate, ran = tmp_path / "gate", tmp_path / "ran"

    @qserve.deployment(max_concurrent_queries=1)
    async def gated(value: str) -> str:
        with ran.open("a") as file:
            file.write(value)
        while not gate.exists():
            await asyncio.sleep(0.005)
        return value

    run_graph(json_request, gated)
    plane = api._client()
    queue = plane.registry.get("default").stream(plane.keys, "gated")

    with ThreadPoolExecutor() as threads:
        first = threads.submit(client.post, "/", "a")
        wait_until(ran.exists, description="the first is running")
        with socket.create_connection(client.address, timeout=10) as leaver:
            head = "POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\n"
            leaver.sendall(f'{head}"b"'.encode())
            wait_until(lambda: plane.client.xlen(queue) == 2, description="the request is queued")
            leaver.shutdown(socket.SHUT_WR)
            assert b" 499 " in leaver.recv(4096)  # the gateway has seen it leave
        # it does not wait for the broker to know: nobody is there to be told
        wait_until(lambda: plane.client.xlen(queue) == 1, description="the request is cancelled")
        second = threads.submit(client.post, "/", "c")
        gate.touch()
        assert [first.result().json, second.result().json] == ["a", "c"]
    assert ran.read_text() == "ac"


@pytest.mark.smoke
def test_a_new_version_takes_over_under_load_without_a_failed_request(client: Client) -> None:
    def version(text: str) -> Any:
        @qserve.deployment(name="app")
        async def app() -> str:
            await asyncio.sleep(0.005)
            return text

        return app.bind()

    qserve.run(version("one"))
    stop = threading.Event()

    seen: list[list[tuple[int, str]]] = [[] for _ in range(4)]

    def send(answers: list[tuple[int, str]]) -> None:
        while not stop.is_set():
            answer = client.get()
            answers.append((answer.status, answer.text))

    def all_have_seen(text: str) -> bool:
        return all((200, text) in answers for answers in seen)

    with ThreadPoolExecutor(4) as threads:
        senders = [threads.submit(send, answers) for answers in seen]
        try:
            wait_until(lambda: all_have_seen("one"), description="each sender has seen the first version")
            for text in ("two", "three", "four"):
                qserve.run(version(text))
                assert client.get().text == text
                wait_until(lambda text=text: all_have_seen(text), description=f"each sender has seen {text}")
        finally:
            stop.set()
        for sender in senders:
            sender.result()
    assert {answer for answers in seen for answer in answers} == {
        (200, text) for text in ("one", "two", "three", "four")
    }
