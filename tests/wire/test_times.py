"""The times of steps in front of values: they arrive as they were, and nobody can make them anything else."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.base.carried import Carried
from qserve.base.keys import Keys
from qserve.engine.step import Stepper, UserCall
from qserve.exceptions import PayloadError
from qserve.http.render import parse
from qserve.wire.codec import Codec
from qserve.wire.envelope import Answer, Header
from qserve.wire.times import STEPS_LIMIT, StepTime, server_timing, split_times, step_time, with_times

TIME = StepTime("Model.predict", 0.5, 12.25)


@given(
    st.binary(),
    st.dictionaries(
        st.text(max_size=5),
        st.builds(step_time, st.text(), st.text(), st.floats(allow_nan=False), st.floats(allow_nan=False)),
        max_size=5,
    ),
)
def test_times_and_values_arrive_as_they_were(value: bytes, times: dict[str, StepTime]) -> None:
    assert split_times(with_times(value, times)) == (times, value)
    for time in times.values():
        entry = r'[A-Za-z0-9_.-]+;dur=\d+\.\d{3};desc="queued \d+\.\d{3}, run \d+\.\d{3}"'
        assert re.fullmatch(entry, server_timing([time]))


@pytest.mark.parametrize("value", [1, None, "text", b"bytes", [1, {"a": 2}]])
def test_a_value_without_times_is_left_as_it_is(value: Any) -> None:
    encoded = Codec().encode(value)
    assert split_times(encoded) == ({}, encoded)


def test_only_so_many_steps_are_kept() -> None:
    times, value = split_times(with_times(b"v", {str(number): TIME for number in range(500)}))
    assert (list(times), value) == ([str(number) for number in range(STEPS_LIMIT)], b"v")


@pytest.mark.parametrize(
    "times",
    [
        1, ["a"], [["0", "Model", 1.0]], [["0", "Model", 1, 2.0]], [["0", "Model", -1.0, 2.0]],
        [[0, "Model", 1.0, 2.0]], [["0", "Model", 1e300, 2.0]], [["0", "Model", float("nan"), 2.0]],
        [["0", "Model", 1.0, 2.0]] * 65,
    ],
)  # fmt: skip
def test_times_that_are_malformed_are_refused(times: Any) -> None:
    packed = msgpack.packb(times)
    with pytest.raises(PayloadError):
        split_times(b"\xc1T" + len(packed).to_bytes(4, "big") + packed + b"v")


@given(st.binary(max_size=50))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    with contextlib.suppress(PayloadError):
        split_times(b"\xc1T" + data)


def test_a_name_from_outside_cannot_add_a_header() -> None:
    assert server_timing([StepTime("a;dur=1\r\nset-cookie: b", 0.0, 0.0)]).splitlines() == [
        'a_dur_1_set-cookie_b;dur=0.000;desc="queued 0.000, run 0.000"'
    ]


def test_the_last_step_puts_the_times_of_all_before_it_in_their_order() -> None:
    call = UserCall("__call__", (), {}, times={"10": TIME._replace(name="ten"), "2": TIME._replace(name="two")})
    header = Header("a" * 32, "app", None, 2**42, Answer.JSON, carried=Carried(is_timed=True))
    stepper = Stepper(None, Keys(), Codec())  # type: ignore[arg-type]
    answer = parse(stepper.conclude(header, call, {"x": 1}, TIME).payload)
    (timing,) = [value for name, value in answer.headers if name == "server-timing"]
    assert re.findall(r"([\w.]+);dur=12\.750", timing) == ["two", "ten", "Model.predict"]
    assert answer.body == b'{"x":1}'
