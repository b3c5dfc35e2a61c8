"""Lines of the log: one for an event, whatever the values in it hold; a traceback's cannot pass for one of them."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.base.context import RequestContext, request_context
from qserve.base.log import LINE_LIMIT, Formatter
from qserve.base.tracebacks import LIMIT

FORGED = "harmless\r\n12:00:00 ERROR [gateway] all is lost\x1b[2J\x85\u2028\u202e"
BEGINNING = re.compile(r"\d\d:\d\d:\d\d [A-Z]+ \[")


class Unprintable:
    def __str__(self) -> str:
        raise SystemError

    __repr__ = __str__


def record(message: str, *values: Any, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("qserve.test", logging.INFO, __file__, 1, message, values, exc_info)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def as_text(*args: Any, **kwargs: Any) -> str:
    return Formatter("Model").format(record(*args, **kwargs))


def as_json(*args: Any, **kwargs: Any) -> dict[str, Any]:
    line = Formatter("Model", as_json=True).format(record(*args, **kwargs))
    assert line.isascii()
    assert line.isprintable()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_line_names_time_level_source_and_request() -> None:
    token = request_context.set(RequestContext(request_id="abc"))
    try:
        assert re.fullmatch(r"\d\d:\d\d:\d\d INFO \[Model abc\] ready in 3 s", as_text("ready in %d s", 3))
    finally:
        request_context.reset(token)
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO \[Model\] ready", as_text("ready"))


@given(st.text())
def test_no_value_can_begin_a_line_or_speak_to_a_terminal(value: str) -> None:
    line = as_text("path %s", value)
    assert len(line.splitlines()) == 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e]", line)


def test_what_is_escaped_can_still_be_read() -> None:
    assert as_text("%s", FORGED).endswith(r"harmless\r\n12:00:00 ERROR [gateway] all is lost\x1b[2J\x85\u2028\u202e")
    assert as_text("%s", "schön 漢字 👍").endswith("schön 漢字 👍")


@given(st.text(min_size=1, max_size=8).map(lambda text: text * LINE_LIMIT))
def test_a_line_has_a_limit_in_bytes_and_says_that_it_was_cut(value: str) -> None:
    line = as_text("%s", value)
    assert len(line.encode(errors="backslashreplace")) <= LINE_LIMIT + 20
    assert line.endswith("… (truncated)")


@given(st.text())
def test_no_line_of_a_traceback_can_pass_for_an_event(message: str) -> None:
    first, *others = as_text("failed", error=raised(ValueError(message + FORGED))).split("\n")

    assert BEGINNING.match(first)
    assert others[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in others)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", "\n".join(others))


def test_a_long_message_leaves_the_frames_of_its_traceback() -> None:
    said = as_text("failed", error=raised(ValueError("x" * 5_000_000)))
    assert len(said) < LINE_LIMIT + 2 * LIMIT
    assert "raise error" in said
    assert "(truncated)" in said


def test_a_value_that_cannot_be_written_does_not_lose_the_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert "check of %s (its values cannot be written: SystemError)" in as_text("check of %s", Unprintable())
    assert "(its values cannot be written: TypeError)" in as_text("%d %d", 1)
    assert capsys.readouterr().err == ""


def test_json_has_one_object_for_an_event_with_its_traceback_inside() -> None:
    found = as_json("failed: %s", FORGED, error=raised(ValueError(FORGED)))

    assert (found["level"], found["source"], found["logger"]) == ("INFO", "Model", "qserve.test")
    assert found["message"] == f"failed: {FORGED}"
    assert found["traceback"].startswith("Traceback (most recent call last):\n")
    assert "request_id" not in found
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found["time"])


@given(st.text())
def test_json_keeps_every_message_as_it_is(value: str) -> None:
    assert as_json("%s!", value)["message"] == f"{value}!"
