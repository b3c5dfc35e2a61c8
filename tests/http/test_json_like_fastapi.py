"""The JSON that a result becomes is FastAPI's, value by value, and where it is not there is a reason."""

from __future__ import annotations

import array
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import pathlib
import re
import types
import uuid
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pydantic
import pytest
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse

from qserve.exceptions import PayloadError
from qserve.http.render import to_json


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Flags(enum.Flag):
    A = 1
    B = 2


class Model(pydantic.BaseModel):
    x: int = 1
    when: datetime.date | None = None
    taken: datetime.timedelta = datetime.timedelta(seconds=90)
    other: str = pydantic.Field("q", alias="Other")
    secret: pydantic.SecretStr = pydantic.SecretStr("s")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.x


class Open(pydantic.BaseModel, extra="allow"):
    x: int = 1


class Root(pydantic.RootModel[list[int]]):
    pass


@dataclasses.dataclass
class Record:
    x: Any
    y: Any = None


class Pair(NamedTuple):
    a: int
    b: str


class Text(str):
    pass


SAME: dict[str, Any] = {
    "nothing": None,
    "booleans": [True, False],
    "numbers": [0, -1, 2**80, 1.5, 1e300, -0.0],
    "text": ["", "\u00e9", "\u2028", "\x00", '"', "/", "<", "\U0001f600"],
    "tuple": (1, (2, [3])),
    "named tuple": Pair(1, "b"),
    "sets": [{1}, frozenset({2})],
    "deque": deque([1, 2]),
    "ordered": OrderedDict(b=1, a=2),
    "default": defaultdict(int, a=1),
    "counter": Counter("aab"),
    "chained": ChainMap({"a": 1}),
    "proxy": types.MappingProxyType({"a": 1}),
    "items": {"a": 1}.items(),
    "subclasses": [Text("x"), type("I", (int,), {})(1), type("F", (float,), {})(1.5), type("L", (list,), {})([1])],
    "moments": [datetime.datetime(2020, 1, 2, 3, 4, 5, 6), datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)],
    "date": datetime.date(2020, 1, 2),
    "time": datetime.time(1, 2),
    "durations": [datetime.timedelta(days=1, seconds=1.5), datetime.timedelta(0), datetime.timedelta(days=-1)],
    "decimals": [decimal.Decimal("1.50"), decimal.Decimal("3"), decimal.Decimal("1E+3"), decimal.Decimal("-0.1")],
    "uuid": uuid.UUID(int=5),
    "enums": [Colour.RED, Number.ONE, Flags.A],
    "paths": [pathlib.Path("/a/b"), pathlib.PurePosixPath("c"), pathlib.PureWindowsPath("c:\\a")],
    "bytes": b"ab",
    "addresses": [ipaddress.ip_address("1.2.3.4"), ipaddress.ip_address("::1")],
    "networks": [
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_interface("10.0.0.1/8"),
        ipaddress.ip_network("::/8"),
    ],
    "pattern": re.compile("a+"),
    "url": pydantic.AnyUrl("http://a/b?c=d"),
    "secret": pydantic.SecretStr("x"),
    "model": Model(),
    "models inside": [{"m": Model(Other="z", when=datetime.date(2020, 1, 1))}, (Model(),), {"r": Root([1])}],
    "root": Root([1]),
    "record": Record(1, Record({2}, b"x")),
    "record with a model": Record(Model(), [Root([])]),
    "keys": {1: 1, "a": 2, 1.5: 3},
    "nothing as a key": {None: 1},
    "a truth as a key": {True: 1},
    "an enum as a key": {Colour.RED: 1},
    "an id as a key": {uuid.UUID(int=1): 1},
    "a date as a key": {datetime.date(2020, 1, 1): 1},
    "a path as a key": {pathlib.PurePosixPath("/a"): 1},
    "a number as a key": {Number.ONE: 1},
    "deep": [{"a": {1: (Record(1), {2}, [ipaddress.ip_address("1.1.1.1")])}}],
}

DIFFERENT: dict[str, tuple[Callable[[], Any], str]] = {
    # FastAPI refuses these, and what they hold is plain to see
    "range": (lambda: range(3), "[0,1,2]"),
    "keys": (lambda: {"a": 1}.keys(), '["a"]'),
    "values": (lambda: {"a": 1}.values(), "[1]"),
    "map": (lambda: map(str, [1, 2]), '["1","2"]'),
    "filter": (lambda: filter(None, [0, 1]), "[1]"),
    "reversed": (lambda: reversed([1, 2]), "[2,1]"),
    "iterators": (lambda: [iter([1]), iter({"a": 1}), iter(())], '[[1],["a"],[]]'),
    "a bytearray": (lambda: [bytearray(b"ab"), memoryview(b"ab")], '["ab","ab"]'),
    "fraction": (lambda: fractions.Fraction(1, 2), '"1/2"'),
    "complex": (lambda: 1 + 2j, '"1+2j"'),
    "a tuple as a key": (lambda: {(1, 2): 1}, '{"1,2":1}'),
    "an iterator beside it": (lambda: {"a": map(str, [1]), (1, 2): map(str, [2])}, '{"a":["1"],"1,2":["2"]}'),
    "arrays": (lambda: [numpy.arange(2), numpy.float32(1.5)], "[[0,1],1.5]"),
    # FastAPI makes dicts of them, since dict() takes pairs
    "zip": (lambda: zip([1], [2], strict=True), "[[1,2]]"),
    "enumerate": (lambda: enumerate("a"), '[[0,"a"]]'),
    # FastAPI writes {}
    "an error": (lambda: ValueError("m"), '"m"'),
    # FastAPI writes the text of the bytes' repr
    "secret bytes": (lambda: pydantic.SecretBytes(b"x"), '"**********"'),
}

REFUSED: dict[str, Any] = {
    "a model too deep to be written": functools.reduce(lambda inner, _: Open(y=inner), range(300), Open()),
    "no number": float("nan"),
    "no decimal": decimal.Decimal("NaN"),
    "infinity": [float("inf")],
    "no text": b"\xff",
    "half a character": "\ud800",
    "type": int,
    "builtin": len,
    "module": re,
    "ellipsis": ...,
    "array": array.array("i", [1]),
    "object": object(),
    "timezone": datetime.UTC,
    # FastAPI writes the attributes of any object, private ones too, and {} for functions
    "attributes": types.SimpleNamespace(a=1, _password="x"),
    "function": lambda: 1,
}


@pytest.mark.parametrize("value", SAME.values(), ids=SAME)
def test_a_value_becomes_the_json_that_fastapi_answers(value: Any) -> None:
    assert to_json(value) == JSONResponse(jsonable_encoder(value)).body


@pytest.mark.parametrize(("make", "text"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_value_that_fastapi_refuses_or_mistakes_becomes_what_it_holds(make: Callable[[], Any], text: str) -> None:
    assert to_json(make()).decode() == text
    try:
        of_fastapi = bytes(JSONResponse(jsonable_encoder(make())).body).decode()
    except (TypeError, ValueError):
        of_fastapi = ""
    assert of_fastapi != text, "it belongs to the others"


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_what_json_cannot_hold_and_objects_that_are_no_data_are_refused(value: Any) -> None:
    with pytest.raises(PayloadError):
        to_json(value)
