"""The process that parses large JSON bodies: the same rules as in the gateway itself, and its death is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from qserve_gateway.request import json_process
from qserve_gateway.request.environ import Refused
from qserve_gateway.request.json_process import JsonProcess

from qserve.graph.advance import read_input
from qserve.graph.plan import InputKey
from qserve.http.message import BadRequest
from qserve.http.strict_json import loads
from qserve.wire.codec import Codec

pytestmark = pytest.mark.slow
KEYS = [InputKey(), InputKey("item", "a"), InputKey("item", 0), InputKey("attribute", "real")]


@pytest.fixture(scope="module")
def parser() -> Iterator[JsonProcess]:
    made = JsonProcess()
    yield made
    made.close()


@pytest.mark.parametrize("body", [b'{"a": [1, 2]}', b"[1.5, null]", b"7", b'"text"', b"9" * 100])
def test_each_part_is_what_the_gateway_itself_would_read(parser: JsonProcess, body: bytes) -> None:
    read = parser.parse(body, KEYS, 5)

    for key in KEYS:
        try:
            expected = Codec().encode(read_input(key, (loads(body),), {}))
        except Exception as error:
            with pytest.raises(type(error)) as caught:
                read_input(key, (read,), {})
            assert caught.value.args == error.args
        else:
            assert Codec().encode(read_input(key, (read,), {})) == expected


@pytest.mark.parametrize("body", [b"", b"[", b"[NaN]", b'{"a":1,"a":2}', b"[" * 100, b'"\xff"', b"1e999"])
def test_what_is_refused_is_refused_in_the_same_words(parser: JsonProcess, body: bytes) -> None:
    with pytest.raises(BadRequest) as expected:
        loads(body)
    with pytest.raises(BadRequest) as caught:
        parser.parse(body, KEYS, 5)
    assert (caught.value.code, str(caught.value)) == (expected.value.code, str(expected.value))


def test_a_text_may_be_longer_once_it_is_encoded_since_it_is_stored_then(parser: JsonProcess) -> None:
    assert parser.parse(b'"' + b"x" * (10 * 1024 * 1024 - 2) + b'"', KEYS[:1], 5).size > 10 * 1024 * 1024


def test_the_body_of_a_process_that_ended_is_refused_and_the_next_one_is_parsed_by_another(
    parser: JsonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser.parse(b"1", KEYS[:1], 5)

    def read_from_a_dead_one(pipe: Any) -> bytes:
        raise EOFError

    with monkeypatch.context() as patch:
        patch.setattr(json_process, "_read", read_from_a_dead_one)
        with pytest.raises(Refused) as caught:
            parser.parse(b"1", KEYS[:1], 5)

    assert (caught.value.status, caught.value.code, caught.value.retryable) == (503, "parser_lost", True)
    assert parser.parse(b"1", KEYS[:1], 5).size == 1
