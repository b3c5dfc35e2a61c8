"""The adapters that are ready to use."""

from __future__ import annotations

import asyncio
import io
import sys
import types
from typing import Any

import numpy as np
import pydantic
import pytest

from qserve.http.message import HttpMessage
from qserve.http.request import to_starlette
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


def a_request(body: bytes, query: bytes = b"") -> Any:
    return to_starlette(HttpMessage("POST", "http", "/", "", query, (), None, None, body))


@pytest.mark.parametrize("value", [1, "text", [1, 2], {"a": None}])
def test_json_request_gives_any_json_value(value: Any) -> None:
    body = pydantic.TypeAdapter(Any).dump_json(value)
    assert asyncio.run(json_request(a_request(body))) == value


def test_starlette_request_gives_the_request_itself() -> None:
    request = a_request(b"")
    assert starlette_request(request) is request


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"array": [1, 2]}, np.array([1.0, 2.0])),
        ({"array": [[1], [2]], "shape": [1, 2]}, np.array([[1.0, 2.0]])),
        ({"array": [[1.9], [2.1]], "shape": [1, 2], "dtype": "int"}, np.array([[1, 2]])),
        ({"array": [[[[1]]]], "shape": []}, np.array([[[[1.0]]]])),
    ],
)
def test_json_becomes_an_array(payload: Any, expected: Any) -> None:
    array = json_to_ndarray(NdArray(**payload))
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == expected.dtype


@pytest.mark.parametrize(
    "payload",
    [{}, {"array": 1}, {"array": "x"}, {"array": ["x"]}, {"array": [[[[[1]]]]]}, {"array": [1], "shape": ["a"]}],
)
def test_what_is_no_array_is_refused(payload: Any) -> None:
    with pytest.raises(pydantic.ValidationError):
        NdArray(**payload)


def test_a_shape_that_does_not_fit_is_numpys_own_error() -> None:
    with pytest.raises(ValueError, match="reshape"):
        json_to_ndarray(NdArray(array=[1, 2, 3], shape=[2, 2]))


def test_several_arrays_come_by_name() -> None:
    arrays = json_to_multi_ndarray({"a": NdArray(array=[1.0]), "b": NdArray(array=[3.0])})
    assert {name: array.tolist() for name, array in arrays.items()} == {"a": [1.0], "b": [3.0]}


def test_an_image_becomes_the_array_of_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    class Image(io.BytesIO):
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            return np.frombuffer(self.getvalue(), np.uint8)

    module = types.ModuleType("PIL.Image")
    module.open = lambda file: Image(file.read())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PIL", types.ModuleType("PIL"))
    monkeypatch.setitem(sys.modules, "PIL.Image", module)

    assert image_to_ndarray(b"\x01\x02").tolist() == [1, 2]


def test_a_real_image_becomes_the_exact_array() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)
    file = io.BytesIO()
    image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(image_to_ndarray(file.getvalue()), pixels)


@pytest.mark.parametrize("body", [b'[{"a":1}]', '[{"a":1}]'])
def test_a_frame_is_read_with_the_options_of_the_query(monkeypatch: pytest.MonkeyPatch, body: Any) -> None:
    def read_json(file: Any, **options: str) -> Any:
        return file.read(), options

    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(read_json=read_json))

    class Request:
        query_params = {"orient": "records"}

        async def body(self) -> Any:
            return body

    read = asyncio.run(pandas_read_json(Request()))  # type: ignore[arg-type]
    assert read == ('[{"a":1}]', {"orient": "records"})


def test_a_missing_package_is_named_when_the_function_is_called() -> None:
    @require_packages(["missing_package", "numpy"])
    def sync_one() -> int:
        return 1

    @require_packages(["missing_package"])
    async def async_one() -> int:
        return 1

    text = r"sync_one requires packages .* to run but \['missing_package'\] are missing.*pip install"
    with pytest.raises(ImportError, match=text):
        sync_one()
    with pytest.raises(ImportError, match=r"\['missing_package'\] to run but \['missing_package'\].*pip install"):
        asyncio.run(async_one())


def test_a_function_whose_packages_are_there_runs() -> None:
    @require_packages(["numpy"])
    async def one() -> int:
        return 1

    assert asyncio.run(one()) == 1
