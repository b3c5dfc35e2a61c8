"""Results as HTTP responses."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import re
import sys
import types
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.background import BackgroundTask
from starlette.datastructures import QueryParams
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from qserve.exceptions import PayloadError, PayloadTooLarge, ResultNotSerialisable
from qserve.http.render import Rendered, explain, parse, parse_apart, render, with_header
from qserve.wire.claim import BROKER, Claim, Kind, claim_in, wrap
from qserve.wire.codec import Codec, Heavy, light_only
from qserve.wire.envelope import Answer


def plain(value: Any) -> Rendered:
    return parse(render(value, Answer.PLAIN))


def as_json(value: Any) -> Rendered:
    return parse(render(value, Answer.JSON))


@pytest.mark.parametrize(
    ("value", "body"),
    [("got me", b"got me"), ("ü", "ü".encode()), (b"\xff\x00", b"\xff\x00"), (None, b"")],
)
def test_a_plain_ingress_answers_text_and_bytes_and_nothing_as_text(value: Any, body: bytes) -> None:
    assert plain(value) == (200, [["content-type", "text/plain; charset=utf-8"]], body)


class Prediction(pydantic.BaseModel):
    label: str
    score: float


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (1, b"1"),
        ([1, 2], b"[1, 2]"),
        (True, b"true"),
        ({}, b"{}"),
        ({"a": 1, "b": None}, b'{"a": 1, "b": null}'),
        (np.array([1, 2]), b"[1, 2]"),
        (Prediction(label="cat", score=1), b'{"label": "cat", "score": 1.0}'),
        (QueryParams("a=1&b=x"), b'{"a": "1", "b": "x"}'),
    ],
)
def test_a_plain_ingress_answers_the_rest_as_json(value: Any, body: bytes) -> None:
    assert plain(value) == (200, [["content-type", "application/json"]], body)


@pytest.mark.parametrize(
    ("value", "body"),
    [("got me", b'"got me"'), (None, b"null"), (3, b"3"), ({"result": 101.5}, b'{"result":101.5}'), (b"x", b'"x"')],
)
def test_a_driver_answers_everything_as_json(value: Any, body: bytes) -> None:
    assert as_json(value) == (200, [["content-type", "application/json"]], body)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    tags: set[str]


class Model(pydantic.BaseModel):
    name: str
    at: datetime.date = datetime.date(2024, 1, 2)


class Arrays(pydantic.BaseModel):
    """Holds what pydantic cannot write, beside fields with rules of their own."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True, extra="allow")
    values: np.ndarray
    password: str = pydantic.Field("hidden", exclude=True)
    number: int = pydantic.Field(1, serialization_alias="Number")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return self.values.size


@pytest.mark.parametrize(
    ("value", "plain_value"),
    [
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ({"a": [np.float32(0.5), np.int64(2), np.bool_(True)]}, {"a": [0.5, 2, True]}),
        ({np.int64(1): "x", Colour.RED: 2}, {"1": "x", "red": 2}),
        ([b"x", {"y"}, (1, 2)], ["x", ["y"], [1, 2]]),
        (datetime.datetime(2024, 1, 2, 3), "2024-01-02T03:00:00"),
        (datetime.timedelta(minutes=1), 60.0),
        ([decimal.Decimal("1.50"), decimal.Decimal("7")], [1.5, 7]),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (Point(1, {"a"}), {"x": 1, "tags": ["a"]}),
        ([Model(name="m")], [{"name": "m", "at": "2024-01-02"}]),
        ({"all": [Prediction(label="a", score=1)]}, {"all": [{"label": "a", "score": 1.0}]}),
        (Prediction(label="cat", score=0.5), {"label": "cat", "score": 0.5}),
        ((1, {"k": None}), [1, {"k": None}]),
        (Arrays(values=np.array([1]), more=np.int64(2)), {"values": [1], "Number": 1, "more": 2, "size": 1}),
        (QueryParams("k=v"), {"k": "v"}),
        (ValueError("wrong"), "wrong"),
    ],
)
def test_values_without_a_json_type_become_what_json_has(value: Any, plain_value: Any) -> None:
    assert json.loads(as_json(value).body) == plain_value


def test_data_frames_become_lists_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    class DataFrame:
        def to_dict(self, orient: str) -> Any:
            return [{"a": np.int64(1)}] if orient == "records" else None

    pandas = types.SimpleNamespace(DataFrame=DataFrame, Series=type("S", (), {}), Index=type("I", (), {}))
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert as_json({"frame": DataFrame()}).body == b'{"frame":[{"a":1}]}'


def test_a_data_frame_of_pandas_becomes_a_list_of_records() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    assert json.loads(as_json(frame).body) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


class Strange:
    pass


def contains_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"a": Strange()}, "Strange"),
        ({(1, Strange()): 1}, "tuple"),
        (float("nan"), "NaN or Infinity"),
        (np.array([np.inf]), "NaN or Infinity"),
        (contains_itself(), "contains itself"),
        (b"\xff", "utf-8"),
        ("\ud800", "surrogates"),
        (decimal.Decimal("NaN"), "NaN"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_the_reason(value: Any, why: str) -> None:
    with pytest.raises(PayloadError, match=why):
        as_json(value)


@pytest.mark.parametrize("answer", [Answer.PLAIN, Answer.JSON])
@pytest.mark.parametrize(
    ("response", "status", "body", "content_type"),
    [
        (Response(b"raw", 201, media_type="image/png"), 201, b"raw", "image/png"),
        (HTMLResponse("<b>"), 200, b"<b>", "text/html; charset=utf-8"),
        (PlainTextResponse("no", 404), 404, b"no", "text/plain; charset=utf-8"),
        (JSONResponse({"a": 1}), 200, b'{"a":1}', "application/json"),
        (StreamingResponse(iter(["a", "b"]), 418, media_type="text/plain"), 418, b"ab", "text/plain; charset=utf-8"),
    ],
)
def test_responses_pass_through_whole(
    answer: Answer, response: Response, status: int, body: bytes, content_type: str
) -> None:
    if isinstance(response, StreamingResponse):
        response.body_iterator = _chunks("a", "b")

    rendered = parse(render(response, answer))

    assert (rendered.status, rendered.body) == (status, body)
    assert [value for name, value in rendered.headers if name == "content-type"] == [content_type]
    assert "content-length" not in [name for name, _ in rendered.headers]


async def _chunks(*chunks: str) -> AsyncIterator[str]:
    for chunk in chunks:
        yield chunk


def test_a_redirect_keeps_its_location_and_cookies_their_number() -> None:
    response = RedirectResponse("/elsewhere")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")

    headers = plain(response).headers

    assert ["location", "/elsewhere"] in headers
    assert [name for name, _ in headers].count("set-cookie") == 2


def test_background_tasks_of_a_response_run() -> None:
    ran: list[int] = []
    response = PlainTextResponse("done", background=BackgroundTask(ran.append, 1))

    assert plain(response).body == b"done"
    assert ran == [1]


def test_an_error_while_streaming_reaches_the_caller() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        plain(StreamingResponse(broken()))


def test_bytes_that_are_no_response_are_refused() -> None:
    with pytest.raises(PayloadError, match="not an HTTP response"):
        parse(b"\x01")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.slow
@given(JSON)
def test_json_values_come_out_as_they_went_in(value: Any) -> None:
    assert json.loads(as_json(value).body) == value


# -- mistakes in responses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Response("x", status_code="201"), "status_code='201' must be a whole number"),  # type: ignore[arg-type]
        (lambda: Response("x", status_code=None), "status_code=None must be a whole number"),  # type: ignore[arg-type]
        (lambda: Response("x", media_type=5), "media_type=5 must be text"),  # type: ignore[arg-type]
        (lambda: Response("x", headers={"a": 1}), "name and value of the header 'a' must be text"),  # type: ignore[dict-item]
        (lambda: Response("x", headers={b"a": "b"}), "name and value of the header b'a' must be text"),  # type: ignore[dict-item]
        (lambda: Response("x", headers=[("a", "b")]), "headers must be a dict of text"),  # type: ignore[arg-type]
        (lambda: Response({"a": 1}), "content of type 'dict' must be str or bytes: return the value itself"),
    ],
)
def test_a_wrong_argument_of_a_response_is_named(make: Callable[[], Response], said: str) -> None:
    with pytest.raises((TypeError, AttributeError)) as caught:
        make()
    explain(caught.value)
    assert f"Response(...): {said}" in str(caught.value)


def test_errors_that_have_other_causes_are_left_as_they_are() -> None:
    mistakes: list[Callable[[], Any]] = [
        lambda: JSONResponse({1}),
        lambda: Response().set_cookie("a b", "c"),
        lambda: Response("\u20ac").body[5],
    ]
    for make in mistakes:
        with pytest.raises(Exception) as caught:
            make()
        before = caught.value.args
        explain(caught.value)
        assert caught.value.args == before


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("raw_headers", [("a", "b")], "raw_headers, which must be pairs of bytes: write response.headers[name] = text"),
        ("raw_headers", [(b"a", 1)], "raw_headers, which must be pairs of bytes"),
        ("raw_headers", [(b"a", b"b", b"c")], "raw_headers, which must be pairs of bytes"),
        ("raw_headers", 5, "the raw_headers of a response must be pairs of bytes, not 5"),
        ("body", "text", "the body of a response must be bytes, not 'str'"),
        ("body", None, "the body of a response must be bytes, not 'NoneType'"),
        ("status_code", 201.0, "has the status 201.0, and must have a whole number from 200 to 599"),
        ("status_code", 99, "has the status 99, and must have a whole number from 200 to 599"),
        ("status_code", True, "has the status True, and must have a whole number from 200 to 599"),
    ],
)
def test_an_attribute_that_makes_a_response_unfit_is_named(name: str, value: Any, said: str) -> None:
    response = Response("x")
    setattr(response, name, value)
    with pytest.raises(ResultNotSerialisable, match=re.escape(said)):
        plain(response)


# -- bodies in the store ---------------------------------------------------------------------------


class Store:
    """Keeps values in this process."""

    threshold, max_bytes = 1000, 5000

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def put(self, parts: Any, size: int, kind: Kind) -> Claim:
        ((_, data),) = parts
        self.values.append(bytes(data))
        assert kind is Kind.KEPT
        return Claim(BROKER, "", "0" * 32, size, bytes(32))

    def get(self, claim: Claim) -> memoryview:
        return memoryview(self.values[-1])

    def is_heavy(self, size: int, kind: Kind) -> bool:
        return size > 2000

    def is_heavy_to_get(self, claim: Claim) -> bool:
        return False

    def forget(self, claims: Any) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("value", "answer", "kind"),
    [
        ("x" * 1500, Answer.PLAIN, "text/plain; charset=utf-8"),
        (["x" * 1500], Answer.JSON, "application/json"),
        (Response(b"x" * 1500, media_type="image/png"), Answer.PLAIN, "image/png"),
    ],
)
def test_a_large_body_is_stored_and_the_head_is_not(value: Any, answer: Answer, kind: str) -> None:
    codec = Codec(values=Store())
    payload = with_header(render(value, answer, codec), "x-more", "yes")

    assert len(payload) < 500 and claim_in(payload)
    (status, headers, body), claim = parse_apart(payload)
    assert (status, dict(headers), body) == (200, {"content-type": kind, "x-more": "yes"}, b"")
    assert claim is not None
    assert parse(payload, codec).body == parse(render(value, answer)).body
    with pytest.raises(PayloadError, match="a store that is not open here"):
        parse(payload)


def test_a_body_over_the_limit_of_the_store_is_refused_and_the_text_names_the_setting() -> None:
    with pytest.raises(PayloadTooLarge, match="'str' takes 5001 bytes.*5000.*QSERVE_MAX_VALUE_BYTES"):
        render("x" * 5001, Answer.PLAIN, Codec(values=Store()))


def test_a_body_that_takes_long_to_store_is_not_stored_on_an_event_loop() -> None:
    store = Store()
    with light_only(), pytest.raises(Heavy):
        render("x" * 2001, Answer.PLAIN, Codec(values=store))
    assert not store.values


@pytest.mark.parametrize("inline", [[200, [], b"x"], [200, []], [200, [], 1], [99, [], None], None])
def test_a_claim_before_anything_but_a_head_is_no_response(inline: Any) -> None:
    claim = Claim(BROKER, "", "0" * 32, 5, bytes(32))
    with pytest.raises(PayloadError):
        parse_apart(wrap(claim, msgpack.packb(inline)))
