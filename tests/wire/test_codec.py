"""Values travel as they are; what is not plain data travels only when it is signed."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import os
import sys
import types
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.requests import Request

from qserve.base.keyring import Keyring
from qserve.calls import handles
from qserve.calls.ref import Ref
from qserve.calls.responses import DeploymentResponse, RefTask
from qserve.exceptions import PayloadError
from qserve.graph.plan import Slot
from qserve.http import request as _request  # noqa: F401 - it registers HTTP messages for decoding
from qserve.http.message import HttpMessage
from qserve.wire.codec import Codec
from qserve.wire.codes import Code, register, register_packer, register_unpacker

KEYED = Codec(Keyring(b"key"))
KEYLESS = Codec()


def a_request() -> Request:
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""})
    request._body = b"x"
    return request


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


hashable = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.datetimes(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(allow_nan=False),
    st.complex_numbers(allow_nan=False),
)
values = st.recursive(
    hashable,
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.dictionaries(hashable, inner),
        st.sets(hashable),
        st.frozensets(hashable),
    ),
    max_leaves=20,
)


@pytest.mark.slow
@given(values)
def test_plain_data_arrives_with_its_types_and_needs_no_key(value: Any) -> None:
    arrived = KEYLESS.decode(KEYLESS.encode(value))

    assert arrived == value
    assert repr(type(arrived)) == repr(type(value))


@pytest.mark.parametrize(
    "value",
    [5, True, 2**70, -(2**70), 0.1, "\ud800", (1, (2, [3])), {(1, 2): {3}}, datetime.UTC.utcoffset(None)],
    ids=repr,
)
def test_a_value_keeps_its_exact_type(value: Any) -> None:
    arrived = KEYLESS.decode(KEYLESS.encode(value))

    assert (type(arrived), arrived) == (type(value), value)


@pytest.mark.parametrize("kind", ["int8", "float32", "complex128", "bool", "<U5", "datetime64[s]"])
def test_arrays_keep_shape_and_dtype(kind: str) -> None:
    array = numpy.zeros((2, 3), dtype=kind)

    arrived = KEYLESS.decode(KEYLESS.encode({"a": array}))["a"]

    assert arrived.dtype == array.dtype
    assert arrived.shape == (2, 3)
    arrived[0, 0] = array[0, 0]  # and can be written to


def test_numpy_scalars_stay_numpy_scalars() -> None:
    arrived = KEYLESS.decode(KEYLESS.encode(numpy.float32(1.5)))

    assert (type(arrived), arrived) == (numpy.float32, 1.5)


def test_an_object_is_refused_without_a_key_and_the_text_says_what_to_set() -> None:
    with pytest.raises(PayloadError, match=r"'Point' is not plain data.*set QSERVE_SECRET_KEY"):
        KEYLESS.encode({"at": Point(1)})


@dataclass(frozen=True)
class Order:
    number: int
    items: tuple[str, ...] = ()


class Customer(BaseModel):
    name: str
    orders: list[Order] = []


def test_dataclasses_and_models_of_importable_modules_need_no_key() -> None:
    customer = Customer(name="Dora", orders=[Order(1, ("tea",))])

    arrived = KEYLESS.decode(KEYLESS.encode({"who": customer}))["who"]

    assert arrived == customer
    assert type(arrived.orders[0]) is Order


def test_a_record_is_made_only_of_classes_that_are_records_and_imported() -> None:
    data = KEYLESS.encode(Order(1))

    for old, new in ((b"Order", b"Point"), (b"Order", b"Nobody"[:5])):
        with pytest.raises(PayloadError, match="is not imported"):
            KEYLESS.decode(data.replace(old, new))


def record(module: str, name: str, **fields: Any) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(Code.RECORD, msgpack.packb([module, name, fields])))
    return packed


def test_a_field_that_was_not_sent_has_its_default_or_the_record_is_refused() -> None:
    assert KEYLESS.decode(record(__name__, "Order", number=1)) == Order(1)

    with pytest.raises(PayloadError, match="of type 'Order' arrived without its field 'number'"):
        KEYLESS.decode(record(__name__, "Order", items=[]))


def test_reading_a_record_has_no_module_import_another(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = asked.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", lazy)

    with pytest.raises(PayloadError, match="is not imported"):
        KEYLESS.decode(record("lazy", "Thing"))
    assert asked == []


def test_a_class_inside_a_function_is_no_record() -> None:
    @dataclass
    class Local:
        x: int

    with pytest.raises(PayloadError, match="QSERVE_SECRET_KEY"):
        KEYLESS.encode(Local(1))


def test_an_object_travels_signed() -> None:
    class Special(Customer):
        more: list[int]

    sent = Special(name="Dora", more=[1])
    point, arrived = KEYED.decode(KEYED.encode([Point(3), sent]))

    assert point.x == 3
    assert arrived == sent
    assert type(arrived) is Special


def test_a_pickle_signed_with_another_key_is_never_loaded() -> None:
    data = Codec(Keyring(b"other")).encode(Point(1))

    for reader in (KEYED, KEYLESS):
        with pytest.raises(PayloadError, match="without the signature"):
            reader.decode(data)


def test_a_value_over_the_limit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(PayloadError, match="takes 1005 bytes; the limit is 100"):
        Codec(max_bytes=100).encode("x" * 1002)


@pytest.mark.parametrize("codec", [KEYED, KEYLESS], ids=["with a key", "without"])
@pytest.mark.parametrize(
    "place", [lambda x: x, lambda x: [x, 1], lambda x: {"a": ([x],)}], ids=["alone", "list", "deep"]
)
def test_a_bytearray_stays_one_and_can_be_changed(codec: Codec, place: Any) -> None:
    arrived = codec.decode(codec.encode(place(bytearray(b"ab"))))

    assert arrived == place(bytearray(b"ab"))
    found = arrived
    while not isinstance(found, bytearray):
        found = found["a"] if isinstance(found, dict) else found[0]
    found[0] = 0


@pytest.mark.parametrize(
    "thing",
    [
        [],
        [1],
        {"a": 1},
        {1},
        (1, [2]),
        bytearray(b"a"),
        numpy.zeros(3),
        Point(1),
        Ref("a" * 32, None),
        a_request(),
    ],
    ids=lambda thing: type(thing).__name__,
)
@pytest.mark.parametrize(
    "places",
    [
        (lambda x: [x, x], lambda v: (v[0], v[1])),
        (lambda x: [[x], {"a": x}], lambda v: (v[0][0], v[1]["a"])),
        (lambda x: ([{"deep": (x,)}], [x]), lambda v: (v[0][0]["deep"][0], v[1][0])),
        (lambda x: [Holder(x), x], lambda v: (v[0].held, v[1])),
    ],
    ids=["twice in a list", "as two arguments", "at two depths", "in an object and beside it"],
)
def test_an_object_that_is_in_a_value_twice_arrives_as_one_object(thing: Any, places: Any) -> None:
    put, both = places

    first, second = both(KEYED.decode(KEYED.encode(put(thing))))

    assert first is second
    assert type(first) is type(thing)


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


def test_a_view_of_bytes_arrives_as_bytes_beside_anything() -> None:
    for beside in (1, Point(1)):
        assert KEYED.decode(KEYED.encode([memoryview(b"ab"), beside]))[0] == b"ab"


def test_a_value_that_contains_itself_arrives_as_one_that_does() -> None:
    endless: list[Any] = []
    endless.append({"again": endless})

    arrived = KEYED.decode(KEYED.encode([[endless], {}]))[0][0]

    assert arrived[0]["again"] is arrived


def test_a_value_that_contains_itself_is_refused_without_a_key() -> None:
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(PayloadError, match="nested too deeply"):
        KEYLESS.encode(endless)


@given(st.binary())
def test_foreign_bytes_give_the_declared_error_or_a_value(data: bytes) -> None:
    with contextlib.suppress(PayloadError):
        KEYED.decode(data)


def test_a_codec_goes_on_after_a_value_it_refused() -> None:
    codec = Codec()
    with pytest.raises(PayloadError):
        codec.encode([1, Point(1)])

    assert codec.decode(codec.encode((1, uuid.UUID(int=1), decimal.Decimal("1.10")))) == (
        1,
        uuid.UUID(int=1),
        decimal.Decimal("1.10"),
    )


WIRE: list[tuple[Code, Any, str]] = [
    (Code.TUPLE, (1, 2), "c70301920102"),
    (Code.SET, {1}, "d5029101"),
    (Code.FROZENSET, frozenset({1}), "d5039101"),
    (Code.DATETIME, datetime.datetime(2020, 1, 2, 3, 4, 5), "c71404b3323032302d30312d30325430333a30343a3035"),
    (Code.DATE, datetime.date(2020, 1, 2), "c70b05aa323032302d30312d3032"),
    (Code.TIME, datetime.time(1, 2), "c70906a830313a30323a3030"),
    (Code.TIMEDELTA, datetime.timedelta(1, 2, 3), "d60793010203"),
    (Code.UUID, uuid.UUID(int=5), "c71208c41000000000000000000000000000000005"),
    (Code.DECIMAL, decimal.Decimal("1.5"), "d609a3312e35"),
    (Code.COMPLEX, 1 + 2j, "c7130a92cb3ff0000000000000cb4000000000000000"),
    (Code.BIG_INT, 2**70, "c7170bb631313830353931363230373137343131333033343234"),
    (Code.ARRAY, numpy.arange(2, dtype="<i2"), "c70d0c93a33c69329102c40400000100"),
    (Code.SCALAR, numpy.float32(1.5), "c70b0d92a33c6634c4040000c03f"),
    (Code.BYTEARRAY, bytearray(b"a"), "c7030fc40161"),
    (
        Code.DEPLOYMENT_HANDLE,
        handles.RayServeDeploymentHandle("M", "app"),
        "c713149600a14da3617070a85f5f63616c6c5f5fc2a0",
    ),
    (
        Code.SYNC_HANDLE,
        handles.RayServeSyncHandle("M", "app").options(method_name="m"),
        "c70c159601a14da3617070a16dc2a0",
    ),
    (
        Code.NEW_HANDLE,
        handles.DeploymentHandle("M", "app").options(stream=True),
        "c713169602a14da3617070a85f5f63616c6c5f5fc3a0",
    ),
    (
        Code.GRAPH_HANDLE,
        handles.RayServeDAGHandle("g", "app").options(multiplexed_model_id="x"),
        "c714179603a167a3617070a85f5f63616c6c5f5fc2a178",
    ),
    (Code.NEW_GRAPH_HANDLE, handles.GraphHandle("g", "app"), "c713189604a167a3617070a85f5f63616c6c5f5fc2a0"),
    (Code.SLOT, Slot(1, True), "c7031e9201c3"),
    (Code.REF, Ref("a" * 32, None), "c7241f92d9206161616161616161616161616161616161616161616161616161616161616161c0"),
    (
        Code.REF_TASK,
        RefTask(Ref("a" * 32, None)),
        "c7242092d9206161616161616161616161616161616161616161616161616161616161616161c0",
    ),
    (
        Code.RESPONSE,
        DeploymentResponse(Ref("a" * 32, None)),
        "c7242192d9206161616161616161616161616161616161616161616161616161616161616161c0",
    ),
    (
        Code.HTTP_MESSAGE,
        HttpMessage("GET", "http", "/a", "", b"", ((b"h", b"v"),), ("c", 1), None, b"x", {"id": 1}),
        "c724289aa3474554a468747470a22f61a0c40092c40168c4017692a16301c0c4017881a2696401",
    ),
    (Code.STARLETTE_REQUEST, a_request(), "c716299aa3474554a468747470a12fa0c40090c0c0c4017880"),
]
"""A value for every code, and the bytes that processes of other versions read and write for it."""


@pytest.mark.parametrize(("code", "value", "data"), WIRE, ids=[code.name for code, _, _ in WIRE])
def test_the_bytes_of_a_type_do_not_change_from_version_to_version(code: Code, value: Any, data: str) -> None:
    assert KEYLESS.encode(value).hex() == data
    assert code == msgpack.unpackb(bytes.fromhex(data)).code
    kinds: dict[Code, type] = {Code.HTTP_MESSAGE: Request, Code.REF_TASK: Ref}
    assert type(KEYLESS.decode(bytes.fromhex(data))) is kinds.get(code, type(value))


OF_STORED_VALUES = {Code.BUFFER, Code.PICKLE_APART, Code.OUTSIDE, Code.BYTES}
"""Those are in values that have a claim, see test_large_values.py."""


def test_every_code_can_be_read() -> None:
    assert {code for code, _, _ in WIRE} == set(Code) - {Code.PICKLE, Code.RECORD} - OF_STORED_VALUES


def test_no_code_and_no_type_is_registered_twice() -> None:
    class Other:
        pass

    with pytest.raises(ValueError, match="already registered"):
        register(Code.TUPLE, Other, list, Other)
    with pytest.raises(ValueError, match="already registered"):
        register_packer(Code.TUPLE, Other, list)
    with pytest.raises(ValueError, match="already registered"):
        register_packer(Code.RECORD, tuple, list)
    with pytest.raises(ValueError, match="already registered"):
        register_unpacker(Code.HTTP_MESSAGE, Other)
    with pytest.raises(PayloadError, match="QSERVE_SECRET_KEY"):
        KEYLESS.encode(Other())


@pytest.mark.skipif(sys.platform != "linux", reason="it reads what Linux says of a process")
def test_a_large_value_leaves_no_memory_taken() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    size = 100 << 20
    codec, value = Codec(max_bytes=2 * size), b"x" * size
    before = resident()

    codec.encode([value])

    assert resident() - before < size // 2
