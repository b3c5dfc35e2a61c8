"""A value that is nested too deeply is refused when it is written and when it is read, on the smallest of stacks."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gevent
import msgpack
import pytest
from pydantic import BaseModel

import qserve.calls.responses  # noqa: F401  its import lets refs be encoded
from qserve.base.keyring import Keyring
from qserve.calls.ref import Ref
from qserve.exceptions import PayloadError
from qserve.wire.codec import DEPTH_LIMIT, Codec, unpack
from qserve.wire.codes import Code

KEYED = Codec(Keyring(b"key"))
KEYLESS = Codec()
SMALL_STACK = 256 * 1024


@dataclass
class Node:
    inner: Any


class Model(BaseModel):
    inner: Any


WRAPPERS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "list": (1, lambda value: [value]),
    "dict": (1, lambda value: {"key": value}),
    "tuple": (2, lambda value: (value,)),
    "frozenset": (2, lambda value: frozenset((value,))),
    "dataclass": (3, Node),
    "model": (3, lambda value: Model(inner=value)),
    "ref": (2, Ref.resolved),
    "siblings": (3, lambda value: [1, (2, value), (3, [4])]),
}
"""How each container nests a value, and how many levels of the wire it takes."""


def nested(wrap: Callable[[Any], Any], times: int) -> Any:
    value: Any = 1
    for _ in range(times):
        value = wrap(value)
    return value


def packed(code: int, times: int) -> bytes:
    """Nested extensions as an attacker writes them, without any container between them."""
    data: bytes = msgpack.packb(1)
    for _ in range(times):
        data = msgpack.packb(msgpack.ExtType(code, data))
    return data


def in_main_thread(call: Callable[[], None]) -> None:
    call()


def in_small_thread(call: Callable[[], None], stack: int = SMALL_STACK) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    before = threading.stack_size(stack)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]


def in_greenlet(call: Callable[[], None]) -> None:
    gevent.spawn(call).get()


@pytest.fixture(params=[in_main_thread, in_small_thread, in_greenlet], ids=lambda run: run.__name__)
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[], None]], None]]:
    return request.param


Run = Callable[[Callable[[], None]], None]
each_wrapper = pytest.mark.parametrize("name", WRAPPERS)


@each_wrapper
def test_a_value_at_the_limit_arrives(run: Run, name: str) -> None:
    levels, wrap = WRAPPERS[name]
    data = []

    def call() -> None:
        data.append(KEYLESS.encode(nested(wrap, DEPTH_LIMIT // levels)))
        again = KEYLESS.encode(KEYLESS.decode(data[0]))
        assert again == data[0]

    run(call)


@each_wrapper
@pytest.mark.parametrize("times", [1, 100])
def test_a_value_beyond_the_limit_is_refused_before_it_is_sent(run: Run, name: str, times: int) -> None:
    levels, wrap = WRAPPERS[name]

    def call() -> None:
        value = nested(wrap, DEPTH_LIMIT // levels + times)
        with pytest.raises(PayloadError, match=f"nested too deeply.*the limit is {DEPTH_LIMIT} levels"):
            KEYLESS.encode(value)

    run(call)


@pytest.mark.parametrize("name", ["list", "dict"])
@pytest.mark.parametrize("times", [DEPTH_LIMIT + 1, 500, 511, 100_000])
def test_lists_and_dicts_are_refused_before_they_take_any_stack(name: str, times: int) -> None:
    value = nested(WRAPPERS[name][1], times)

    def call() -> None:
        with pytest.raises(PayloadError, match="nested too deeply"):
            KEYLESS.encode(value)

    in_small_thread(call, SMALL_STACK // 2)


@pytest.mark.parametrize("code", [Code.TUPLE, Code.SET, Code.RECORD, Code.REF, Code.PICKLE, 99])
@pytest.mark.parametrize("times", [DEPTH_LIMIT + 1, 1000, 20_000])
def test_bytes_that_are_nested_by_hand_are_refused(run: Run, code: int, times: int) -> None:
    def call() -> None:
        with pytest.raises(PayloadError):
            KEYLESS.decode(packed(code, times) if times < 5000 else b"\xc9\xff\xff\xff\xff\x01" * times)

    run(call)


@pytest.mark.parametrize("head", [b"\x91", b"\x81\x01", b"\xdd\x00\x00\x00\x01", b"\xd4\x01", b"\xc7\x02\x01\x91"])
@pytest.mark.parametrize("times", [DEPTH_LIMIT + 1, 100_000])
def test_heads_without_an_end_are_refused(run: Run, head: bytes, times: int) -> None:
    def call() -> None:
        for data in (head * times, head * times + b"\x01" * times):
            with pytest.raises(PayloadError):
                KEYLESS.decode(data)

    run(call)


def test_lists_beyond_the_limit_are_refused_by_their_reader(run: Run) -> None:
    def call() -> None:
        for times in (DEPTH_LIMIT + 1, 1000):
            with pytest.raises(PayloadError, match="the limit is 256 levels"):
                KEYLESS.decode(b"\x91" * times + b"\x01")
        with pytest.raises(PayloadError, match="the limit is 4 levels"):
            unpack(b"\x91" * 5 + b"\x01", "a record", depth=4)

    run(call)


def test_a_pickle_that_is_nested_too_deeply_is_refused_before_it_is_sent(run: Run) -> None:
    if run is in_small_thread and (3, 12) <= sys.version_info < (3, 14):
        pytest.skip("these versions of Python count how deep they are in C, however small the stack is")

    def call() -> None:
        with pytest.raises(PayloadError, match="nested too deeply"):
            KEYED.encode(nested(Node, 100_000))

    run(call)


@pytest.mark.parametrize("wrap", [lambda value: [value, value], lambda value: (value, value)], ids=["list", "tuple"])
def test_what_contains_itself_more_than_once_is_refused_at_once(wrap: Callable[[Any], Any]) -> None:
    endless: list[Any] = []
    endless += [endless, wrap(endless)] * 20

    with pytest.raises(PayloadError, match="or contains itself"):
        KEYLESS.encode(endless)


def test_a_claim_of_many_items_or_levels_takes_no_memory() -> None:
    for claim in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdd\x00\x0f\xff\xff" * 200,
    ):
        with pytest.raises(PayloadError):
            KEYLESS.decode(claim + bytes(100))
