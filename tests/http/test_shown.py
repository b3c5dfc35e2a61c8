"""Values as text for people: HTTP requests, models, and objects of classes that this process does not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from qserve.base.keyring import Keyring
from qserve.http.message import HttpMessage
from qserve.http.shown import ShownCodec
from qserve.wire.codec import Codec

SECRET = ((b"content-type", b"application/json"), (b"authorization", b"Bearer secret"))


@dataclass
class Order:
    number: int
    items: Any


def request(body: bytes) -> HttpMessage:
    return HttpMessage("POST", "https", "/orders", "", b"fast=1", SECRET, None, None, body)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": (1, {2})}, "{'a': (1, {2})}"),
        ([request(b'{"a": 1}')], '[<POST /orders?fast=1, application/json: {"a": 1}>]'),
        (
            request(b"\xff" + b"x" * 5000),
            "<POST /orders?fast=1, application/json: \\xff" + "x" * 999 + "… (5001 bytes)>",
        ),
        (Order(1, (b"x", None)), "Order(number=1, items=(b'x', None))"),
    ],
    ids=["plain", "a request", "a long body", "a record"],
)
def test_a_value_is_shown_without_secrets_of_its_request(value: Any, shown: str) -> None:
    assert ShownCodec().show(Codec().encode(value)) == shown


def test_what_cannot_be_read_here_is_described() -> None:
    pickled = Codec(Keyring(b"one key")).encode([lambda: 1])
    assert ShownCodec().show(pickled).startswith("<a pickle of ")
    assert ShownCodec().show(b"\xc1").startswith("<1 bytes cannot be decoded")
