"""What is said of an application's HTTP interface, from the code that is deployed to the page of the gateway."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Annotated, Any, Optional

import pytest
from fakes import FakePlane
from fastapi import APIRouter, Depends, FastAPI, Header, UploadFile
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.security import HTTPBearer
from flask import Blueprint, Flask
from flask.views import MethodView
from pydantic import BaseModel, Field, create_model
from qserve_gateway import openapi as page
from qserve_gateway.application import create_app
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.routing import Mount, Route, WebSocketRoute

import qserve as serve
from qserve.base.keyring import Keyring
from qserve.base.settings import Settings
from qserve.dag import InputNode
from qserve.define.application import compiled
from qserve.deploy.registration import release_of
from qserve.drivers import DAGDriver
from qserve.http_adapters import image_to_ndarray, json_request, json_to_ndarray
from qserve.wire.application import ApplicationRecord
from qserve.wire.description import LIMIT_BYTES


class Item(BaseModel):
    """A thing for sale."""

    name: str = Field(examples=["pen"])
    price: float = 1.0
    parts: list[Item] = []


class Receipt(BaseModel):
    total: float


@serve.deployment
def price(item: Item) -> Receipt:
    """Price an item.

    Taxes are included.

    Example:
        {"name": "pen", "price": 2} -> {"total": 2.0}
    """
    return Receipt(total=item.price)


@serve.deployment
class Shop:
    """A shop."""

    def greet(self, name: str, times: int) -> str:
        return name * times

    def words(self, text: Any) -> Iterator[str]:
        yield text

    async def __call__(self, request: Request) -> str | dict[str, int]:
        return ""


def of(target: Any, name: str = "shop", prefix: str = "/") -> ApplicationRecord:
    built = compiled(target, name)
    built.ingress.set_options(route_prefix=prefix)
    return release_of(built, Keyring(b"k" * 32), "module:node").record


def validate(document: dict[str, Any]) -> None:
    """Fail for a document that is not OpenAPI 3.1."""
    # imported on use: it takes a quarter of a second in each process that only reads which tests there are
    validator = pytest.importorskip("openapi_spec_validator", reason="pip install openapi-spec-validator")
    validator.OpenAPIV31SpecValidator(document).validate()


def page_of(*records: ApplicationRecord) -> dict[str, Any]:
    """Return the gateway's document for these applications, once it is found valid."""
    response = create_app(Settings(), FakePlane(*records), watch=False).test_client().get("/-/openapi.json")  # type: ignore[arg-type]
    assert response.status_code == 200
    document: dict[str, Any] = response.get_json()
    validate(document)
    ids = [one["operationId"] for item in document["paths"].values() for one in item.values() if "operationId" in one]
    assert len(ids) == len(set(ids))
    return document


def ingress(api: Any) -> Any:
    return serve.deployment(serve.ingress(api)()).bind()


def body_of(operation: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    content: dict[str, Any] = operation["requestBody"]["content"][kind]
    return content


def result_of(operation: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    content: dict[str, Any] = operation["responses"]["200"]["content"][kind]
    return content


# -- graphs ----------------------------------------------------------------------------------------


def test_a_graph_has_the_types_of_its_adapter_and_the_texts_and_examples_of_its_last_step() -> None:
    async def adapter(item: Item, scale: int = 3, x_tenant: str = Header()) -> Item:
        """The body is an item."""
        return item

    with InputNode() as inp:
        document = page_of(of(DAGDriver.bind({"/price/{day}": price.bind(inp)}, http_adapter=adapter), prefix="/s"))

    (operation,) = document["paths"]["/s/price/{day}"].values()
    assert operation["summary"] == "Price an item."
    assert operation["description"] == "Taxes are included.\n\nThe body is an item."
    named = {(one["name"], one["in"], one["required"]) for one in operation["parameters"] if "name" in one}
    assert named == {("scale", "query", False), ("x-tenant", "header", True), ("day", "path", True)}
    assert body_of(operation)["schema"] == {"$ref": "#/components/schemas/shop.Item"}
    assert body_of(operation)["examples"]["1"]["value"] == {"name": "pen", "price": 2}
    assert result_of(operation)["schema"] == {"$ref": "#/components/schemas/shop.Receipt"}
    assert result_of(operation)["examples"]["1"]["value"] == {"total": 2.0}
    item = document["components"]["schemas"]["shop.Item"]
    assert item["properties"]["parts"]["items"] == {"$ref": "#/components/schemas/shop.Item"}


def test_a_graph_of_json_takes_the_keys_that_its_steps_take() -> None:
    with InputNode() as inp:
        shop = Shop.bind()
        graph = shop.greet.bind(inp["name"], times=inp["times"])
        operation = page_of(of(DAGDriver.bind(graph, http_adapter=json_request)))["paths"]["/"]["post"]

    assert body_of(operation)["schema"] == {
        "type": "object",
        "properties": {"name": {"type": "string"}, "times": {"type": "integer"}},
        "required": ["name", "times"],
    }
    assert result_of(operation)["schema"] == {"type": "string"}
    assert "All paths below this one are served alike." in operation["description"]


@pytest.mark.parametrize(
    ("adapter", "kind", "expected"),
    [
        (None, "text/plain", {"type": "string"}),
        (json_to_ndarray, "application/json", {"$ref": "#/components/schemas/shop.NdArray"}),
        (Item, "application/json", {"$ref": "#/components/schemas/shop.Item"}),
        (image_to_ndarray, "multipart/form-data", None),
    ],
)
def test_each_adapter_says_what_it_takes(adapter: Any, kind: str, expected: Any) -> None:
    with InputNode() as inp:
        item = page_of(of(DAGDriver.bind({"/a": Shop.bind().words.bind(inp)}, http_adapter=adapter)))["paths"]["/a"]

    assert ("get" in item) is (adapter is None)
    schema = body_of(item["post"], kind)["schema"]
    assert schema == expected or schema["properties"]["img"]["format"] == "binary"
    assert result_of(item["post"], "text/plain") == {"schema": {"type": "string"}}


def test_files_and_forms_of_an_adapter_are_multipart() -> None:
    def adapter(file: UploadFile, note: Annotated[str, Header()] = "") -> str:
        return ""

    with InputNode() as inp:
        operation = page_of(of(DAGDriver.bind(price.bind(inp), http_adapter=adapter)))["paths"]["/"]["post"]

    assert body_of(operation, "multipart/form-data")["schema"]["$ref"].startswith("#/components/schemas/shop.")


# -- other roots -----------------------------------------------------------------------------------


def test_a_root_without_a_driver_has_its_annotation_and_any_body() -> None:
    item = page_of(of(Shop.bind(), prefix="/s"))["paths"]["/s"]

    assert set(item["get"]["responses"]["200"]["content"]) == {"application/json", "text/plain"}
    assert set(item["post"]["requestBody"]["content"]) == {"application/json", "text/plain"}
    assert item["get"]["summary"] == "A shop."


def returns_response(request: Request) -> PlainTextResponse: ...  # type: ignore[empty-body]
async def returns_items(request: Request) -> AsyncIterator[bytes]: ...  # type: ignore[empty-body,misc]
def returns_unknown(request): ...  # type: ignore[no-untyped-def]
def returns_list(request: Request) -> list[Item]: ...  # type: ignore[empty-body]
def returns_missing(request: Request) -> Missing: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (returns_response, "text/plain"),
        (returns_items, "text/plain"),
        (returns_unknown, "*/*"),
        (returns_list, "application/json"),
        (returns_missing, "*/*"),
    ],
)
def test_a_function_says_what_it_returns_as_far_as_it_is_known(function: Any, kind: str) -> None:
    operation = page_of(of(serve.deployment(function).bind()))["paths"]["/"]["get"]

    assert list(operation["responses"]["200"]["content"]) == [kind]


api = FastAPI(title="Orders", description="All *orders*.", dependencies=[Depends(HTTPBearer(auto_error=False))])


@serve.deployment
@serve.ingress(api)
class Orders:
    @api.get("/orders/{number}", tags=["reading"], responses={404: {"description": "None such."}})
    def order(self, number: int, q: Optional[int] = None) -> Item: ...  # type: ignore[empty-body]  # noqa: UP045

    @api.post("/orders")
    async def add(self, item: Item) -> Receipt: ...  # type: ignore[empty-body]

    @api.get("/stream")
    def stream(self) -> StreamingResponse: ...  # type: ignore[empty-body]

    @api.get("/lines")
    def lines(self) -> Iterator[Item]:
        yield Item(name="pen")

    @api.get("/hidden", include_in_schema=False)
    def hidden(self) -> None: ...


def test_the_schema_of_an_ingress_is_merged_below_its_prefix() -> None:
    document = page_of(of(Orders.bind(), "orders", "/o"))

    assert [path for path in document["paths"] if not path.startswith("/-/")] == [
        "/o/orders/{number}", "/o/orders", "/o/stream", "/o/lines",
    ]  # fmt: skip
    operation = document["paths"]["/o/orders/{number}"]["get"]
    assert [one["name"] for one in operation["parameters"] if "name" in one] == ["number", "q"]
    assert operation["tags"] == ["orders: reading"]
    assert operation["security"] == [{"orders.HTTPBearer": []}]
    assert operation["responses"]["404"] == {"description": "None such."}
    assert document["tags"][0] == {"name": "orders", "description": "All *orders*."}
    theirs, ours = operation["responses"]["422"]["content"]["application/json"]["schema"]["anyOf"]
    assert (theirs["$ref"], ours["$ref"]) == (
        "#/components/schemas/orders.HTTPValidationError", "#/components/schemas/Error",
    )  # fmt: skip
    assert api.openapi_schema is None


def test_two_applications_may_have_components_and_operations_of_one_name() -> None:
    def add(item: Any) -> None: ...

    add.__annotations__["item"] = create_model("Receipt", weight=(int, ...))
    other = FastAPI()
    other.post("/orders")(add)

    document = page_of(of(Orders.bind(), "a", "/a"), of(ingress(other), "b", "/b"))

    schemas = document["components"]["schemas"]
    assert "total" in schemas["a.Receipt"]["properties"]
    assert "weight" in schemas["b.Receipt"]["properties"]
    assert body_of(document["paths"]["/b/orders"]["post"])["schema"] == {"$ref": "#/components/schemas/b.Receipt"}


def test_a_path_is_described_by_the_application_that_serves_it() -> None:
    below = FastAPI()

    @below.get("/sub/x")
    def x() -> str:
        """Not served."""
        return ""

    served = FastAPI()

    @served.get("/x")
    def y() -> str:
        """Served."""
        return ""

    paths = page_of(of(ingress(below), "below"), of(ingress(served), "served", "/sub"))["paths"]

    assert paths["/sub/x"]["get"]["description"] == "Served."


def test_an_application_s_own_way_to_make_its_schema_is_used_and_leaves_no_trace() -> None:
    own = FastAPI()

    def custom() -> dict[str, Any]:
        if own.openapi_schema is None:
            own.openapi_schema = get_openapi(title="Own", version="1", routes=own.routes, description="Own text.")
            own.openapi_schema["servers"] = [{"url": "https://elsewhere.example"}]
        return own.openapi_schema

    own.openapi = custom  # type: ignore[method-assign]

    @serve.deployment
    @serve.ingress(own)
    class Own:
        @own.get("/one")
        def one(self) -> int:
            return 1

    document = page_of(of(Own.bind()))

    assert document["tags"][0]["description"] == "Own text."
    assert [one for one in document["paths"]["/one"]["get"]["parameters"] if "name" in one] == []
    assert [server["url"] for server in document["servers"]] == [".."]
    assert own.openapi_schema is None


def hidden() -> FastAPI:
    app = FastAPI(openapi_url=None)
    app.get("/secret")(lambda: None)
    return app


flask = Flask("flask")
flask_part = Blueprint("part", "part", url_prefix="/part")


@flask.get("/items/<int:number>/<path:rest>")
def item(number: int, rest: str) -> dict[str, int]:
    """Find an item.

    By its number.
    """
    return {}


@flask.route("/items", methods=["GET", "POST"])
def items() -> str:
    return ""


class Things(MethodView):
    def get(self, key: str) -> str:
        """Find a thing."""
        return ""

    def delete(self, key: str) -> str:
        return ""


flask_part.add_url_rule("/<uuid:key>", view_func=Things.as_view("things"))
flask.register_blueprint(flask_part)


async def found(request: Request) -> Item:
    """Find it."""
    raise NotImplementedError


class Thing(HTTPEndpoint):
    async def put(self, request: Request) -> None:
        """Put it there."""


starlette = Starlette(
    routes=[
        Route("/items/{number:int}/{rest:path}", found),
        Route("/hidden", found, include_in_schema=False),
        Mount("/part/{owner}", routes=[Route("/{key:uuid}", Thing)]),
        Mount("/hidden", app=hidden()),
        Mount("/files", app=lambda scope, receive, send: None),
        WebSocketRoute("/ws", lambda socket: None),
    ]
)


def test_the_routes_of_flask_are_described_with_their_methods_types_and_texts() -> None:
    paths = page_of(of(ingress(flask), "flask", "/f"))["paths"]

    assert {path: set(item) for path, item in paths.items() if path.startswith("/f")} == {
        "/f/items/{number}/{rest}": {"get"},
        "/f/items": {"get", "post"},
        "/f/part/{key}": {"get", "delete"},
    }
    operation = paths["/f/items/{number}/{rest}"]["get"]
    assert (operation["summary"], operation["description"]) == ("Find an item.", "By its number.")
    assert _types(operation) == {"number": {"type": "integer"}, "rest": {"type": "string"}}
    (kind,) = operation["responses"]["200"]["content"]
    assert kind == "application/json"
    assert paths["/f/part/{key}"]["get"]["summary"] == "Find a thing."
    assert _types(paths["/f/part/{key}"]["delete"]) == {"key": {"type": "string", "format": "uuid"}}
    assert "requestBody" in paths["/f/items"]["post"]
    assert "requestBody" not in paths["/f/items"]["get"]


def test_the_routes_of_starlette_are_described_with_those_of_its_mounts() -> None:
    document = page_of(of(ingress(starlette), "star", "/s"))
    paths = document["paths"]

    assert {path: set(item) for path, item in paths.items() if path.startswith("/s")} == {
        "/s/items/{number}/{rest}": {"get"},
        "/s/part/{owner}/{key}": {"put"},
    }
    assert paths["/s/items/{number}/{rest}"]["get"]["summary"] == "Find it."
    assert _types(paths["/s/part/{owner}/{key}"]["put"]) == {
        "owner": {"type": "string"},
        "key": {"type": "string", "format": "uuid"},
    }
    assert "star.Item" in document["components"]["schemas"]


def _types(operation: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one["schema"] for one in operation["parameters"] if one.get("in") == "path"}


# -- where nothing is known ------------------------------------------------------------------------


def broken() -> FastAPI:
    app = FastAPI()

    def fail() -> Any:
        raise SystemExit("no schema")

    app.openapi = fail  # type: ignore[method-assign]
    return app


def endless() -> FastAPI:
    app, schema = FastAPI(), dict[str, Any]()
    schema["paths"] = {"/x": {"get": {"x-self": schema}}}
    app.openapi = lambda: schema  # type: ignore[method-assign]
    return app


def huge() -> FastAPI:
    app = FastAPI(description="long " * (LIMIT_BYTES // 5))
    app.get("/x")(lambda: None)
    return app


@pytest.mark.parametrize(
    ("app", "warned"),
    [
        (Flask("flask"), ""),
        (FastAPI, ""),
        (hidden(), ""),
        (broken(), "SystemExit: no schema"),
        (endless(), "nested too deeply"),
        (huge(), "KiB"),
    ],
)
def test_an_application_without_a_schema_is_deployed_and_has_a_general_entry(
    app: Any, warned: str, caplog: pytest.LogCaptureFixture
) -> None:
    maker = (lambda: FastAPI()) if app is FastAPI else app
    with caplog.at_level(logging.WARNING, "qserve"):
        record = of(ingress(maker))

    assert record.description == b""
    assert ("is not described in detail" in caplog.text) is bool(warned)
    assert warned in caplog.text
    paths = page_of(record)["paths"]
    assert set(paths["/"]) == {"get", "post"}
    assert "/secret" not in paths


def test_a_router_is_described_and_an_adapter_that_only_replicas_have_is_not_imported() -> None:
    router = APIRouter()
    router.get("/x")(lambda: None)
    assert "/x" in page_of(of(ingress(router)))["paths"]

    with InputNode() as inp:
        record = of(DAGDriver.bind({"/a/{b:int}": price.bind(inp)}, http_adapter="only_there.adapter"))
    (parameter,) = [one for one in page_of(record)["paths"]["/a/{b}"]["get"]["parameters"] if "name" in one]
    assert (parameter["name"], parameter["in"]) == ("b", "path")


def test_what_is_no_description_in_the_record_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    record = of(price.bind())

    for damaged in (b"x", record.description[:-9], b"x" * (1 << 20)):
        assert "/" in page_of(replace(record, description=damaged))["paths"]
    assert "cannot be read" in caplog.text


def test_many_long_descriptions_leave_the_page_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    one = of(Orders.bind(), "orders", "/o")
    monkeypatch.setattr(page, "DOCUMENT_LIMIT", len(one.description))

    paths = page_of(one, of(Orders.bind(), "more", "/more"))["paths"]

    assert "/o/orders" in paths
    assert [path for path in paths if path.startswith("/more")] == ["/more"]


# -- hostile names and documents -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a.b", "ä ö", "a/b", "../x", "$ref", "x" * 300, "Error"])
def test_names_of_any_kind_make_a_valid_document(name: str) -> None:
    document = page_of(of(Orders.bind(), name, "/o"), of(Orders.bind(), "plain", "/p"))

    assert len([one for one in document["components"]["schemas"] if one.endswith(".Receipt")]) == 2
    assert document["components"]["schemas"]["Error"]["properties"].keys() == {"error", "detail"}


GARBAGE: list[Any] = [
    None, [], "text", {"paths": []}, {"paths": {"/x": None}}, {"paths": {"x": {"get": {}}, 3: {"get": {}}}},
    {"paths": {"/x": {"get": {"responses": {"200": None, "bad": {}}, "parameters": [None, {"in": "query"}]}}}},
    {"paths": {"/x": {"get": {"summary": 3, "requestBody": "no", "callbacks": {"a": {}}, "made-up": 1}}}},
    {"paths": {"/{a}/{a}/{b:odd}/%7B/ä ?": {"get": {"security": ["x", {"y": []}]}}}, "components": {"schemas": []}},
    {"paths": {"/x": {"$ref": "https://elsewhere.example/x.json", "get": {"responses": {"200": {"$ref": "#/no"}}}}}},
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
def test_a_schema_of_another_shape_does_not_spoil_the_page(garbage: Any) -> None:
    app = FastAPI()
    app.openapi = lambda: garbage  # type: ignore[method-assign]

    document = page_of(of(ingress(app)), of(Orders.bind(), "orders", "/o"))

    assert "/o/orders" in document["paths"]
    assert "elsewhere" not in json.dumps(document)


class Odd(BaseModel):
    ref: str = Field(alias="$ref", default="x", examples=["#/components/schemas/Odd"])
    default: Item = Item(name="a")
    enum: list[Item] = []
    properties: dict[str, Item] = {}
    nan: float = float("nan")
    more: dict[str, Any] = Field(default={"$ref": "#/nowhere", "enum": 1}, json_schema_extra={"example": {"$ref": 1}})


def test_words_of_openapi_are_ordinary_names_in_data_and_in_models() -> None:
    app = FastAPI()

    @app.post("/odd")
    def odd(odd: Odd) -> None: ...

    schema = page_of(of(ingress(app)))["components"]["schemas"]["shop.Odd"]

    item = {"$ref": "#/components/schemas/shop.Item"}
    assert schema["properties"]["default"]["$ref"] == item["$ref"]
    assert schema["properties"]["enum"]["items"] == item
    assert schema["properties"]["properties"]["additionalProperties"] == item
    assert schema["properties"]["more"]["default"] == {"enum": 1}  # tools would follow the other one
    assert "nan" in schema["properties"]
    assert schema["properties"]["$ref"]["examples"] == ["#/components/schemas/Odd"]


# -- the page --------------------------------------------------------------------------------------


def test_the_page_follows_the_routes_and_costs_nothing_while_they_stay() -> None:
    plane: Any = FakePlane(of(price.bind(), "one"))
    client = create_app(Settings(), plane, watch=False).test_client()

    first = client.get("/-/openapi.json")
    again = client.get("/-/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert client.head("/-/openapi.json").headers["Content-Length"] == first.headers["Content-Length"]

    plane = FakePlane(of(price.bind(), "one"), of(Orders.bind(), "two", "/two"))
    other = create_app(Settings(), plane, watch=False).test_client().get("/-/openapi.json")
    assert other.headers["ETag"] != first.headers["ETag"]
    assert other.get_json()["info"]["version"] != first.get_json()["info"]["version"]


def test_with_a_token_the_page_needs_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSERVE_API_TOKEN", "token-of-this-test")
    plane: Any = FakePlane(of(Orders.bind(), "orders", "/o"))
    client = create_app(Settings(), plane, watch=False).test_client()

    assert client.get("/-/openapi.json").status_code == 401
    document = client.get("/-/openapi.json", headers={"Authorization": "Bearer token-of-this-test"}).get_json()

    validate(document)
    assert document["security"] == [{"gatewayToken": []}]
    operation = document["paths"]["/o/orders"]["post"]
    assert operation["security"] == [{"orders.HTTPBearer": [], "gatewayToken": []}]
    assert "401" in operation["responses"]
    assert document["paths"]["/-/healthz"]["get"]["security"] == []


def test_a_page_that_is_switched_off_is_not_described() -> None:
    for metrics in (True, False):
        app = create_app(Settings(metrics=metrics), FakePlane(of(price.bind())), watch=False)  # type: ignore[arg-type]
        assert ("/-/metrics" in app.test_client().get("/-/openapi.json").get_json()["paths"]) is metrics


def test_the_page_can_be_switched_off() -> None:
    client = create_app(Settings(api_page=False), FakePlane(of(price.bind())), watch=False).test_client()  # type: ignore[arg-type]

    assert client.get("/-/openapi.json").status_code == 404
