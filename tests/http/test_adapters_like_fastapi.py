"""Adapters against FastAPI: the same function as an adapter and as a dependency of a FastAPI route."""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Optional
from urllib.parse import urlencode

import httpx
import pydantic
import pytest
from fastapi import Body, Cookie, Depends, FastAPI, File, Form, Header, Query, UploadFile

from qserve.http.adapter import make_adapter
from qserve.http.message import HttpMessage
from qserve.http.rejection import RequestValidationError, validation_response
from qserve.http.request import to_starlette
from qserve.http_adapters import image_to_ndarray, json_to_ndarray

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
HTTPX_HEADERS = dict(httpx.Client().headers)
MULTIPART = "multipart/form-data; boundary=B"


class Item(pydantic.BaseModel):
    name: str
    price: float = pydantic.Field(gt=0)
    tags: list[str] = []


class Filter(pydantic.BaseModel, extra="forbid"):
    limit: int = pydantic.Field(10, le=100)
    order: Optional[str] = None  # noqa: UP045  (as older programs write it)
    tags: list[str] = []


class Sent(pydantic.BaseModel):
    x_token: str
    accept: str = "none"


class Session(pydantic.BaseModel):
    session: str


class Colour(enum.Enum):
    RED = "red"


def scalars(n: int, flag: bool = False, colour: Colour = Colour.RED, names: list[str] = Query([])) -> list[Any]:
    return [n, flag, colour.value, names]


def whole(item: Item) -> list[Any]:
    return [item.name, item.price, item.tags]


def optional(item: Item | None = None, n: int = 0) -> list[Any]:
    return [item and item.name, n]


def two(item: Item, times: int = Body(), note: str | None = Body(None)) -> list[Any]:
    return [item.name, times, note]


def embedded(item: Item = Body(embed=True)) -> str:
    return item.name


def anything(document: dict[str, list[int]] | list[int]) -> Any:
    return document


def query_model(q: Annotated[Filter, Query()]) -> Any:
    return q.model_dump()


def header_model(h: Annotated[Sent, Header()]) -> Any:
    return h.x_token


def cookie_model(c: Annotated[Session, Cookie()]) -> Any:
    return c.session


def form_model(f: Annotated[Filter, Form()]) -> Any:
    return f.model_dump()


def form_fields(n: int = Form(5), s: str = Form("none"), needed: int = Form()) -> list[Any]:
    return [n, s, needed]


async def files(raw: Annotated[bytes, File()], upload: UploadFile, more: list[UploadFile] = File([])) -> list[Any]:
    return [raw.decode(), upload.filename, (await upload.read()).decode(), len(more)]


def page(limit: int = 10) -> Iterator[int]:
    yield limit


async def user(limit: int = Depends(page), x_user: str = Header()) -> AsyncIterator[str]:
    yield f"{x_user}{limit}"


def nested(who: str = Depends(user), limit: int = Depends(page)) -> list[Any]:
    return [who, limit]


def arrays(array: Any = Depends(json_to_ndarray)) -> Any:
    return array.tolist()


def picture(array: Any = Depends(image_to_ndarray)) -> Any:
    return list(array.shape)


def multipart(**fields: str) -> bytes:
    part = '--B\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
    named = [part.format(name, "" if name == "field" else '; filename="f"', text) for name, text in fields.items()]
    return ("".join(named) + "--B--\r\n").encode()


def form(**fields: Any) -> bytes:
    return urlencode(fields, doseq=True).encode()


CASES: list[tuple[Callable[..., Any], str, bytes, dict[str, str]]] = [
    (scalars, "n=1&flag=on&colour=red&names=a&names=b", b"", {}),
    (scalars, "n=x&flag=2&colour=blue", b"", {}),
    (scalars, "n=&names=", b"", {}),
    (scalars, "n=1&n=2", b"", {}),
    (whole, "", b'{"name": "a", "price": 1}', {"content-type": JSON}),
    (whole, "", b'{"price": -1, "tags": [1]}', {"content-type": JSON}),
    (whole, "", b"[1]", {"content-type": JSON}),
    (whole, "", b'"text"', {"content-type": "application/vnd.api+json"}),
    (whole, "", b"null", {"content-type": JSON}),
    (whole, "", b"", {"content-type": JSON}),
    (optional, "n=3", b"", {}),
    (optional, "n=x", b"null", {"content-type": JSON}),
    (optional, "", b"{}", {"content-type": JSON}),
    (two, "", b'{"item": {"name": "a", "price": 1}, "times": "2"}', {"content-type": JSON}),
    (two, "", b'{"item": null, "times": null}', {"content-type": JSON}),
    (two, "", b"[1]", {"content-type": JSON}),
    (two, "", b"", {"content-type": JSON}),
    (embedded, "", b'{"item": {"name": "a", "price": 1}}', {"content-type": JSON}),
    (embedded, "", b'{"name": "a"}', {"content-type": JSON}),
    (anything, "", b'{"a": [1]}', {"content-type": JSON}),
    (anything, "", b'{"a": ["x"]}', {"content-type": JSON}),
    (query_model, "limit=3&tags=a&tags=b", b"", {}),
    (query_model, "limit=300&unknown=1", b"", {}),
    (header_model, "", b"", {"x-token": "t", "accept": "*/*"}),
    (header_model, "", b"", {}),
    (cookie_model, "", b"", {"cookie": "session=s"}),
    (cookie_model, "", b"", {"cookie": "other=s"}),
    (form_model, "", form(limit=3, tags=["a", "b"]), {"content-type": FORM}),
    (form_model, "", form(limit="", order=""), {"content-type": FORM}),
    (form_model, "", form(limit="x", unknown=1), {"content-type": FORM}),
    (form_fields, "", form(n=1, s="x", needed=2), {"content-type": FORM}),
    (form_fields, "", form(n="", s="", needed=""), {"content-type": FORM}),
    (form_fields, "", b"n=1", {}),
    (files, "", multipart(raw="r", upload="u", more="m"), {"content-type": MULTIPART}),
    (files, "", multipart(upload="u"), {"content-type": MULTIPART}),
    (files, "", multipart(raw="r", field="f"), {"content-type": MULTIPART}),
    (nested, "limit=7", b"", {"x-user": "ada"}),
    (nested, "limit=x", b"", {}),
    (arrays, "", b'{"array": [1, 2]}', {"content-type": JSON}),
    (arrays, "", b'{"array": "x"}', {"content-type": JSON}),
    (picture, "", multipart(other="x"), {"content-type": MULTIPART}),
    (picture, "", b"", {}),
]


def by_fastapi(adapter: Callable[..., Any], query: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    app = FastAPI()

    @app.post("/")
    async def route(value: Any = Depends(adapter)) -> Any:
        return value

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.post(f"http://test/?{query}", content=body, headers=headers)

    answer = asyncio.run(post())
    return answer.status_code, answer.json()


def by_qserve(adapter: Callable[..., Any], query: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    async def unchanged(value: Any) -> Any:
        return value

    # as the client adds them in the comparison
    given = {"host": "test", **HTTPX_HEADERS, "content-length": str(len(body)), **headers}
    lines = tuple((name.encode(), value.encode()) for name, value in given.items())
    request = to_starlette(HttpMessage("POST", "http", "/", "", query.encode(), lines, None, None, body))
    try:
        return 200, json.loads(json.dumps(asyncio.run(make_adapter(adapter)(request, unchanged))))
    except RequestValidationError as error:
        response = validation_response(error)
        answer = json.loads(bytes(response.body))
        assert answer.pop("error")["message"]
        return response.status_code, answer


@pytest.mark.parametrize(("adapter", "query", "body", "headers"), CASES)
def test_an_adapter_gives_what_the_same_dependency_gives_in_fastapi(
    adapter: Callable[..., Any], query: str, body: bytes, headers: dict[str, str]
) -> None:
    assert by_qserve(adapter, query, body, headers) == by_fastapi(adapter, query, body, headers)


@pytest.mark.parametrize("fails", [False, True])
def test_a_dependency_with_yield_ends_after_the_graph_and_sees_its_error(fails: bool) -> None:
    happened = []

    def opened() -> Iterator[str]:
        happened.append("open")
        try:
            yield "value"
        except ZeroDivisionError:
            happened.append("failed")
            raise
        finally:
            happened.append("close")

    def adapter(value: str = Depends(opened)) -> str:
        return value

    async def graph(value: str) -> str:
        happened.append("graph")
        return value if not fails else str(1 / 0)

    request = to_starlette(HttpMessage("GET", "http", "/", "", b"", (), None, None, b""))
    run = make_adapter(adapter)(request, graph)
    if fails:
        with pytest.raises(ZeroDivisionError):
            asyncio.run(run)
    else:
        assert asyncio.run(run) == "value"
    assert happened == ["open", "graph", *(["failed"] if fails else []), "close"]


def test_path_parameters_come_from_the_route_of_the_graph() -> None:
    def adapter(item: int, rest: str, q: str = "none") -> list[Any]:
        return [item, rest, q]

    async def unchanged(value: Any) -> Any:
        return value

    run = make_adapter(adapter, "/items/{item}/{rest:path}")
    given = {"item": "3", "rest": "a/b"}
    request = to_starlette(HttpMessage("GET", "http", "/items/3/a/b", "", b"", (), None, None, b"", given))
    assert asyncio.run(run(request, unchanged)) == [3, "a/b", "none"]
    wrong = to_starlette(HttpMessage("GET", "http", "/", "", b"", (), None, None, b"", {**given, "item": "x"}))
    with pytest.raises(RequestValidationError) as caught:
        asyncio.run(run(wrong, unchanged))
    assert [detail["loc"] for detail in caught.value.errors] == [["path", "item"]]
