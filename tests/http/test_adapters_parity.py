"""HTTP adapters as programs written for Ray Serve use them: typed parameters, bodies, forms, files, the ready ones."""

from __future__ import annotations

import asyncio
import io
import json
from enum import Enum
from typing import Annotated, Any, Optional

import numpy as np
import pandas as pd
import pytest
from fastapi import Body, Cookie, Depends, File, Form, Header, Path, Query, UploadFile
from parity_http import Client, echo, run_graph
from PIL import Image
from processes import Started
from pydantic import BaseModel, Field
from starlette.requests import Request

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import (
    NdArray,
    image_to_ndarray,
    json_request,
    json_to_multi_ndarray,
    json_to_ndarray,
    pandas_read_json,
    require_packages,
    starlette_request,
)


@pytest.fixture(autouse=True)
def client(started: Started) -> Client:
    """A client of the gateway that runs for all tests here."""
    return Client(started.url)


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Part(BaseModel):
    name: str
    count: int = 1


class Order(BaseModel):
    parts: list[Part]
    note: Optional[str] = None  # noqa: UP045  (as older programs write it)
    ratio: float = Field(default=0.5, ge=0, le=1)


# -- typed parameters ------------------------------------------------------------------------------


def test_a_typed_parameter_is_a_converted_query_parameter_by_get_and_post(client: Client) -> None:
    def resolver(my_custom_param: int) -> int:
        return my_custom_param

    run_graph(resolver)

    assert client.get("/?my_custom_param=100").json() == client.post("/?my_custom_param=100").json() == 100
    assert client.get("/?my_custom_param=1").text == "1"
    missing = client.get("/")
    assert missing.status_code == 422
    assert missing.json()["detail"][0]["loc"] == ["query", "my_custom_param"]


def test_several_parameters_of_every_plain_type_with_defaults(client: Client) -> None:
    def resolver(a: int, b: str, c: float = 1.5, flag: bool = False, size: Size = Size.SMALL) -> list[Any]:
        return [a, b, c, flag, size.value]

    run_graph(resolver)

    assert client.get("/", params={"a": 1, "b": "x"}).json() == [1, "x", 1.5, False, "small"]
    everything = {"a": 1, "b": "x", "c": "2", "flag": "on", "size": "large"}
    assert client.get("/", params=everything).json() == [1, "x", 2.0, True, "large"]
    assert client.get("/", params={**everything, "size": "huge"}).json()["detail"][0]["type"] == "enum"


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


def test_a_body_parameter_stands_beside_query_parameters(client: Client) -> None:
    def resolver(order: Order, urgent: bool = False) -> list[Any]:
        return [len(order.parts), urgent]

    run_graph(resolver)

    assert client.post("/?urgent=1", json={"parts": [{"name": "a"}]}).json() == [1, True]
    assert client.post("/").json()["detail"][0] == {
        "type": "missing", "loc": ["body"], "msg": "Field required", "input": None,
    }  # fmt: skip


def test_several_body_parameters_have_keys_of_their_own(client: Client) -> None:
    def resolver(part: Part, numbers: list[int], factor: Annotated[int, Body()] = 1) -> list[Any]:
        return [part.name, sum(numbers) * factor]

    run_graph(resolver)

    assert client.post("/", json={"part": {"name": "a"}, "numbers": [1, 2], "factor": 3}).json() == ["a", 9]
    assert client.post("/", json={"numbers": []}).json()["detail"][0]["loc"] == ["body", "part"]


def test_lists_and_dicts_are_bodies(client: Client) -> None:
    def rows(rows: list[dict[str, float]]) -> float:
        return sum(sum(row.values()) for row in rows)

    run_graph(rows)

    assert client.post("/", json=[{"a": 1, "b": 2}, {"c": 0.5}]).json() == 3.5


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


@pytest.mark.parametrize("sent", [5, "text", [1, {"a": None}], {"b": 2.5}, True, None])
def test_json_request_gives_json_of_any_type(client: Client, sent: Any) -> None:
    run_graph(json_request)

    content = json.dumps(sent)
    assert client.post("/", content=content).json() == client.get("/", content=content).json() == sent


def test_starlette_request_gives_the_request(client: Client) -> None:
    @serve.deployment
    async def read(request: Request) -> list[Any]:
        return [request.method, await request.json(), request.query_params["q"]]

    run_graph(starlette_request, read)

    assert client.post("/?q=1", json=[1]).json() == ["POST", [1], "1"]


@serve.deployment
def describe(array: Any) -> list[Any]:
    """The input as its type, its values and its kind of numbers."""
    return [type(array).__name__, array, str(array.dtype), list(array.shape)]


def test_json_to_ndarray_reshapes_and_casts(client: Client) -> None:
    run_graph(json_to_ndarray, describe)

    assert client.post("/", json={"array": [1, 2]}).json() == ["ndarray", [1.0, 2.0], "float64", [2]]
    reshaped = client.post("/", json={"array": [[1], [2]], "shape": [1, 2]}).json()
    assert reshaped == ["ndarray", [[1.0, 2.0]], "float64", [1, 2]]
    cast = client.post("/", json={"array": [[1.9], [2.1]], "shape": [1, 2], "dtype": "int"}).json()
    assert cast == ["ndarray", [[1, 2]], "int64", [1, 2]]
    assert client.post("/", json={"array": [[[[0.5]]]]}).json()[3] == [1, 1, 1, 1]
    for wrong in ({}, {"array": "x"}, {"array": [1], "shape": ["a"]}):
        assert client.post("/", json=wrong).status_code == 422
    assert client.post("/", json={"array": [1, 2, 3], "shape": [2, 2]}).status_code == 500


def test_json_to_multi_ndarray_gives_arrays_by_name(client: Client) -> None:
    @serve.deployment
    def add(arrays: Any) -> Any:
        return arrays["a"] + arrays["b"]

    run_graph(json_to_multi_ndarray, add)

    assert client.post("/", json={"a": {"array": [1, 2]}, "b": {"array": [3, 4]}}).json() == [4.0, 6.0]


def test_array_adapters_can_be_called_directly() -> None:
    assert json_to_ndarray(NdArray(array=[[1.9], [2.1]], shape=[1, 2], dtype="int")).tolist() == [[1, 2]]
    arrays = json_to_multi_ndarray({"a": NdArray(array=[1]), "b": NdArray(array=[3])})
    assert {name: array.tolist() for name, array in arrays.items()} == {"a": [1.0], "b": [3.0]}


def test_image_to_ndarray_takes_a_png_in_the_form_field_img(client: Client) -> None:
    pixels = np.random.default_rng(7).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")

    @serve.deployment
    def look(array: Any) -> list[Any]:
        return [str(array.dtype), list(array.shape), array]

    run_graph(image_to_ndarray, look)
    kind, shape, values = client.post("/", files={"img": ("p.png", png.getvalue(), "image/png")}).json()

    assert (kind, shape) == ("uint8", [100, 100, 3])
    np.testing.assert_array_equal(np.array(values), pixels)
    np.testing.assert_array_equal(image_to_ndarray(png.getvalue()), pixels)
    assert client.post("/", files={"other": b"x"}).json()["detail"][0]["loc"] == ["body", "img"]


@pytest.mark.parametrize("orient", [None, "index", "records", "split"])
def test_pandas_read_json_takes_its_options_from_the_query(client: Client, orient: str | None) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})

    @serve.deployment
    def describe_frame(given: Any) -> Any:
        return {"type": type(given).__name__, "equal": given.to_dict("list"), "frame": given}

    run_graph(pandas_read_json, describe_frame)
    options = {} if orient is None else {"orient": orient}
    answer = client.post("/", content=frame.to_json(orient=orient), params=options).json()

    assert answer == {
        "type": "DataFrame",
        "equal": {"a": [1, 2], "b": [0.5, 1.5]},
        "frame": [{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}],
    }


def test_a_missing_package_is_an_import_error_when_the_adapter_is_called() -> None:
    @require_packages(["missing_package"])
    def adapt(request: Request) -> None: ...

    @require_packages(["missing_package"])
    async def adapt_later(request: Request) -> None: ...

    with pytest.raises(ImportError, match=r"requires packages \['missing_package'\] to run but \['missing_package'\]"):
        adapt(None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match="pip install"):
        asyncio.run(adapt_later(None))  # type: ignore[arg-type]


def test_adapters_may_be_async_or_named_by_either_import_path(client: Client) -> None:
    async def later(request: Request) -> Any:
        return [await request.json()]

    run_graph(later)
    assert client.post("/", json=1).json() == [1]
    for named in ("qserve.http_adapters.json_to_ndarray", "qserve.http_adapters:json_to_ndarray"):
        run_graph(named)
        assert client.post("/", json={"array": [1]}).json() == [1.0]


def test_input_schema_is_the_older_name_of_the_adapter(client: Client) -> None:
    with InputNode() as value:
        serve.run(DAGDriver.bind(echo.bind(value), input_schema=json_to_ndarray))

    assert client.post("/", json={"array": [2]}).json() == [2.0]
