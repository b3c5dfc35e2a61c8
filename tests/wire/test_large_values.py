"""Values whose large parts are in a store: what leaves the message, and how it comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack
import numpy
import pandas
import pytest

from qserve.base.keyring import Keyring
from qserve.exceptions import PayloadError, PayloadTooLarge
from qserve.http import request as _request  # noqa: F401 - it registers HTTP messages for decoding
from qserve.http.message import HttpMessage
from qserve.wire.claim import BROKER, Claim, Kind, Part, apart, claim_in, wrap
from qserve.wire.codec import Codec, Heavy, light_only
from qserve.wire.codes import Code
from qserve.wire.outside import Stored

LARGE = 1000
KEY = Keyring(b"the-key-of-this-test")


class Store:
    """Keeps values in this process."""

    threshold, max_bytes = LARGE, 1 << 30

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.parts: list[Part] = []
        self.kinds: list[Kind] = []

    def put(self, parts: Sequence[Part], size: int, kind: Kind) -> Claim:
        self.parts = list(parts)
        self.kinds.append(kind)
        value = bytearray(size)
        for offset, part in parts:
            value[offset : offset + len(part)] = part
        name = f"{len(self.values):032x}"
        self.values[name] = bytes(value)
        return Claim(BROKER, "", name, size, b"d" * 32)

    def get(self, claim: Claim) -> memoryview:
        return memoryview(self.values[claim.name])

    def is_heavy(self, size: int, kind: Kind) -> bool:
        return size > 10 * LARGE


@dataclass
class Pair:
    left: Any
    right: Any = field(default=None)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture(params=[KEY, Keyring()], ids=["keyed", "keyless"])
def codec(request: pytest.FixtureRequest, store: Store) -> Codec:
    return Codec(request.param, max_bytes=10 * LARGE, values=store)


def same(one: Any, other: Any) -> bool:
    """Whether two values are alike in type and content."""
    if isinstance(one, numpy.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Pair):
        return same(one.left, other.left) and same(one.right, other.right)
    return type(one) is type(other) and bool(one == other)


ARRAY = numpy.arange(LARGE, dtype="<f8")
MANY = [
    b"x" * LARGE,
    bytearray(b"x" * LARGE),
    "text" * LARGE,
    [1.5] * LARGE,
    ARRAY,
    {"a": [ARRAY, (ARRAY + 1, b"y" * 2 * LARGE)], "b": 1},
    [bytearray(b"z" * LARGE), {"deep": [[b"q" * LARGE]]}],
    (b"x" * 10, b"y" * LARGE),
    Pair(ARRAY, {"more": b"x" * LARGE}),
    numpy.asfortranarray(ARRAY.reshape(10, 100)),
    numpy.arange(LARGE * 3)[::3],
    numpy.array(["2020-01-01"] * LARGE, dtype="datetime64[s]"),
    numpy.zeros(LARGE, dtype=[("a", "<i4"), ("b", "<f8", (2,))]),
    numpy.zeros((LARGE, 0)),
    [b"a" * 600, b"b" * 600],
]


@pytest.mark.parametrize("value", MANY, ids=lambda value: f"{type(value).__name__}")
def test_a_large_value_comes_back_as_it_was(codec: Codec, store: Store, value: Any) -> None:
    data = codec.encode(value)

    assert same(codec.decode(data), value)
    if getattr(value, "size", 1):
        assert claim_in(data) is not None
        assert len(data) < LARGE  # nothing large travels
        assert len(store.values) == 1  # all of it is one value of the store


@pytest.mark.parametrize("value", [None, "x", b"x" * (LARGE - 10), numpy.arange(9), [1, {"a": b"b"}], Pair(1)], ids=str)
def test_a_small_value_travels_as_without_a_store(codec: Codec, store: Store, value: Any) -> None:
    data = codec.encode(value)

    assert claim_in(data) is None
    assert data == Codec(codec._keys).encode(value) or isinstance(value, Pair)
    assert store.values == {}


def test_the_same_bytes_are_not_copied_on_their_way_to_the_store(codec: Codec, store: Store) -> None:
    data, array = b"x" * LARGE, numpy.zeros(100_000)
    columns = numpy.zeros((1000, 100), order="F")

    codec.encode({"data": data, "array": array, "columns": columns})
    addresses = {numpy.frombuffer(part, "u1").__array_interface__["data"][0] for _, part in store.parts}

    owners = (numpy.frombuffer(data, "u1"), array, columns)
    assert addresses == {owner.__array_interface__["data"][0] for owner in owners}


def test_parts_are_aligned_and_arrays_are_views_of_the_store_that_cannot_be_changed(codec: Codec, store: Store) -> None:
    data = codec.encode({"a": b"x" * (LARGE + 1), "b": ARRAY})
    claim = claim_in(data)
    assert claim is not None

    array = codec.decode(data)["b"]

    assert [offset % 64 for offset, _ in store.parts] == [0, 0]
    assert numpy.shares_memory(array, numpy.frombuffer(store.get(claim), "u1"))
    with pytest.raises(ValueError, match="assignment destination is read-only"):
        array[0] = 1
    array.copy()[0] = 1


def test_small_arrays_can_be_changed_beside_large_ones(codec: Codec) -> None:
    small, large = codec.decode(codec.encode([numpy.arange(3.0), ARRAY]))

    small[0] = 5
    assert not large.flags.writeable


def test_what_is_pickled_leaves_its_arrays_in_the_store_and_its_code_signed_in_the_message(store: Store) -> None:
    store.threshold = 5 * LARGE
    codec = Codec(KEY, values=store)
    frame = pandas.DataFrame({"a": ARRAY, "b": ARRAY + 1})

    data = codec.encode([frame, lambda x: x + 1])
    found, function = codec.decode(data)

    assert found.equals(frame)
    assert function(1) == 2
    assert b"cloudpickle" in apart(data)[1]
    with pytest.raises(PayloadError, match="without the signature"):
        Codec(Keyring(b"another-key-of-this-test"), values=store).decode(data)


def test_a_pickle_that_is_large_itself_goes_to_the_store_with_its_signature(store: Store) -> None:
    codec = Codec(KEY, values=store)
    data = codec.encode({"code": lambda: 1, "text": ["text"] * LARGE + [str(n) for n in range(LARGE)]})
    (name,) = store.values

    assert codec.decode(data)["code"]() == 1
    store.values[name] = store.values[name].replace(b"text", b"test")
    with pytest.raises(PayloadError, match="without the signature"):
        codec.decode(data)


def test_an_array_that_is_in_a_value_twice_is_stored_once_and_arrives_as_one(store: Store) -> None:
    codec = Codec(KEY, values=store)

    one, other = codec.decode(codec.encode([ARRAY, ARRAY]))

    assert one is other
    assert len(store.parts) == 1


def test_the_store_learns_what_a_value_is_for(codec: Codec, store: Store) -> None:
    codec.encode(ARRAY)
    codec.encode(ARRAY, Kind.KEPT)

    assert store.kinds == [Kind.PASSING, Kind.KEPT]


def test_an_http_request_with_a_large_body_is_stored(codec: Codec, store: Store) -> None:
    message = HttpMessage("POST", "http", "/a", "/a", b"", (), ("::1", 1), None, b"x" * LARGE, {})

    data = codec.encode(message)

    assert len(data) < LARGE
    assert len(store.values) == 1


def test_what_takes_long_is_not_stored_where_only_light_values_may_be(codec: Codec, store: Store) -> None:
    with light_only():
        codec.encode(ARRAY)
        with pytest.raises(Heavy):
            codec.encode(b"x" * 20 * LARGE)
    assert len(store.values) == 1
    codec.encode(b"x" * 20 * LARGE)
    assert len(store.values) == 2


def test_a_value_over_the_limit_of_the_store_is_refused_and_the_text_names_the_setting(store: Store) -> None:
    store.max_bytes = 5 * LARGE

    with pytest.raises(
        PayloadTooLarge, match="a value of type 'ndarray' takes 8000 bytes; the limit is 5000, set by QSERVE_MAX_VALUE"
    ):
        Codec(values=store).encode(ARRAY)
    assert store.values == {}


def test_without_a_store_the_limit_is_that_of_a_message_and_a_claim_cannot_be_read(store: Store) -> None:
    with pytest.raises(PayloadTooLarge, match="takes 80.. bytes; the limit is 100"):
        Codec(max_bytes=100).encode(ARRAY)
    with pytest.raises(PayloadError, match="a value of 8000 bytes is in a store that is not open here"):
        Codec().decode(Codec(values=store).encode(ARRAY))


@pytest.mark.parametrize(
    "place", [[0, LARGE + 1], [-1, 5], [5, -1], [0], [0, 1, 2], None, [0.0, 1], [True, 1], [LARGE, 1]], ids=str
)
def test_a_part_that_is_outside_of_its_value_is_refused(store: Store, place: Any) -> None:
    claim = store.put([(0, memoryview(bytes(LARGE)))], LARGE, Kind.KEPT)

    with pytest.raises(PayloadError, match="a part of a stored value is"):
        Codec(values=store).decode(wrap(claim, msgpack.packb(msgpack.ExtType(Code.BUFFER, msgpack.packb(place)))))


def test_a_part_that_holds_itself_is_refused(store: Store) -> None:
    part = msgpack.ExtType(Code.BUFFER, msgpack.packb([0, LARGE]))
    whole = msgpack.packb(msgpack.ExtType(Code.OUTSIDE, msgpack.packb(part)))
    claim = store.put([(0, memoryview(whole.ljust(LARGE, b"\xc0")))], len(whole), Kind.KEPT)

    with pytest.raises(PayloadError):
        Codec(values=store).decode(wrap(claim, whole))


# -- bodies of HTTP requests -----------------------------------------------------------------------


def with_body(body: Any) -> HttpMessage:
    return HttpMessage("POST", "http", "/", "", b"", ((b"a", b"b"),), None, None, body)


def test_a_body_that_is_stored_already_is_claimed_and_arrives_as_a_view(codec: Codec, store: Store) -> None:
    body = b"x" * (3 * LARGE)
    claim = store.put([(0, memoryview(body))], len(body), Kind.KEPT)

    data = codec.encode([[with_body(Stored(claim))], {}], Kind.KEPT)

    assert claim_in(data) == claim and len(data) < LARGE and len(store.values) == 1
    ((request,), _) = codec.decode(data)
    found = request.scope["qserve.request"].body
    assert type(found) is memoryview and found == body


def test_a_stored_body_alone_arrives_as_bytes(codec: Codec, store: Store) -> None:
    claim = store.put([(0, memoryview(b"x" * LARGE))], LARGE, Kind.KEPT)

    assert codec.decode(codec.encode({"body": Stored(claim)})) == {"body": b"x" * LARGE}
    assert codec.decode(codec.encode(Stored(claim))) == b"x" * LARGE


def test_long_headers_beside_a_stored_body_travel_themselves(codec: Codec, store: Store) -> None:
    claim = store.put([(0, memoryview(b"x" * LARGE))], LARGE, Kind.KEPT)
    headers = tuple((b"name", b"v" * (LARGE // 2)) for _ in range(5))

    data = codec.encode(replace(with_body(Stored(claim)), headers=headers))

    assert claim_in(data) == claim and len(store.values) == 1
    assert codec.decode(data).headers.getlist("name") == ["v" * (LARGE // 2)] * 5


def test_a_value_has_one_stored_body_at_most(codec: Codec, store: Store) -> None:
    claims = [store.put([(0, memoryview(b"x" * LARGE))], LARGE, Kind.KEPT) for _ in range(2)]
    with pytest.raises(PayloadError, match="two bodies"):
        codec.encode([Stored(claim) for claim in claims])


@pytest.mark.parametrize("wrapped", [lambda request: request, lambda request: [{"a": request}]])
def test_a_request_is_sent_on_with_its_body_as_a_part(codec: Codec, store: Store, wrapped: Any) -> None:
    body = b"x" * (3 * LARGE)
    first = codec.decode(codec.encode(wrapped(with_body(body))))

    second = codec.decode(codec.encode(first))

    found = second if wrapped(1) == 1 else second[0]["a"]
    assert type(found.scope["qserve.request"].body) is memoryview
    assert list(map(len, store.values.values())) == [len(body)] * 2
