"""JSON from strangers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.http.message import BadRequest
from qserve.http.strict_json import DEPTH_LIMIT, ITEM_LIMIT, loads

REFUSED = [
    ("cut off", b'{"a":', "invalid_json"),
    ("two values", b"1 2", "invalid_json"),
    ("NaN", b"[NaN]", "invalid_json"),
    ("Infinity", b"Infinity", "invalid_json"),
    ("-Infinity", b"-Infinity", "invalid_json"),
    ("large exponent", b"1e999", "number_out_of_range"),
    ("many digits and an exponent", b"9" * 299 + b"e99", "number_out_of_range"),
    ("many digits and a point", b"9" * 400 + b".5", "number_out_of_range"),
    ("an integer of 5000 digits", b"9" * 5000, "number_out_of_range"),
    ("nested beyond the limit", b"[" * 65 + b"]" * 65, "too_deep"),
    ("nested beyond the recursion limit", b"[" * 100_000, "too_deep"),
    ("objects nested beyond the limit", b'{"a":' * 65 + b"1" + b"}" * 65, "too_deep"),
    ("not UTF-8", b'"\xff"', "invalid_unicode"),
    ("half a surrogate pair", b'["\\ud800"]', "invalid_unicode"),
    ("nothing but half a surrogate pair", b'"\\ud800"', "invalid_unicode"),
    ("half a surrogate pair in a key", b'{"\\uDFFF": 1}', "invalid_unicode"),
    ("a byte order mark", b"\xef\xbb\xbf1", "invalid_json"),
    ("UTF-16 with a mark", '{"a":1}'.encode("utf-16"), "invalid_unicode"),
    ("UTF-16 without a mark", '{"a":1}'.encode("utf-16-le"), "invalid_json"),
    ("a key twice", b'{"a":1,"b":2,"a":3}', "duplicate_key"),
    ("a key twice further down", b'[{"x":{"a":1,"a":3}}]', "duplicate_key"),
    ("too many items", b"[" + b"1," * ITEM_LIMIT + b"1]", "too_many_items"),
    ("too many members", b"{" + b'"a":1,' * ITEM_LIMIT + b'"b":1}', "too_many_items"),
    ("empty", b"", "empty_body"),
    ("blank", b" \n ", "empty_body"),
]


@pytest.mark.parametrize(("body", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_passed_on_is_refused_by_code(body: bytes, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        loads(body)
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"3", 3),
        (b" null ", None),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b"1e308", 1e308),
        (b"1e-400", 0.0),
        (b"9" * 100, int("9" * 100)),
        (b'"' + b"9" * 500 + b'"', "9" * 500),
        (b'{"a": {"a": [1.5]}}', {"a": {"a": [1.5]}}),
        (b'"[[[[{{{{"', "[[[[{{{{"),
    ],
)
def test_ordinary_bodies_are_decoded(body: bytes, value: Any) -> None:
    assert loads(body) == value


def test_nesting_up_to_the_limit_is_allowed() -> None:
    loads(b"[" * DEPTH_LIMIT + b"]" * DEPTH_LIMIT)


def test_as_many_values_as_the_limit_says_are_allowed() -> None:
    assert loads(b"[" + b"1," * (ITEM_LIMIT - 1) + b"1]") == [1] * ITEM_LIMIT


def test_commas_within_text_are_no_values() -> None:
    text = "," * ITEM_LIMIT + '\\"' + "\n"
    assert loads(json.dumps([text, text]).encode()) == [text, text]


def test_many_containers_side_by_side_are_not_deep() -> None:
    rows = [[1, 2]] * 1000
    assert loads(json.dumps(rows).encode()) == rows


def test_the_message_says_where_the_body_is_wrong() -> None:
    with pytest.raises(BadRequest, match="line 2, column 3"):
        loads(b"[1,\n  }")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda i: st.lists(i), max_leaves=8))
def test_it_agrees_with_the_standard_decoder(value: Any) -> None:
    assert loads(json.dumps(value).encode()) == value


@given(st.binary(max_size=40))
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    try:
        value = loads(body)
    except BadRequest:
        return
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
