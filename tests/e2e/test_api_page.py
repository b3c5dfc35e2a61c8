"""The page that describes the applications, on a running stack: it is true, and what fits it does not fail."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Form, Header, HTTPException, UploadFile
from hypothesis import given, settings
from hypothesis.errors import Unsatisfiable
from processes import Started
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request, json_to_ndarray

TRIES = 40
"""How many requests are made for each operation, and by each way of making them."""


class Item(BaseModel):
    name: str = Field(min_length=1)
    price: float = Field(default=1.0, ge=0, le=1e6)
    parts: list[Item] = []


class Receipt(BaseModel):
    total: float
    names: list[str]


@serve.deployment
def price(item: Item) -> Receipt:
    """Price an item.

    Example:
        {"name": "pen", "price": 2} -> {"total": 2.0, "names": ["pen"]}
    """
    return Receipt(total=item.price, names=[item.name])


@serve.deployment
class Text:
    def shout(self, text: str, mark: str) -> str:
        return f"{text}{mark}".upper()

    def size(self, array: Any) -> int:
        return int(array.size)

    async def __call__(self, request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}


@serve.deployment
def letters(request: Request) -> Iterator[str]:
    yield from request.method


async def adapter(item: Item, user: int, scale: int = 3, x_tenant: str = Header(default="none")) -> Item:
    """The body is an item."""
    return item.model_copy(update={"price": item.price * 2})


api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Api:
    @api.get("/items/{number}")
    def item(self, number: int, q: str | None = None) -> Item:
        if number > 1000:
            raise HTTPException(404, "there is no such item")
        return Item(name=str(number))

    @api.post("/items", status_code=201)
    async def add(self, item: Item) -> Item:
        return item

    @api.post("/upload")
    async def upload(self, file: UploadFile, note: str = Form("")) -> dict[str, int]:
        return {"length": len(await file.read())}

    @api.delete("/items/{name:path}", status_code=204)
    def remove(self, name: str) -> None: ...

    @api.get("/stream", response_class=PlainTextResponse)
    def stream(self, count: int = 3) -> StreamingResponse:
        return StreamingResponse((str(n) for n in range(min(count, 10))), media_type="text/plain")


@pytest.fixture(scope="module")
def applications(started: Started) -> Iterator[Started]:
    with InputNode() as inp:
        text = Text.bind()
        serve.run(
            DAGDriver.bind({"/price/{user:int}": price.bind(inp)}, http_adapter=adapter),
            name="shop",
            route_prefix="/shop",
        )
        serve.run(
            DAGDriver.bind(text.shout.bind(inp["text"], inp["mark"]), http_adapter=json_request),
            name="<b>text</b>",
            route_prefix="/text",
        )
        serve.run(
            DAGDriver.bind(text.size.bind(inp), http_adapter=json_to_ndarray), name="array", route_prefix="/array"
        )
    serve.run(letters.bind(), name="letters", route_prefix="/letters")
    serve.run(Text.bind(), name="plain", route_prefix="/plain")
    serve.run(Api.bind(), name="api", route_prefix="/")
    yield started
    for name in ("shop", "<b>text</b>", "array", "letters", "plain", "api"):
        serve.delete(name)


@pytest.mark.long
def test_no_request_that_the_page_describes_makes_the_gateway_fail(applications: Started) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
    checks = importlib.import_module("schemathesis.checks")
    conformance = importlib.import_module("schemathesis.specs.openapi.checks")
    found = [checks.not_a_server_error, conformance.status_code_conformance, conformance.content_type_conformance]
    found += [conformance.response_schema_conformance, conformance.response_headers_conformance]
    schema = schemathesis.openapi.from_url(f"{applications.url}/-/openapi.json")
    operations = [one.ok() for one in schema.get_all_operations()]
    assert len(operations) >= 15
    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=TRIES, deadline=None, database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                case.headers.pop("x-request-timeout-seconds", None)  # 504 would be what it asks for
                case.call_and_validate(checks=found)

            try:
                send()
            except (Unsatisfiable, schemathesis.errors.SchemathesisError):
                assert mode is schemathesis.GenerationMode.NEGATIVE, operation.label  # nothing can be wrong in it
    assert "Traceback" not in applications.log.read_text()
