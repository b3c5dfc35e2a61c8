"""HTTP as programs written for Ray Serve use it: the driver's routes, plain deployments, answers, applications."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from fastapi import Body, Depends, FastAPI, File, Form, Header, HTTPException, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from flask import Flask
from flask import request as flask_request
from parity_http import Client, echo, run_graph
from processes import Started, wait_until
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request, json_to_ndarray


@pytest.fixture(autouse=True)
def client(started: Started) -> Client:
    """A client of the gateway that runs for all tests here."""
    return Client(started.url)


class Prediction(BaseModel):
    label: str
    score: float


# -- the driver's routes ---------------------------------------------------------------------------


def test_the_default_adapter_gives_the_request_over_http_and_the_value_by_handle(client: Client) -> None:
    @serve.deployment
    def kind(value: Any) -> Any:
        return "starlette!" if isinstance(value, Request) else value

    with InputNode() as value:
        handle = serve.run(DAGDriver.bind(kind.bind(value)))

    assert client.post().json() == "starlette!"
    assert serve.get(handle.predict.remote(42)) == 42


def test_over_http_a_driver_of_a_class_node_calls_it_with_what_the_adapter_gave(client: Client) -> None:
    @serve.deployment
    class Model:
        def __call__(self, value: int) -> int:
            return value + 1

    serve.run(DAGDriver.bind(Model.bind(), http_adapter=json_request))

    assert client.post("/", json=41).json() == 42


def test_deep_routes_and_method_routes_answer_get_and_post(client: Client) -> None:
    @serve.deployment
    class Model:
        def forward(self) -> str:
            return "forward"

    model = Model.bind()
    routes = {"/my_D1": model.forward.bind(), "/hello/world": model.forward.bind()}
    serve.run(DAGDriver.options(route_prefix="/f").bind(routes, http_adapter=json_request))

    for path in ("/f/my_D1", "/f/hello/world"):
        assert client.get(path, json=1).json() == client.post(path, json=1).json() == "forward"
    assert client.get("/f").status_code == client.get("/f/other").status_code == 404
    assert client.send("PUT", "/f/my_D1").json()["detail"] == "Method Not Allowed"


def test_a_slash_too_many_leads_to_the_route_without_it(client: Client) -> None:
    with InputNode() as value:
        serve.run(DAGDriver.bind({"/one": echo.bind(value), "/two/": echo.bind(value)}, http_adapter=json_request))

    away = client.post("/one/?q=1", json=5)
    assert (away.status_code, away.headers["location"]) == (307, f"{client.url}/one?q=1")
    assert client.post("/one/", json=5, follow_redirects=True).json() == 5
    assert client.post("/two", json=6, follow_redirects=True).json() == 6
    assert client.post("/three/", json=5).status_code == 404


def test_routes_may_have_parameters_in_their_path(client: Client) -> None:
    @serve.deployment
    def show(given: Any) -> Any:
        return given

    async def adapter(request: Request, name: str, number: int = 0) -> Any:
        return {"name": name, "number": number, "path": dict(request.path_params)}

    with InputNode() as value:
        shown = show.bind(value)
        routes = {"/users/me": echo.bind("me"), "/users/{name}": shown, "/n/{name}/{number:int}": shown}
        handle = serve.run(DAGDriver.options(route_prefix="/api").bind(routes, http_adapter=adapter))

    assert client.get("/api/users/me?name=x").json() == "me"
    assert client.post("/api/users/Ada%20L?number=2").json() == {
        "name": "Ada L", "number": 2, "path": {"name": "Ada L"},
    }  # fmt: skip
    assert client.get("/api/n/x/7").json() == {"name": "x", "number": 7, "path": {"name": "x", "number": 7}}
    assert client.get("/api/n/x/y").status_code == client.get("/api/users/a/b").status_code == 404
    assert serve.get(handle.predict_with_route.remote("/users/{name}", 1)) == 1


def test_a_request_that_is_passed_on_keeps_its_path_parameters(client: Client) -> None:
    @serve.deployment
    def inner(request: Request) -> str:
        return str(request.path_params["rest"])

    with InputNode() as request:
        serve.run(DAGDriver.bind({"/files/{rest:path}": echo.bind(inner.bind(request))}))

    assert client.get("/files/a/b.txt").json() == "a/b.txt"


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("got me", "got me"),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        ({"scores": [np.float32(0.5), np.int64(3)], "flag": np.bool_(True)}, {"scores": [0.5, 3], "flag": True}),
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
        (Prediction(label="cat", score=0.5), {"label": "cat", "score": 0.5}),
        ({"all": [Prediction(label="a", score=1)]}, {"all": [{"label": "a", "score": 1.0}]}),
        ((1, {"k": None}), [1, {"k": None}]),
        (b"bytes", "bytes"),
    ],
    ids=["str", "array", "scalars", "frame", "model", "nested model", "tuple", "bytes"],
)
def test_a_drivers_answer_is_the_json_of_any_result(client: Client, result: Any, expected: Any) -> None:
    @serve.deployment
    def give(ignored: Any) -> Any:
        return result

    run_graph(None, give)
    answer = client.get()

    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == expected


# -- requests to a plain deployment ----------------------------------------------------------------


def test_a_deployment_takes_the_request_whatever_its_parameter_is_called(client: Client) -> None:
    @serve.deployment
    def by_any_name(starlette_request_of_mine: dict[str, int]) -> str:
        return type(starlette_request_of_mine).__name__

    serve.run(by_any_name.bind())

    assert client.get().text == "Request"


def test_json_text_and_forms_are_read_with_or_without_a_content_type(client: Client) -> None:
    @serve.deployment
    async def read(request: Request) -> Any:
        if request.query_params["as"] == "form":
            return dict(await request.form())
        return await request.json() if request.query_params["as"] == "json" else (await request.body()).decode()

    serve.run(read.bind())

    assert client.post("/?as=json", json={"a": 1}).json() == {"a": 1}
    assert client.post("/?as=json", content=b'{"a": 1}').json() == {"a": 1}
    assert client.post("/?as=json", content=b"5", headers={"content-type": "text/plain"}).json() == 5
    assert client.post("/?as=form", data={"x": "1", "y": "z"}).json() == {"x": "1", "y": "z"}
    assert client.post("/?as=text", content="ünï".encode()).text == "ünï"
    assert client.get("/?as=text").text == ""


def test_query_parameters_headers_and_the_method_reach_the_code(client: Client) -> None:
    @serve.deployment
    def show(request: Request) -> Any:
        return {
            "method": request.method,
            "name": request.query_params.get("name", "nobody"),
            "all": request.query_params.getlist("n"),
            "header": request.headers.get("x-user"),
            "cookie": request.cookies.get("session"),
            "path": request.url.path,
        }

    serve.run(show.bind(), route_prefix="/show")
    answer = client.send(
        "PATCH", "/show/it", params={"n": [1, 2]}, headers={"X-User": "ada", "cookie": "session=s1"}
    ).json()

    assert answer == {
        "method": "PATCH", "name": "nobody", "all": ["1", "2"], "header": "ada", "cookie": "s1", "path": "/show/it",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_a_plain_deployment_answers_every_method(client: Client, method: str) -> None:
    @serve.deployment
    def name_of(request: Request) -> str:
        return request.method

    serve.run(name_of.bind())

    assert client.send(method).text == method


def test_bodies_of_640_kib_arrive_whole_through_adapters_and_handles(client: Client) -> None:
    @serve.deployment
    def size(text: str) -> int:
        return len(text)

    @serve.deployment
    class Front:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, request: Request) -> int:
            return await (await self.inner.remote((await request.body()).decode()))

    serve.run(Front.bind(size.bind()))
    assert client.post("/", content=b"x" * 640 * 1024).json() == 640 * 1024

    run_graph(json_request, size)
    assert client.post("/", json="y" * 640 * 1024).json() == 640 * 1024


def test_a_redirect_by_path_leads_to_the_same_deployment(client: Client) -> None:
    @serve.deployment
    def hops(request: Request) -> Any:
        if request.url.path == "/hops/first":
            return RedirectResponse(url="/hops/second")
        return {"at": request.url.path, "root": request.scope["root_path"]}

    serve.run(hops.bind(), route_prefix="/hops")

    assert client.get("/hops/first").status_code == 307
    assert client.get("/hops/first", follow_redirects=True).json() == {"at": "/hops/second", "root": "/hops"}


@pytest.mark.parametrize(
    ("result", "text", "kind"),
    [
        ("plain", "plain", "text/plain; charset=utf-8"),
        (b"raw", "raw", "text/plain"),
        (None, "", "text/plain"),
        (1, "1", "application/json"),
        ([1, 2], "[1, 2]", "application/json"),
        ({"a": 1, "b": None}, '{"a": 1, "b": null}', "application/json"),
        (np.array([1, 2]), "[1, 2]", "application/json"),
        (Prediction(label="cat", score=1), '{"label": "cat", "score": 1.0}', "application/json"),
    ],
    ids=["str", "bytes", "none", "int", "list", "dict", "array", "model"],
)
def test_a_plain_answer_is_text_for_text_and_json_for_the_rest(
    client: Client, result: Any, text: str, kind: str
) -> None:
    @serve.deployment
    def give() -> Any:
        return result

    serve.run(give.bind())
    answer = client.get()

    assert (answer.status_code, answer.text) == (200, text)
    assert answer.headers["content-type"].startswith(kind)


def test_responses_keep_status_headers_and_cookies(client: Client) -> None:
    @serve.deployment
    def respond(request: Request) -> Response:
        if request.query_params["kind"] == "json":
            return JSONResponse({"a": 1}, status_code=201, headers={"x-own": "1"})
        response = PlainTextResponse("baked")
        response.set_cookie("one", "1")
        response.set_cookie("two", "2")
        return response

    serve.run(respond.bind())

    made = client.get("/?kind=json")
    assert (made.status_code, made.json(), made.headers["x-own"]) == (201, {"a": 1}, "1")
    assert dict(client.get("/?kind=cookies").cookies) == {"one": "1", "two": "2"}


# -- streams ---------------------------------------------------------------------------------------


def test_a_streaming_response_arrives_piece_by_piece_before_it_has_ended(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @serve.deployment
    class Stream:
        async def words(self) -> AsyncIterator[str]:
            yield "first "
            while not gate.exists():
                await asyncio.sleep(0.005)
            yield "second"

        def __call__(self, request: Request) -> StreamingResponse:
            return StreamingResponse(self.words(), media_type="text/plain", status_code=202)

    serve.run(Stream.bind())

    with httpx.stream("GET", client.url, timeout=20) as answer:
        pieces = answer.iter_text()
        assert (answer.status_code, next(pieces)) == (202, "first ")
        gate.touch()
        assert "".join(pieces) == "second"


def test_a_generator_is_read_by_handle_and_sent_over_http(client: Client) -> None:
    @serve.deployment
    class Count:
        def up(self, stop: int) -> Iterator[int]:
            yield from range(stop)

        def __call__(self, request: Request) -> Any:
            return StreamingResponse(f"{n}\n" for n in self.up(int(request.query_params["stop"])))

    @serve.deployment
    class Sum:
        def __init__(self, counter: Any) -> None:
            self.counter = counter.options(stream=True)

        async def __call__(self, request: Request) -> int:
            return sum([n async for n in self.counter.up.remote(10)])

    handle = serve.run(Count.bind())
    assert client.get("/?stop=3").text == "0\n1\n2\n"
    assert list(handle.options(stream=True).up.remote(4)) == [0, 1, 2, 3]

    serve.run(Sum.bind(Count.bind()))
    assert client.get().json() == 45


# -- errors ----------------------------------------------------------------------------------------


def raise_404(request: Request) -> Any:
    raise HTTPException(status_code=404, detail="no such item")


def test_an_http_exception_of_an_adapter_is_its_answer(client: Client) -> None:
    def adapter(request: Request) -> Any:
        if "token" not in request.headers:
            raise StarletteHTTPException(401, "who are you?", headers={"WWW-Authenticate": "Bearer"})
        return 1

    run_graph(adapter)
    refused = client.get("/", headers={"x-request-id": "mine"})

    assert (refused.status_code, refused.json()) == (401, {"detail": "who are you?"})
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.headers["x-request-id"] == "mine"
    assert client.get("/", headers={"token": "t"}).json() == 1


def test_an_http_exception_of_a_plain_deployment_is_its_answer(client: Client) -> None:
    serve.run(serve.deployment(raise_404).bind())

    answer = client.get()

    assert (answer.status_code, answer.json()) == (404, {"detail": "no such item"})


def test_an_http_exception_deep_in_a_graph_is_the_answer(client: Client) -> None:
    class Teapot(HTTPException):
        def __init__(self) -> None:
            super().__init__(418, {"short": True})

    @serve.deployment
    def boil(value: Any) -> Any:
        raise Teapot

    @serve.deployment
    class Front:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, value: Any) -> Any:
            return await (await self.inner.remote(value))

    serve.run(DAGDriver.bind(Front.bind(boil.bind()), http_adapter=json_request))

    assert client.post("/", json=1).json() == {"detail": {"short": True}}


def test_an_error_of_user_code_is_500_with_its_type_and_without_its_traceback(client: Client) -> None:
    @serve.deployment
    def fail(request: Request) -> Any:
        raise LookupError("no such thing")

    serve.run(fail.bind())
    answer = client.get()

    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["deployment"], error["message"]) == (
        "LookupError", "fail", "LookupError: no such thing",
    )  # fmt: skip
    assert "Traceback" not in answer.text


def test_no_route_is_404_in_rays_words_and_the_routes_are_listed(client: Client) -> None:
    serve.run(echo.bind(1), route_prefix="/there")

    assert client.get("/x").json()["error"]["message"].startswith("Path '/x' not found. Please ping http://")
    assert client.get("/-/routes").json() == {"/there": "echo"}
    assert client.get("/-/healthz").text == "success"


def test_a_response_that_is_too_long_to_be_held_whole_is_an_error_that_says_so(client: Client) -> None:
    @serve.deployment
    def much() -> str:
        return "x" * (10 * 1024 * 1024 + 1)

    serve.run(much.bind())
    answer = client.get()

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "result_too_large"
    assert "StreamingResponse" in answer.json()["error"]["message"]


# -- applications of one's own ---------------------------------------------------------------------

api = FastAPI()


def tenant_of(x_tenant: str = Header()) -> str:
    if x_tenant == "unknown":
        raise HTTPException(403, "unknown tenant")
    return x_tenant


@serve.deployment
class Doubler:
    def double(self, value: float) -> float:
        if value < 0:
            raise HTTPException(status_code=422, detail="too small")
        return 2 * value


@serve.deployment
@serve.ingress(api)
class Api:
    def __init__(self, doubler: Any) -> None:
        self.doubler = doubler

    @api.get("/double/{value}")
    async def double(self, value: float, tenant: str = Depends(tenant_of)) -> dict[str, Any]:
        return {"tenant": tenant, "value": await (await self.doubler.double.remote(value))}

    @api.post("/predict", response_model=Prediction)
    def predict(self, prediction: Prediction, scale: float = 1.0) -> Any:
        return Prediction(label=prediction.label, score=prediction.score * scale)

    @api.post("/array")
    def array(self, values: Any = Depends(json_to_ndarray)) -> list[int]:
        return list(values.shape)

    @api.post("/upload")
    async def upload(self, file: UploadFile = File(), note: str = Form("none")) -> list[Any]:
        return [file.filename, len(await file.read()), note]

    @api.post("/embed")
    def embed(self, value: int = Body(embed=True)) -> int:
        return value

    @api.get("/stream")
    def stream(self) -> StreamingResponse:
        return StreamingResponse(str(n) for n in range(3))


def test_a_fastapi_ingress_has_dependencies_bodies_files_and_streams(client: Client) -> None:
    serve.run(Api.bind(Doubler.bind()), route_prefix="/api")

    got = client.get("/api/double/2.5", headers={"x-tenant": "acme"})
    assert got.json() == {"tenant": "acme", "value": 5.0}
    assert client.get("/api/double/1").status_code == 422
    refused = client.get("/api/double/1", headers={"x-tenant": "unknown"})
    assert (refused.status_code, refused.json()) == (403, {"detail": "unknown tenant"})
    assert client.post("/api/predict?scale=2", json={"label": "a", "score": 1}).json() == {"label": "a", "score": 2.0}
    assert client.post("/api/predict", json={"label": "a"}).json()["detail"][0]["loc"] == ["body", "score"]
    assert client.post("/api/upload", files={"file": ("f.bin", b"abc")}, data={"note": "n"}).json() == [
        "f.bin", 3, "n",
    ]  # fmt: skip
    assert client.post("/api/embed", json={"value": 3}).json() == 3
    assert client.get("/api/stream").text == "012"
    assert client.get("/api/nothing").json() == {"detail": "Not Found"}
    assert "/double/{value}" in client.get("/api/openapi.json").json()["paths"]


def test_adapters_are_dependencies_of_a_fastapi_ingress(client: Client) -> None:
    serve.run(Api.bind(Doubler.bind()))

    assert client.post("/array", json={"array": [[1, 2, 3]]}).json() == [1, 3]
    assert client.post("/array", json={}).status_code == 422


def test_an_http_exception_below_a_fastapi_ingress_is_the_answer(client: Client) -> None:
    serve.run(Api.bind(Doubler.bind()))

    answer = client.get("/double/-1", headers={"x-tenant": "acme"})

    assert (answer.status_code, answer.json()) == (422, {"detail": "too small"})


flask_app = Flask(__name__)


@serve.deployment
@serve.ingress(flask_app)
class Site:
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    @flask_app.route("/hello/<name>", methods=["GET", "POST"])
    def hello(self, name: str) -> Any:
        return {"text": f"{self.greeting} {name}", "form": dict(flask_request.form)}


async def bare_asgi(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 203, "headers": [(b"x-kind", b"asgi")]})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def bare_wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("203 Said By Others", [("X-Kind", "wsgi")])
    return [environ["PATH_INFO"].encode()]


def test_flask_asgi_and_wsgi_applications_are_served(client: Client) -> None:
    serve.run(Site.bind("Hello"), route_prefix="/site")
    assert client.post("/site/hello/Ada", data={"a": "1"}).json() == {"text": "Hello Ada", "form": {"a": "1"}}
    assert client.get("/site/other").status_code == 404

    for app, kind in ((bare_asgi, "asgi"), (bare_wsgi, "wsgi")):
        serve.run(serve.deployment(serve.ingress(app)(type("Bare", (), {}))).bind())
        answer = client.get("/some/where")
        assert (answer.status_code, answer.text, answer.headers["x-kind"]) == (203, "/some/where", kind)


# -- when there is too much ------------------------------------------------------------------------


def test_a_full_queue_below_a_parent_deployment_is_503_with_a_time_to_come_back(client: Client, tmp_path: Path) -> None:
    gate, began = tmp_path / "gate", tmp_path / "began"

    @serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
    class Narrow:
        async def __call__(self) -> str:
            began.touch()
            while not gate.exists():
                await asyncio.sleep(0.005)
            return "done"

    @serve.deployment
    class Parent:
        def __init__(self, narrow: Any) -> None:
            self.narrow = narrow

        async def __call__(self, request: Request) -> str:
            return await (await self.narrow.remote())

    serve.run(Parent.bind(Narrow.bind()))
    handle = serve.get_deployment_handle("Narrow")
    first = handle.remote()
    wait_until(began.exists, description="the only place is taken")
    second = handle.remote()
    refused = client.get()
    gate.touch()

    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert [first.result(timeout_s=10), second.result(timeout_s=10)] == ["done", "done"]


def test_an_answer_of_user_code_is_not_cut_short_by_json_escapes(client: Client) -> None:
    text = 'é"\\\n\u2028' * 1000
    run_graph(json_request)

    assert client.post("/", json=text).json() == text
    assert json.loads(client.post("/", json={"k": text}).content) == {"k": text}
