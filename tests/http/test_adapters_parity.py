"""HTTP adapters as programs written for Ray Serve use them: typed parameters, bodies, forms, files, the ready ones."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import pandas as pd
import pytest
from fastapi import Cookie, Depends, File, Form, Header, Path, Query, UploadFile
from parity_http import Client, echo, run_graph
from processes import Started
from pydantic import BaseModel, Field
from starlette.requests import Request

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import (
    pandas_read_json,
    starlette_request,
)


@pytest.fixture(autouse=True)
def client(started: Started) -> Client:
    """A client of the gateway that runs for all tests here."""
    return Client(started.url)


class Part(BaseModel):
    name: str
    count: int = 1


class Order(BaseModel):
    parts: list[Part]
    note: Optional[str] = None  # noqa: UP045  (as older programs write it)
    ratio: float = Field(default=0.5, ge=0, le=1)


# -- typed parameters ------------------------------------------------------------------------------


def test_lists_and_constraints_of_the_query_are_fastapis(client: Client) -> None:
    def resolver(
        ids: Annotated[list[int], Query()],
        limit: int = Query(10, ge=1, le=100),
        name: str = Query("x", alias="the-name"),
    ) -> list[Any]:
        return [ids, limit, name]

    run_graph(resolver)

    assert client.get("/?ids=1&ids=2&the-name=n").json() == [[1, 2], 10, "n"]
    refused = client.get("/?ids=1&limit=0").json()["detail"]
    assert (refused[0]["loc"], refused[0]["type"]) == (["query", "limit"], "greater_than_equal")


def test_headers_and_cookies_are_parameters(client: Client) -> None:
    def resolver(
        user_agent: Annotated[str, Header()], x_token: str = Header(), session: str = Cookie("none")
    ) -> list[str]:
        return [user_agent, x_token, session]

    run_graph(resolver)
    headers = {"user-agent": "me", "x-token": "t"}

    assert client.get("/", headers=headers).json() == ["me", "t", "none"]
    assert client.get("/", headers={**headers, "cookie": "session=s"}).json() == ["me", "t", "s"]
    assert client.get("/", headers={"user-agent": "me"}).json()["detail"][0]["loc"] == ["header", "x-token"]


def test_path_parameters_of_a_route_are_parameters(client: Client) -> None:
    def resolver(item: int, name: str = Path(), q: str = "none") -> list[Any]:
        return [item, name, q]

    with InputNode() as value:
        serve.run(DAGDriver.bind({"/items/{item}/{name}": echo.bind(value)}, http_adapter=resolver))

    assert client.get("/items/3/ada?q=x").json() == [3, "ada", "x"]
    refused = client.get("/items/three/ada")
    assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["path", "item"])


def test_dependencies_are_resolved_with_dependencies_of_their_own(client: Client) -> None:
    def page(request: Request, limit: int = 10) -> dict[str, Any]:
        return {"limit": limit, "path": request.url.path}

    async def user(x_user: Annotated[str, Header()], page: dict[str, Any] = Depends(page)) -> dict[str, Any]:
        return {"user": x_user, **page}

    def resolver(who: dict[str, Any] = Depends(user), detail: bool = False) -> dict[str, Any]:
        return {**who, "detail": detail}

    run_graph(resolver)

    assert client.get("/p?limit=5", headers={"x-user": "ada"}).json() == {
        "user": "ada", "limit": 5, "path": "/p", "detail": False,
    }  # fmt: skip
    assert client.get("/?limit=x").status_code == 422


# -- bodies ----------------------------------------------------------------------------------------


def test_a_pydantic_class_is_an_adapter_with_or_without_a_content_type(client: Client) -> None:
    @serve.deployment
    def total(order: Any) -> list[Any]:
        return [sum(part.count for part in order.parts), order.note, order.ratio, type(order).__name__]

    handle = run_graph(Order, total)
    sent = {"parts": [{"name": "a"}, {"name": "b", "count": 2}], "note": "n"}

    assert client.post("/", json=sent).json() == [3, "n", 0.5, "Order"]
    assert client.get("/", json=sent).json() == [3, "n", 0.5, "Order"]
    assert client.post("/", content=b'{"parts": []}').json() == [0, None, 0.5, "Order"]
    assert serve.get(handle.predict.remote(Order(parts=[Part(name="a")]))) == [1, None, 0.5, "Order"]
    refused = client.post("/", json={"parts": [{"count": "x"}], "ratio": 2})
    assert refused.status_code == 422
    assert [one["loc"] for one in refused.json()["detail"]] == [
        ["body", "parts", 0, "name"], ["body", "parts", 0, "count"], ["body", "ratio"],
    ]  # fmt: skip


# -- forms and files -------------------------------------------------------------------------------


def test_form_fields_come_from_both_kinds_of_forms(client: Client) -> None:
    def resolver(name: str = Form(), age: int = Form(0), tags: list[str] = Form([])) -> list[Any]:
        return [name, age, tags]

    run_graph(resolver)

    assert client.post("/", data={"name": "Ada", "age": "36", "tags": ["a", "b"]}).json() == ["Ada", 36, ["a", "b"]]
    as_multipart = {"name": (None, "Ada"), "age": (None, "1")}
    assert client.post("/", files=as_multipart).json() == ["Ada", 1, []]
    assert client.post("/", data={"age": "1"}).json()["detail"][0]["loc"] == ["body", "name"]


def test_files_come_as_bytes_or_as_uploads_beside_fields(client: Client) -> None:
    async def resolver(raw: bytes = File(), upload: UploadFile = File(), note: str = Form("")) -> list[Any]:
        return [len(raw), upload.filename, upload.content_type, (await upload.read()).decode(), note]

    run_graph(resolver)
    files = {"raw": b"\x00" * 700_000, "upload": ("a.txt", b"hello", "text/plain")}

    assert client.post("/", files=files, data={"note": "n"}).json() == [700_000, "a.txt", "text/plain", "hello", "n"]
    assert client.post("/", files={"raw": b"x"}).json()["detail"][0]["loc"] == ["body", "upload"]


def test_an_adapter_may_read_the_form_of_the_request_itself(client: Client) -> None:
    async def resolver(request: Request) -> list[Any]:
        form = await request.form()
        upload = form["file"]
        return [upload.filename, (await upload.read()).decode(), form["k"]]

    run_graph(resolver)

    assert client.post("/", files={"file": ("f", b"data")}, data={"k": "v"}).json() == ["f", "data", "v"]


# -- the adapters that come along ------------------------------------------------------------------


def test_starlette_request_gives_the_request(client: Client) -> None:
    @serve.deployment
    async def read(request: Request) -> list[Any]:
        return [request.method, await request.json(), request.query_params["q"]]

    run_graph(starlette_request, read)

    assert client.post("/?q=1", json=[1]).json() == ["POST", [1], "1"]


def test_pandas_read_json_takes_its_options_from_the_query(client: Client) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})

    @serve.deployment
    def describe_frame(given: Any) -> Any:
        return {"type": type(given).__name__, "equal": given.to_dict("list"), "frame": given}

    run_graph(pandas_read_json, describe_frame)
    orients: tuple[Any, ...] = (None, "index", "records", "split")
    answers = {
        orient: client.post("/", content=frame.to_json(orient=orient), params=orient and {"orient": orient}).json()
        for orient in orients
    }

    expected = {
        "type": "DataFrame",
        "equal": {"a": [1, 2], "b": [0.5, 1.5]},
        "frame": [{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}],
    }
    assert answers == dict.fromkeys(orients, expected)


def test_adapters_may_be_async_or_named_by_either_import_path(client: Client) -> None:
    async def later(request: Request) -> Any:
        return [await request.json()]

    run_graph(later)
    assert client.post("/", json=1).json() == [1]
    for named in ("qserve.http_adapters.json_to_ndarray", "qserve.http_adapters:json_to_ndarray"):
        run_graph(named)
        assert client.post("/", json={"array": [1]}).json() == [1.0]
