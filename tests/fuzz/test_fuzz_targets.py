"""Whatever lies in the broker or comes from a client is read, or refused with the error that its reader declares.

``make fuzz`` looks for more with coverage as its guide; what it finds goes to ``corpus/`` and is tried here ever after.
"""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import fuzz
from targets import TARGETS, Target

each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
quickly = settings(max_examples=20, deadline=None, derandomize=True, database=None)

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from(
        ["qserve.exceptions", "PayloadError", "builtins", "ValueError", "targets", "Point", "whole", "<i4"]
    )
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    extensions = st.builds(msgpack.ExtType, st.sampled_from([*range(16), *range(30, 34), 40, 41]), inner.map(_pack))
    return st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=4), inner, max_size=3) | extensions


def _pack(value: Any) -> bytes:
    return msgpack.packb(value, unicode_errors="surrogatepass")  # type: ignore[no-any-return]


packed = st.recursive(_scalars, _containers, max_leaves=12).map(_pack)


@each_target
def test_what_is_written_here_is_read(target: Target) -> None:
    for seed in target.seeds():
        target.read(seed)


@each_target
def test_what_was_once_refused_with_another_error_is_refused_as_it_should_be(target: Target) -> None:
    for data in target.corpus():
        target.run(data)


@each_target
def test_every_beginning_of_a_message_is_read_or_refused(target: Target) -> None:
    for seed in target.seeds()[:20]:  # those of stored ends are hundreds that differ in a byte
        for length in range(len(seed)):
            target.run(seed[:length])


@each_target
@quickly
@given(data=st.data())
def test_a_message_with_a_few_other_bytes_is_read_or_refused(target: Target, data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(target.corpus())))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    target.run(bytes(changed))


@each_target
@quickly
@given(data=st.binary(max_size=80) | packed)
def test_anything_else_is_read_or_refused(target: Target, data: bytes) -> None:
    target.run(data)


def test_the_short_run_finds_a_reader_that_raises_something_else() -> None:
    def read(data: bytes) -> None:
        if data[:1] == b"\xff":
            raise KeyError(data)

    tried, found = fuzz(Target("planted", read, (ValueError,), lambda: [b"seed"]), random.Random(1), seconds=30)

    assert found is not None, tried
    assert found[:1] == b"\xff"
