"""Applications of other frameworks as the ingress: FastAPI, Flask, ASGI and WSGI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import Body, Depends, FastAPI, File, Form, Header, HTTPException, UploadFile
from fastapi.responses import StreamingResponse
from flask import Flask
from flask import request as flask_request
from processes import Started
from pydantic import BaseModel

import qserve as serve
from qserve.http_adapters import json_to_ndarray


@pytest.fixture(autouse=True)
def client(started: Started) -> Iterator[httpx.Client]:
    """A client that sends forms and files, too."""
    with httpx.Client(base_url=started.url, timeout=20) as client:
        yield client


class Prediction(BaseModel):
    label: str
    score: float


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


def test_a_fastapi_ingress_has_dependencies_bodies_files_and_streams(client: httpx.Client) -> None:
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


def test_adapters_are_dependencies_of_a_fastapi_ingress(client: httpx.Client) -> None:
    serve.run(Api.bind(Doubler.bind()))

    assert client.post("/array", json={"array": [[1, 2, 3]]}).json() == [1, 3]
    assert client.post("/array", json={}).status_code == 422


def test_an_http_exception_below_a_fastapi_ingress_is_the_answer(client: httpx.Client) -> None:
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


def test_flask_asgi_and_wsgi_applications_are_served(client: httpx.Client) -> None:
    serve.run(Site.bind("Hello"), route_prefix="/site")
    assert client.post("/site/hello/Ada", data={"a": "1"}).json() == {"text": "Hello Ada", "form": {"a": "1"}}
    assert client.get("/site/other").status_code == 404

    for app, kind in ((bare_asgi, "asgi"), (bare_wsgi, "wsgi")):
        serve.run(serve.deployment(serve.ingress(app)(type("Bare", (), {}))).bind())
        answer = client.get("/some/where")
        assert (answer.status_code, answer.text, answer.headers["x-kind"]) == (203, "/some/where", kind)
