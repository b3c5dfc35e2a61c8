"""HTTP as programs written for Ray Serve use it: the driver's routes, plain deployments, answers, applications."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Body, Depends, FastAPI, File, Form, Header, HTTPException, UploadFile
from fastapi.responses import StreamingResponse
from flask import Flask
from flask import request as flask_request
from parity_http import Client, echo, run_graph
from processes import Started, wait_until
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request

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


# -- requests to a plain deployment ----------------------------------------------------------------


def test_a_deployment_takes_the_request_whatever_its_parameter_is_called(client: Client) -> None:
    @serve.deployment
    def by_any_name(starlette_request_of_mine: dict[str, int]) -> str:
        return type(starlette_request_of_mine).__name__

    serve.run(by_any_name.bind())

    assert client.get().text == "Request"


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


# -- errors ----------------------------------------------------------------------------------------


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
