"""Failures arrive as the original type where it is known, and always as text."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import json
import pickle
import subprocess
import sys
import types
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.exceptions import BackPressureError, PayloadError, TaskError
from qserve.wire.failure import MESSAGE_LIMIT, Failure


class TwoArguments(Exception):
    def __init__(self, left: int, right: int) -> None:
        super().__init__(left, right)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Hostile(Exception):
    """Every part that a description asks for raises, and not even an Exception."""

    def __str__(self) -> str:
        raise SystemExit

    @property
    def __notes__(self) -> list[str]:
        raise KeyboardInterrupt

    @property
    def args(self) -> tuple[object, ...]:  # type: ignore[override]
        raise GeneratorExit


def arrive(error: BaseException) -> BaseException:
    return Failure.decode(Failure.of(error, "Model").encode()).to_exception()


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


class OwnNew(Exception):
    def __new__(cls, number: int, *, name: str) -> OwnNew:
        return super().__new__(cls)

    def __init__(self, number: int, *, name: str) -> None:
        self.name = name


class WithSlots(Exception):
    __slots__ = ("place",)

    def __init__(self, place: int) -> None:
        self.place = place


class OwnGroup(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception]) -> OwnGroup:
        return super().__new__(cls, "own", errors)


def error_of(source: str) -> BaseException:
    try:
        exec(source)
    except Exception as error:
        return error
    raise AssertionError


def all_errors() -> list[Exception]:
    """Return an instance of every exception of Python itself, and of those that are hard to make again."""
    kinds = [kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    made = []
    for kind in kinds:
        if not issubclass(kind, UnicodeError | ExceptionGroup | StopIteration | StopAsyncIteration):
            made.append(kind("a message"))
    return made


@pytest.mark.parametrize(
    "error",
    [
        *all_errors(),
        KeyError("k"),
        OSError(2, "no"),
        TwoArguments(1, 2),
        OwnNew(1, name="x"),
        WithSlots(5),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        json.JSONDecodeError("m", "doc", 1),
        subprocess.CalledProcessError(1, ["ls"]),
        ValueError([1, {"a": b"x"}]),
        asyncio.IncompleteReadError(b"x", 3),
        ExceptionGroup("grp", [ValueError(1)]),
    ],
    ids=repr,
)
def test_an_error_is_the_original_type_and_a_task_error(error: Exception) -> None:
    arrived = arrive(raised(error))

    assert isinstance(arrived, type(error))
    assert isinstance(arrived, TaskError)
    assert repr(arrived.args).replace("TaskError(ValueError)", "ValueError") == repr(error.args)


def test_a_group_arrives_with_its_members_and_each_with_its_origin() -> None:
    below = Failure.of(raised(KeyError("k")), "Below").to_exception()
    arrived = arrive(raised(ExceptionGroup("several", [ValueError(1), below])))  # type: ignore[list-item]

    assert isinstance(arrived, ExceptionGroup)
    assert arrived.message == "several"
    caught = []
    try:
        raise arrived
    except* KeyError as group:
        caught = list(group.exceptions)
    except* ValueError as group:
        assert [error.args for error in group.exceptions] == [(1,)]
    assert [(error.args, error.deployment) for error in caught] == [(("k",), "Below")]  # type: ignore[attr-defined]
    assert "raise error" in str(arrived)
    assert isinstance(arrive(raised(OwnGroup([ValueError(1)]))), OwnGroup)


def test_a_group_with_many_members_is_as_small_as_other_errors() -> None:
    many: Exception = ExceptionGroup("many", [ValueError("x" * 5000) for _ in range(1000)])
    deep: Exception = many
    for _ in range(50):
        deep = ExceptionGroup("deep", [deep])

    for error in (many, deep):
        assert len(Failure.of(raised(error)).encode()) < 200_000
        assert isinstance(arrive(raised(error)), ExceptionGroup)
    assert "many (1000 sub-exceptions)" in str(arrive(raised(many)))


@pytest.mark.parametrize(
    ("source", "attributes"),
    [
        ("open('/nowhere')", {"errno": 2, "filename": "/nowhere"}),
        ("import nowhere", {"name": "nowhere"}),
        ("b'\\xff'.decode()", {"reason": "invalid start byte", "start": 0, "object": b"\xff"}),
        ("compile('a b', 'file', 'exec')", {"lineno": 1, "filename": "file"}),
        ("raise WithSlots(5)", {"place": 5}),
    ],
)
def test_an_error_keeps_what_python_keeps_outside_of_its_dict(source: str, attributes: dict[str, Any]) -> None:
    arrived = arrive(error_of(source))

    assert {name: getattr(arrived, name) for name in attributes} == attributes


def test_an_error_that_cannot_be_remade_is_its_nearest_base_and_has_the_whole_text() -> None:
    arrived = arrive(error_of("import pydantic; pydantic.TypeAdapter(int).validate_python('x')"))

    assert isinstance(arrived, ValueError)
    assert "ValidationError: 1 validation error for int" in str(arrived)
    assert "(in deployment 'Model')" in str(arrived)
    assert "Traceback" in str(arrived)


@pytest.mark.parametrize("error", [StopIteration("end"), StopAsyncIteration("end")], ids=repr)
def test_the_end_of_an_iteration_is_an_error_that_ends_none(error: Exception) -> None:
    arrived = arrive(raised(error))

    assert not isinstance(arrived, StopIteration | StopAsyncIteration)
    assert str(arrived).startswith(f"{type(error).__name__}: end (in deployment 'Model')")
    assert "raise error" in str(arrived)


def test_a_failure_that_an_older_version_wrote_is_read() -> None:
    failure = Failure("builtins", "ValueError", "no", "trace", "Model", ("no",), {"a": 1})

    assert Failure.decode(msgpack.packb(msgpack.unpackb(failure.encode())[:8])) == failure


def test_its_text_has_the_message_the_deployment_and_the_remote_traceback() -> None:
    arrived = arrive(raised(ZeroDivisionError("by zero")))

    assert str(arrived).startswith("ZeroDivisionError: by zero (in deployment 'Model')")
    assert "raise error" in str(arrived)


def test_a_class_defined_in_a_function_arrives_as_a_task_error_that_names_it() -> None:
    class Local(Exception):
        pass

    class Stubborn(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("not me")

    for kind in (Local, Stubborn):
        arrived = arrive(raised(kind("here")))

        assert isinstance(arrived, TaskError)
        assert arrived.remote_type.endswith(kind.__name__)
        assert "here" in str(arrived)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_is_no_exception_does_not_end_the_caller(kind: type[BaseException]) -> None:
    arrived = arrive(raised(kind()))

    assert isinstance(arrived, TaskError)
    assert not isinstance(arrived, kind)


def test_an_error_whose_text_raises_is_described_all_the_same() -> None:
    assert "not available: RuntimeError" in str(arrive(raised(Unprintable())))


def test_a_long_message_is_cut_and_says_so() -> None:
    failure = Failure.of(raised(ValueError("x" * 1_000_000)))

    assert len(failure.message) < MESSAGE_LIMIT + 100
    assert failure.message.endswith("(truncated)")
    assert len(failure.encode()) < 100_000


def test_a_failure_names_its_first_deployment_through_every_caller() -> None:
    first = arrive(raised(ZeroDivisionError("by zero")))

    second = Failure.of(first, "Outer").to_exception()

    assert second.deployment == "Model"  # type: ignore[attr-defined]


def test_our_own_refusals_arrive_as_themselves() -> None:
    arrived = Failure.decode(Failure.of(BackPressureError("full")).encode()).to_exception()

    assert type(arrived) is BackPressureError


def test_a_message_cannot_have_a_module_imported_or_a_function_called() -> None:
    arrived = Failure("os", "system", "echo", args=("echo owned",)).to_exception()

    assert type(arrived).__mro__[1] is TaskError or isinstance(arrived, TaskError)
    assert not isinstance(arrived, OSError)


def test_the_name_of_a_type_has_no_module_import_another(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = asked.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", lazy)

    assert isinstance(Failure("lazy", "Error", "why").to_exception(), TaskError)
    assert asked == []


def test_an_error_can_be_pickled_on() -> None:
    arrived = pickle.loads(pickle.dumps(arrive(raised(ZeroDivisionError("by zero")))))

    assert isinstance(arrived, ZeroDivisionError)
    assert "by zero" in str(arrived)


def test_an_error_whose_class_fights_its_description_still_arrives_as_one() -> None:
    arrived = arrive(raised(Hostile()))

    assert isinstance(arrived, TaskError)
    assert arrived.remote_type == "Hostile"
    assert "cannot be described: GeneratorExit" in str(arrived)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(2**70),
        ValueError(*range(1_000_000)),
        type("E" * 100_000, (Exception,), {"__module__": 5})("odd names"),
        ExceptionGroup("several", [ValueError("\ud800"), OSError(2, "no")]),
    ],
    ids=["a long integer", "many arguments", "odd names", "a group"],
)
def test_whatever_an_error_holds_it_can_be_sent_and_is_small(error: Exception) -> None:
    failure = Failure.of(raised(error))

    assert len(failure.encode()) < 100_000
    assert isinstance(arrive(raised(error)), TaskError)


def test_a_long_message_leaves_the_frames_of_its_traceback() -> None:
    assert "raise error" in Failure.of(raised(ValueError("x" * 5_000_000))).traceback


@given(st.binary())
def test_foreign_bytes_give_the_declared_error(data: bytes) -> None:
    with contextlib.suppress(PayloadError):
        Failure.decode(data)


@pytest.mark.parametrize("deployment", ["", "Model"])
def test_back_pressure_arrives_with_the_time_to_come_back(deployment: str) -> None:
    arrived: Any = Failure.decode(Failure.of(BackPressureError("full", 7), deployment).encode()).to_exception()
    assert isinstance(arrived, BackPressureError)
    assert arrived.retry_after_s == 7


def test_a_time_to_come_back_that_is_none_is_not_taken_over() -> None:
    failure = Failure(BackPressureError.__module__, "BackPressureError", "full", attributes={"retry_after_s": "soon"})
    arrived: Any = failure.to_exception()
    assert arrived.retry_after_s == 1
