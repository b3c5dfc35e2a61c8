"""HTTP adapters at work."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import io
import json
import subprocess
import sys
from typing import Annotated, Any

import numpy as np
import pydantic
import pytest
from fastapi import Body, Depends, File, Header, Query, UploadFile
from starlette.requests import Request

from qserve.http.adapter import make_adapter
from qserve.http.message import EMPTY_BODY, HttpMessage
from qserve.http.rejection import RequestValidationError, validation_response
from qserve.http.request import to_starlette
from qserve.http_adapters import (
    image_to_ndarray,
    json_request,
    json_to_multi_ndarray,
    json_to_ndarray,
    pandas_read_json,
)

BUILT_IN = (
    "json_request", "starlette_request", "json_to_ndarray", "json_to_multi_ndarray", "image_to_ndarray",
    "pandas_read_json",
)  # fmt: skip


def a_request(body: bytes = b"", query: str = "", **headers: str) -> Request:
    pairs = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    return to_starlette(HttpMessage("POST", "http", "/", "", query.encode(), pairs, None, None, body))


def adapt(adapter: Any, request: Request) -> Any:
    async def unchanged(value: Any) -> Any:
        return value

    return asyncio.run(make_adapter(adapter)(request, unchanged))


def refusal(adapter: Any, request: Request) -> RequestValidationError:
    with pytest.raises(RequestValidationError) as caught:
        adapt(adapter, request)
    return caught.value


def a_form(**files: bytes) -> Request:
    parts = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in files.items()
    )
    return a_request(parts + b"--B--\r\n", content_type="multipart/form-data; boundary=B")


class Item(pydantic.BaseModel):
    model_input1: int
    model_input2: str


@dataclasses.dataclass
class Point:
    x: int


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def test_no_adapter_gives_the_request_itself() -> None:
    request = a_request()
    assert adapt(None, request) is request


def test_a_parameter_annotated_request_gets_the_request() -> None:
    async def resolver(request: Request) -> Any:
        return await request.json()

    assert adapt(resolver, a_request(b"[1]")) == [1]


def test_typed_parameters_are_converted_query_parameters() -> None:
    def resolver(number: int, flag: bool, colour: Colour, ratio: float = 0.5, name: str | None = None) -> Any:
        return number, flag, colour, ratio, name

    request = a_request(query="number=100&flag=true&colour=red&name=Ada")
    assert adapt(resolver, request) == (100, True, Colour.RED, 0.5, "Ada")
    request = a_request(query="number=1&flag=on&colour=blue&ratio=2")
    assert adapt(resolver, request) == (1, True, Colour.BLUE, 2.0, None)
    error = refusal(resolver, a_request(query="number=1&flag=on&colour=huge"))
    assert [(one["type"], one["loc"]) for one in error.errors] == [("enum", ["query", "colour"])]


def test_parameters_that_are_left_out_have_their_defaults() -> None:
    def resolver(a: int, b: str, flag: bool = False, colour: Colour = Colour.RED) -> Any:
        return a, b, flag, colour

    assert adapt(resolver, a_request(query="a=1&b=x")) == (1, "x", False, Colour.RED)
    assert adapt(resolver, a_request(query="a=1&b=x&flag=on&colour=blue")) == (1, "x", True, Colour.BLUE)


def test_a_missing_query_parameter_is_described_as_by_fastapi() -> None:
    def resolver(my_custom_param: int) -> int:
        return my_custom_param

    assert refusal(resolver, a_request()).errors == [
        {"type": "missing", "loc": ["query", "my_custom_param"], "msg": "Field required", "input": None}
    ]


def test_all_parameters_that_do_not_fit_are_named_at_once() -> None:
    def resolver(a: int, b: int, c: int) -> int:
        return a

    error = refusal(resolver, a_request(query="a=x&b=1"))
    assert [(one["type"], one["loc"]) for one in error.errors] == [
        ("int_parsing", ["query", "a"]),
        ("missing", ["query", "c"]),
    ]
    assert error.status == 422


def test_a_pydantic_class_is_made_from_the_body() -> None:
    item = adapt(Item, a_request(b'{"model_input1": 1, "model_input2": "test"}'))
    assert item == Item(model_input1=1, model_input2="test")


def test_a_body_that_does_not_fit_the_class_is_refused_by_field() -> None:
    error = refusal(Item, a_request(b'{"model_input1": "x", "model_input2": "test"}'))
    assert [(one["type"], one["loc"]) for one in error.errors] == [("int_parsing", ["body", "model_input1"])]


def test_a_missing_body_is_refused() -> None:
    def resolver(item: Item, urgent: bool = False) -> Any:
        return item, urgent

    for adapter in (Item, resolver):
        assert refusal(adapter, a_request()).errors[0] == {
            "type": "missing", "loc": ["body"], "msg": "Field required", "input": None,
        }  # fmt: skip


def test_one_body_parameter_is_the_whole_body() -> None:
    def resolver(item: Item, times: int = 1) -> Any:
        return item.model_input1 * times

    assert adapt(resolver, a_request(b'{"model_input1": 2, "model_input2": ""}', "times=3")) == 6


def test_several_body_parameters_have_a_key_each() -> None:
    def resolver(item: Item, point: Point, numbers: list[int]) -> Any:
        return item.model_input1, point.x, numbers

    body = {"item": {"model_input1": "1", "model_input2": ""}, "point": {"x": 2}, "numbers": [3]}
    assert adapt(resolver, a_request(json.dumps(body).encode())) == (1, 2, [3])
    error = refusal(resolver, a_request(b'{"item": {"model_input1": 1, "model_input2": ""}}'))
    assert [one["loc"] for one in error.errors] == [["body", "point"], ["body", "numbers"]]

    def scaled(item: Item, numbers: list[int], factor: Annotated[int, Body()] = 1) -> int:
        return sum(numbers) * factor

    assert adapt(scaled, a_request(json.dumps({**body, "numbers": [1, 2], "factor": 3}).encode())) == 9
    assert adapt(scaled, a_request(json.dumps(body).encode())) == 3
    assert refusal(scaled, a_request(b'{"numbers": []}')).errors[0]["loc"] == ["body", "item"]


def test_containers_come_from_the_body() -> None:
    def resolver(data: dict[str, int]) -> Any:
        return data

    def rows(rows: list[dict[str, float]]) -> float:
        return sum(sum(row.values()) for row in rows)

    assert adapt(resolver, a_request(b'{"a": 1}')) == {"a": 1}
    assert adapt(rows, a_request(b'[{"a": 1, "b": 2}, {"c": 0.5}]')) == 3.5


def test_files_come_from_a_form() -> None:
    async def resolver(img: Annotated[bytes, File()], other: UploadFile, more: bytes = File(b"none")) -> Any:
        return img, await other.read(), more

    assert adapt(resolver, a_form(img=b"\xff\x00", other=b"o")) == (b"\xff\x00", b"o", b"none")


def test_a_missing_file_is_refused() -> None:
    def resolver(img: Annotated[bytes, File()]) -> bytes:
        return img

    for request in (a_form(other=b""), a_request(b"raw")):
        assert refusal(resolver, request).errors[0]["loc"] == ["body", "img"]


@pytest.mark.slow
def test_the_array_adapters_work_over_http() -> None:
    one = adapt(json_to_ndarray, a_request(b'{"array": [[1.9], [2.1]], "shape": [1, 2], "dtype": "int"}'))
    many = adapt(json_to_multi_ndarray, a_request(b'{"a": {"array": [1]}, "b": {"array": [3]}}'))
    np.testing.assert_array_equal(one, [[1, 2]])
    assert {name: array.tolist() for name, array in many.items()} == {"a": [1.0], "b": [3.0]}
    assert refusal(json_to_ndarray, a_request(b'{"shape": [1]}')).errors[0]["loc"] == ["body", "array"]


def test_an_image_comes_in_the_form_field_img() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(7).integers(0, 255, (100, 100, 3), np.uint8)
    png = io.BytesIO()
    image.fromarray(pixels).save(png, "PNG")

    array = adapt(image_to_ndarray, a_form(img=png.getvalue()))

    assert (array.dtype, array.shape) == (np.uint8, (100, 100, 3))
    np.testing.assert_array_equal(array, pixels)
    assert refusal(image_to_ndarray, a_form(other=b"x")).errors[0]["loc"] == ["body", "img"]


@pytest.mark.parametrize(
    ("body", "code"), [(b'{"a":', "invalid_json"), (b"[1e999]", "number_out_of_range"), (b"\xff", "invalid_unicode")]
)
def test_a_broken_body_is_status_400(body: bytes, code: str) -> None:
    error = refusal(Item, a_request(body))
    assert (error.status, error.code) == (400, code)


def test_broken_json_that_an_adapter_reads_itself_is_status_400() -> None:
    async def resolver(request: Request) -> Any:
        return await request.json()

    assert refusal(resolver, a_request(b"{")).status == 400


async def reads_json(request: Request) -> Any:
    return await request.json()


@pytest.mark.parametrize("adapter", [reads_json, json_request, pandas_read_json])
@pytest.mark.parametrize("body", [b"", b" \n"])
def test_an_empty_body_is_called_empty_and_the_error_says_what_to_send(adapter: Any, body: bytes) -> None:
    error = refusal(adapter, a_request(body))
    assert (error.status, error.code) == (400, "invalid_json")
    assert str(error) == f"the request body is not valid JSON: {EMPTY_BODY}"


def test_a_json_error_over_something_else_is_the_adapters_own() -> None:
    def resolver(request: Request) -> Any:
        return json.loads("{}}")

    with pytest.raises(json.JSONDecodeError):
        adapt(resolver, a_request(b"1"))


def test_a_compressed_body_is_status_415() -> None:
    assert refusal(Item, a_request(b"\x1f\x8b", content_encoding="gzip")).status == 415


def test_a_broken_form_is_status_400() -> None:
    def resolver(img: Annotated[bytes, File()]) -> bytes:
        return img

    request = a_request(b"no boundary", content_type="multipart/form-data")
    assert refusal(resolver, request).status == 400


def test_markers_of_fastapi_are_understood() -> None:
    def inner(number: int) -> int:
        return number + 1

    def resolver(
        ids: Annotated[list[int], Query()],
        x_token: str = Header("none"),
        following: int = Depends(inner),
    ) -> Any:
        return ids, x_token, following

    request = a_request(query="ids=1&ids=2&number=6", x_token="t")
    assert adapt(resolver, request) == ([1, 2], "t", 7)


def test_constraints_in_annotations_hold() -> None:
    def resolver(n: Annotated[int, pydantic.Field(gt=3)]) -> int:
        return n

    assert adapt(resolver, a_request(query="n=4")) == 4
    assert refusal(resolver, a_request(query="n=1")).errors[0]["type"] == "greater_than"


def test_an_adapter_may_be_named_by_its_import_path() -> None:
    request = a_request()
    assert adapt("qserve.http_adapters.starlette_request", request) is request
    assert adapt("qserve.http_adapters:starlette_request", request) is request


def test_a_class_local_to_a_function_may_annotate() -> None:
    class Local(pydantic.BaseModel):
        a: int

    def resolver(item: Local) -> Local:
        return Local(a=item.a)

    assert adapt(resolver, a_request(b'{"a": 1}')).a == 1


def test_objects_with_a_call_method_are_adapters() -> None:
    class Resolver:
        async def __call__(self, n: int) -> int:
            return n

    assert adapt(Resolver(), a_request(query="n=1")) == 1


@pytest.mark.slow
def test_the_adapters_that_come_along_import_no_fastapi() -> None:
    adapters = [None, *(f"qserve.http_adapters.{name}" for name in BUILT_IN)]
    program = f"""
import sys
from qserve.engine.driver import AdaptingDriver
for adapter in {adapters}:
    AdaptingDriver(adapter, 'app', [''])
    assert 'fastapi' not in sys.modules, adapter
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_annotation_that_no_request_can_give_is_refused_by_name() -> None:
    class Strange:
        pass

    def resolver(strange: Strange) -> Any:
        return Strange

    with pytest.raises(TypeError, match=r"resolver\(strange: .*Strange\).* cannot be read from a request: "):
        make_adapter(resolver)


def test_an_adapter_that_is_not_callable_is_refused() -> None:
    with pytest.raises(ValueError, match="callable"):
        make_adapter(["not function"])


def test_the_answer_to_a_request_that_does_not_fit_is_fastapis() -> None:
    response = validation_response(refusal(Item, a_request(b"{}")))
    detail = json.loads(bytes(response.body))["detail"]
    assert response.status_code == 422
    assert [one["loc"] for one in detail] == [["body", "model_input1"], ["body", "model_input2"]]


class Order(pydantic.BaseModel, extra="forbid"):
    lines: list[dict[str, int]]


@pytest.mark.parametrize(
    ("body", "places"),
    [
        (b'{"lines": [{"a": "x"}]}', [["body", "lines", 0, "a"]]),
        (b'{"lines": [{"a": 1}], "price": 0}', [["body", "price"]]),
        (b"{}", [["body", "lines"]]),
        (b"[]", [["body"]]),
    ],
    ids=["wrong type", "unknown field", "missing field", "no object"],
)
def test_b36_the_answer_tells_the_place_of_each_fault(body: bytes, places: list[list[Any]]) -> None:
    response = validation_response(refusal(Order, a_request(body)))
    assert response.status_code == 422
    assert [fault["loc"] for fault in json.loads(bytes(response.body))["detail"]] == places


class Part(pydantic.BaseModel):
    sizes: list[int] = []
    kind: int | bool = 1
    odd: int = pydantic.Field(1, alias="a/b~c")


class Whole(pydantic.BaseModel):
    parts: dict[str, Part]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ('{"parts": {"x": {"sizes": [1, "two"]}}}', "/parts/x/sizes/1"),
        ('{"parts": {"x": {"sizes": 1}}}', "/parts/x/sizes"),
        ('{"parts": {"x": {"kind": "none"}}}', "/parts/x/kind"),
        ('{"parts": {"x": {"a/b~c": "z"}}}', "/parts/x/a~1b~0c"),
        ('{"parts": {"x": 1}}', "/parts/x"),
        ("{}", "/parts"),
        ("[1]", ""),
    ],
)
def test_b36_the_answer_points_to_the_field_that_does_not_fit(body: str, pointer: str) -> None:
    def embedded(whole: Whole = Body(embed=True), limit: int = 1) -> Whole:
        return whole

    plain = validation_response(refusal(Whole, a_request(body.encode())))
    assert (plain.status_code, json.loads(bytes(plain.body))["error"]["pointer"]) == (422, pointer)
    outer = f'{{"whole": {body}}}'.encode()
    inner = validation_response(refusal(embedded, a_request(outer, query="limit=x")))
    error = json.loads(bytes(inner.body))["error"]
    assert (error["code"], error["pointer"]) == ("invalid_request", f"/whole{pointer}")


def test_a_parameter_outside_of_the_body_has_no_pointer() -> None:
    def resolver(limit: int) -> int:
        return limit

    response = validation_response(refusal(resolver, a_request(query="limit=x")))
    assert "pointer" not in json.loads(bytes(response.body))["error"]


def test_the_answer_to_a_broken_body_has_an_error_beside_the_detail() -> None:
    response = validation_response(refusal(Item, a_request(b"{")))
    body = json.loads(bytes(response.body))
    assert response.status_code == 400
    assert body["error"]["code"] == "invalid_json"
    assert body["detail"][0]["loc"] == ["body"]


@pytest.mark.parametrize(
    ("adapter", "sent"),
    [
        (json_to_ndarray, {"array": [1, 2, 3], "shape": [2, 2]}),
        (json_to_ndarray, {"array": [1], "dtype": "no such type"}),
        (json_to_ndarray, {"array": [1], "dtype": "U100000000"}),
        (json_to_ndarray, {"array": [[1], [2, 3]]}),
        (json_to_multi_ndarray, {"a": {"array": [1], "shape": [10**30]}}),
    ],
)
def test_arrays_that_numpy_does_not_make_are_the_client_s_error(adapter: Any, sent: Any) -> None:
    error = refusal(adapter, a_request(json.dumps(sent).encode(), content_type="application/json"))

    assert (error.status, error.code) == (422, "invalid_request")
    assert error.errors[0]["loc"] == ["body"]


def test_bytes_that_are_no_image_are_the_client_s_error() -> None:
    error = refusal(image_to_ndarray, a_form(img=b"no image"))

    assert (error.status, "identify" in str(error)) == (422, True)
