"""Adapters against FastAPI: the same function as an adapter and as a dependency of a FastAPI route."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import functools
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Literal, NotRequired, Optional
from urllib.parse import quote, urlencode

import httpx
import pydantic
import pytest
from fastapi import (
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    Security,
    UploadFile,
)
from fastapi.encoders import jsonable_encoder
from fastapi.security import APIKeyHeader, APIKeyQuery, HTTPBasic, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from typing_extensions import TypedDict

from qserve.http.adapter import check_adapter, make_adapter
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


class Other(pydantic.BaseModel):
    kind: Literal["other"]
    sizes: dict[str, int] = {}


class Named(pydantic.BaseModel):
    kind: Literal["named"]
    full_name: str = pydantic.Field(alias="fullName", min_length=2)

    @pydantic.model_validator(mode="after")
    def check(self) -> Named:
        if self.full_name == "nobody":
            raise ValueError("there must be somebody")
        return self


class Inner(pydantic.BaseModel):
    items: list[Item] = pydantic.Field(max_length=2)
    other: Other | None = None


class Login(pydantic.BaseModel):
    user: str
    age: int = 18
    roles: list[str] = []


class Typed(TypedDict):
    n: int
    text: NotRequired[str]


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Page:
    def __init__(self, limit: int = 10, offset: int = 0) -> None:
        self.limit, self.offset = limit, offset


class Multiplier:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, n: int) -> int:
        return n * self.factor


def times(n: int, when: datetime.datetime, day: datetime.date | None = None, some: uuid.UUID | None = None) -> Any:
    return [n, repr(when), day, some]


def limited(
    n: Annotated[int, Query(ge=1, lt=5)], s: Annotated[str, Query(min_length=2, pattern="^a", alias="S")]
) -> Any:
    return [n, s]


def several(ids: Annotated[set[int], Query()], kind: Literal["a", "b"] = "a", ratio: float = 0.5) -> Any:
    return [sorted(ids), kind, str(ratio)]


def headers(x_token: str = Header(), x_many: list[str] = Header([]), x_n: int | None = Header(None)) -> Any:
    return [x_token, x_many, x_n]


def cookies(a: int = Cookie(), b: str = Cookie("none", alias="B")) -> Any:
    return [a, b]


def either(body: Item | Other) -> Any:
    return body


def tagged(body: Annotated[Other | Named, pydantic.Field(discriminator="kind")]) -> Any:
    return body


def many(items: list[Item]) -> Any:
    return items


def deep(inner: Inner, n: int = 0) -> Any:
    return [inner, n]


def numbers(document: dict[str, int]) -> Any:
    return document


def number(n: int = Body(gt=1)) -> Any:
    return n


def text(body: str = Body()) -> Any:
    return body


def maybe_text(body: Annotated[str | None, Body()] = None) -> Any:
    return body


def json_in_text(body: pydantic.Json = Body()) -> Any:  # type: ignore[type-arg]
    return body


def list_in_text(body: Annotated[pydantic.Json[list[int]], Body()]) -> Any:
    return body


def raw(body: bytes = Body(max_length=6)) -> Any:
    return body.decode()


def embedded_text(body: str = Body(embed=True)) -> Any:
    return body


def maybe(n: int | None = Body(None)) -> Any:
    return n


def typed(document: Typed) -> Any:
    return document


def whatever(body: Any = Body()) -> Any:
    return [type(body).__name__, body]


def whatever_or_none(body: Any = Body(None)) -> Any:
    return [type(body).__name__, body]


def an_object(body: object = Body()) -> Any:
    return [type(body).__name__, body]


def point(point: Point) -> Any:
    return point


def typed_query(page: Page = Depends()) -> Any:
    return [page.limit, page.offset]


def login(form: Annotated[Login, Form()]) -> Any:
    return form


def optional_form(name: str = Form(min_length=2), tags: list[int] = Form([]), upload: UploadFile | None = None) -> Any:
    return [name, tags, upload and upload.filename]


def secured(key: str = Depends(APIKeyHeader(name="x-key")), token: Any = Depends(HTTPBearer())) -> Any:
    return [key, token.credentials]


def basic(given: Any = Depends(HTTPBasic(auto_error=False)), key: str | None = Security(APIKeyQuery(name="k"))) -> Any:
    return [given and given.username, key]


def refusing(n: int) -> Any:
    if n > 1:
        raise HTTPException(418, {"n": n}, headers={"x-n": "1"})
    return n


async def request_and_more(request: Request, n: int = 0, body: Any = Body(None)) -> Any:
    return [request.method, str(request.url), n, body, len(await request.body())]


Sent_ = tuple[str, bytes, dict[str, str]]


def queries(*texts: str, **more: str) -> list[Sent_]:
    return [(text, b"", {name.replace("_", "-"): value for name, value in more.items()}) for text in texts]


def bodies(*documents: Any, query: str = "", kind: str = JSON) -> list[Sent_]:
    """JSON bodies; bytes as they are."""
    encoded = [document if isinstance(document, bytes) else json.dumps(document).encode() for document in documents]
    return [(query, body, {"content-type": kind}) for body in encoded]


def forms(*fields: Any, kind: str = FORM) -> list[Sent_]:
    return [("", given if isinstance(given, bytes) else form(**given), {"content-type": kind}) for given in fields]


def with_headers(*many: dict[str, str]) -> list[Sent_]:
    return [("", b"", {name.replace("_", "-"): value for name, value in given.items()}) for given in many]


ITEM = {"name": "a", "price": 1}
ODD: tuple[Any, ...] = (b"", None, [], {}, "text", 5, True, [ITEM], ITEM, {**ITEM, "price": "x"}, {**ITEM, "tags": "t"})
"""Documents of all kinds for adapters that take a body."""
TEXTS = (b"hello", b'"hello"', b"5", b"null", b"", b'{"body": "x"}')
OTHER_TYPES = ("text/plain", "text/plain; charset=utf-8", "application/xml", "application/octet-stream", FORM, "x")
JSON_TYPES = (JSON, "application/problem+json", "APPLICATION/JSON; charset=utf-8")
TEXT_ADAPTERS: list[Callable[..., Any]] = [text, maybe_text, json_in_text, list_in_text, raw]
TEXT_SENT: list[tuple[Callable[..., Any], list[Sent_]]] = [
    *((given, [one for kind in OTHER_TYPES for one in bodies(*TEXTS, kind=kind)]) for given in TEXT_ADAPTERS),
    *((given, [("", body, dict[str, str]()) for body in TEXTS]) for given in TEXT_ADAPTERS),
    *((given, [one for kind in JSON_TYPES for one in bodies(*TEXTS[1:], kind=kind)]) for given in TEXT_ADAPTERS),
    (embedded_text, [one for kind in JSON_TYPES for one in bodies(*TEXTS[1:], kind=kind)]),
]
NO_JSON = (b"hello", b"a=1", b"[1", b"{'x': 1}", b"\x00", b"")
"""What comes as it was sent; JSON is parsed whatever its type is called, which FastAPI does not do."""
ANY_SENT: list[tuple[Callable[..., Any], list[Sent_]]] = [
    *((given, [one for kind in OTHER_TYPES for one in bodies(*NO_JSON, kind=kind)])
      for given in (whatever, whatever_or_none, an_object)),
    *((given, [*bodies(*ODD, b"", "text"), *[("", body, dict[str, str]()) for body in NO_JSON]])
      for given in (whatever, whatever_or_none, an_object)),
]  # fmt: skip
SENT: list[tuple[Callable[..., Any], list[Sent_]]] = [
    *ANY_SENT,
    (scalars, queries("n=1&flag=on&colour=red&names=a&names=b", "n=x&flag=2&colour=blue", "n=&names=", "n=1&n=2", "",
                      "n=1.0", "n=1.5", "n=+1&flag=", "n=99999999999999999999", "n=%31&flag=TRUE", "n=1&N=2", "=1&n",
                      "n=1&flag=yes&names", "n= 1", "n=1;flag=1")),
    (times, queries("n=1&when=2026-01-02T03:04:05Z", "n=1&when=5", "n=1&when=x&day=2026-02-30", "n=1&when=2026-01-02",
                    "n=1&when=2026-01-02T03:04&some=00000000000000000000000000000001", "n=1&when=0&some=x", "when=")),
    (limited, queries("n=1&S=ab", "n=0&S=a", "n=5&S=ba", "n=4&s=ab", "n=4&S=ab&S=b", "n=&S=", "")),
    (several, queries("ids=1&ids=2&ids=1", "ids=x&ids=2", "", "ids=1&kind=c&ratio=nan", "ids=1&ratio=1e400", "ids=")),
    (headers, with_headers({"x_token": "t"}, {}, {"x_token": "", "x_n": "5"}, {"x_token": "\xe4", "x_n": "x"},
                           {"x_token": "t", "x_many": "a,b"}, {"X_Token": "t", "x_n": ""})),
    (cookies, with_headers({"cookie": "a=1; B=x"}, {"cookie": "a=x"}, {"cookie": "a=1; b=x"}, {"cookie": "a="}, {},
                           {"cookie": 'a="5"; B="x y"'}, {"cookie": "a"}, {"cookie": "a=1; a=2"}, {"cookie": ";;a=1"})),
    (whole, [*bodies(*ODD, {"price": -1, "tags": [1]}), *bodies("text", ITEM, kind="application/vnd.api+json")]),
    (optional, [*bodies(*ODD, query="n=3"), *queries("n=3", "n=x", "")]),
    (two, bodies(*ODD, {"item": ITEM, "times": "2"}, {"item": None, "times": None}, {"item": [], "times": []},
                 {"item": ITEM, "times": 1, "note": 5}, {"times": 1})),
    (embedded, bodies(*ODD, {"item": ITEM}, {"item": None}, {"item": {"name": 1}})),
    (anything, bodies(*ODD, {"a": [1]}, {"a": ["x"]}, [1, "2"], [None])),
    (either, bodies(*ODD, {"kind": "other"}, {"kind": "other", "sizes": {"a": "x"}}, {"kind": "x"})),
    (tagged, bodies(*ODD, {"kind": "other"}, {"kind": "named", "fullName": "ab"}, {"kind": "named", "full_name": "ab"},
                    {"kind": "named", "fullName": "nobody"}, {"kind": 5})),
    (many, bodies(*ODD, [ITEM, ITEM], [ITEM, {"name": 5}], {"0": ITEM})),
    (deep, [*bodies(*ODD, {"items": [ITEM]}, {"items": [ITEM] * 3}, {"items": [], "other": {"kind": "x"}}),
            *bodies({"items": [{}]}, {"items": 5}, query="n=x")]),
    (numbers, bodies(*ODD, {"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": None, "b": "x"})),
    (number, bodies(*ODD, 1, 2, "3", 2.5, {"n": 5})),
    *TEXT_SENT,
    (maybe, bodies(*ODD, 1, "x")),
    (typed, bodies(*ODD, {"n": 1}, {"n": "x", "text": 5}, {"n": 1, "more": 2})),
    (point, bodies(*ODD, {"x": 1}, {"x": "x", "y": "y"}, {"x": 1, "z": 2})),
    (query_model, queries("limit=3&tags=a&tags=b", "limit=300&unknown=1", "", "limit=", "order=a&order=b", "limit=x")),
    (header_model, with_headers({"x_token": "t", "accept": "*/*"}, {}, {"x_token": ""})),
    (cookie_model, with_headers({"cookie": "session=s"}, {"cookie": "other=s"}, {"cookie": "session="}, {})),
    (form_model, forms({"limit": 3, "tags": ["a", "b"]}, {"limit": "", "order": ""}, {"limit": "x", "unknown": 1}, b"",
                       b"=&", b"limit=3&limit=4", b"tags=a&tags=")),
    (form_fields, [*forms({"n": 1, "s": "x", "needed": 2}, {"n": "", "s": "", "needed": ""}, b""),
                   *forms(b"n=1&n=2&needed=%zz"), ("", b"n=1", {})]),
    (login, forms({"user": "a"}, {"user": ""}, {"user": "a", "age": ""}, {"user": "a", "age": "x"}, b"")),
    (optional_form, [*forms({"name": "ab"}, {"name": "a", "tags": [1, 2]}, {"name": "", "tags": ["x"]}, b""),
                     *forms(multipart(name="n", upload="u"), multipart(field="f"), kind=MULTIPART)]),
    (files, forms(multipart(raw="r", upload="u", more="m"), multipart(upload="u"), multipart(raw="r", field="f"),
                  multipart(raw="", upload=""), kind=MULTIPART)),
    (nested, [*queries("limit=7", "limit=", x_user="ada"), *queries("limit=x", "")]),
    (typed_query, queries("limit=1&offset=2", "limit=x", "", "offset=&limit=5")),
    (Multiplier(3), queries("n=2", "n=x", "", "n=1&n=5")),
    (functools.partial(several, kind="b"), queries("ids=1", "ids=1&kind=a", "ids=1&kind=x")),
    (secured, with_headers({"x_key": "k", "authorization": "Bearer t"}, {"x_key": "k"}, {"authorization": "Bearer t"},
                           {"x_key": "k", "authorization": "Basic t"}, {"x_key": "", "authorization": "Bearer"}, {})),
    (basic, [*queries("k=1", "k=", ""), *queries("k=1", authorization="Basic YTpi"),
             *queries("k=1", authorization="Basic !")]),
    (refusing, queries("n=1", "n=2", "n=x")),
    (request_and_more, [*bodies(None, {"a": 1}, b"", query="n=1"), *queries("n=x", "n=2")]),
    (arrays, bodies({"array": [1, 2]}, {"array": "x"}, {}, b"", {"array": [[1]], "shape": [1, "x"], "dtype": 5})),
    (picture, [*forms(multipart(other="x"), kind=MULTIPART), *queries("")]),
]  # fmt: skip
Seen = tuple[int, Any]


async def by_fastapi(adapter: Callable[..., Any], sent: list[Sent_]) -> list[Seen]:
    app = FastAPI()

    @app.post("/")
    async def route(value: Any = Depends(adapter)) -> Any:
        return value

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answers = [await client.post(f"/?{query}", content=body, headers=_bytes(given)) for query, body, given in sent]
    return [(answer.status_code, answer.json()) for answer in answers]


def _bytes(headers: dict[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode("latin-1") for name, value in headers.items()}


async def by_qserve(adapter: Callable[..., Any], sent: list[Sent_]) -> list[Seen]:
    made = make_adapter(adapter)
    return [await _one_by_qserve(made, *one) for one in sent]


async def _one_by_qserve(adapter: Any, query: str, body: bytes, headers: dict[str, str]) -> Seen:
    async def unchanged(value: Any) -> Any:
        return value

    # as the client adds them in the comparison
    given = {"host": "test", **HTTPX_HEADERS, "content-length": str(len(body)), **headers}
    lines = tuple((name.lower().encode(), value.encode("latin-1")) for name, value in given.items())
    message = HttpMessage("POST", "http", "/", "", quote(query, safe="%&=;+").encode(), lines, None, None, body)
    try:
        return 200, jsonable_encoder(await adapter(to_starlette(message), unchanged))
    except StarletteHTTPException as error:
        return error.status_code, {"detail": error.detail}
    except RequestValidationError as error:
        response = validation_response(error)
        answer = json.loads(bytes(response.body))
        assert answer.pop("error")["message"]
        return response.status_code, answer


@pytest.mark.parametrize(("adapter", "sent"), SENT, ids=lambda one: getattr(one, "__name__", None))
def test_an_adapter_gives_what_the_same_dependency_gives_in_fastapi(
    adapter: Callable[..., Any], sent: list[Sent_]
) -> None:
    ours, theirs = asyncio.run(by_qserve(adapter, sent)), asyncio.run(by_fastapi(adapter, sent))
    assert [(one, *pair) for one, *pair in zip(sent, ours, theirs, strict=True) if pair[0] != pair[1]] == []


def test_a_few_hundred_requests_are_compared_and_most_kinds_of_errors_occur() -> None:
    assert len(SENT) >= 30
    assert sum(len(sent) for _, sent in SENT) >= 300


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


def test_a_dependency_that_fails_after_the_graph_is_logged_and_the_result_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def failing() -> Iterator[str]:
        yield "value"
        raise LookupError("of the dependency")

    def adapter(value: str = Depends(failing)) -> str:
        return value

    async def graph(value: str) -> str:
        return value

    request = to_starlette(HttpMessage("GET", "http", "/", "", b"", (), None, None, b""))
    assert asyncio.run(make_adapter(adapter)(request, graph)) == "value"
    assert "LookupError: of the dependency" in caplog.text


def test_an_adapter_that_would_change_the_response_is_refused() -> None:
    def user(response: Response) -> None: ...

    def adapter(value: None = Depends(user)) -> None: ...

    with pytest.raises(ValueError, match=r"'user' has a parameter of type Response.*return a Response from"):
        check_adapter(user)
    with pytest.raises(TypeError, match="'adapter' has a parameter of type Response"):
        make_adapter(adapter)


def test_background_tasks_of_an_adapter_run_after_the_graph() -> None:
    happened = []

    def adapter(tasks: BackgroundTasks) -> None:
        tasks.add_task(happened.append, "task")

    async def graph(value: None) -> None:
        happened.append("graph")

    request = to_starlette(HttpMessage("GET", "http", "/", "", b"", (), None, None, b""))
    asyncio.run(make_adapter(adapter)(request, graph))
    assert happened == ["graph", "task"]


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
