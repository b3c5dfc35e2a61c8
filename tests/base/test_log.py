"""Lines of the log: one for an event, whatever the values in it hold; a traceback's cannot pass for one of them."""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.base import log
from qserve.base.carried import Carried
from qserve.base.context import RequestContext, request_context
from qserve.base.log import LINE_LIMIT, Formatter, log_to_terminal, of_request
from qserve.base.settings import Settings
from qserve.base.tracebacks import LIMIT

FORGED = "harmless\r\n12:00:00 ERROR [gateway] all is lost\x1b[2J\x85\u2028\u202e"
BEGINNING = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ \[")


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
        assert re.fullmatch(BEGINNING.pattern + r"Model abc\] ready in 3 s", as_text("ready in %d s", 3))
    finally:
        request_context.reset(token)
    assert re.fullmatch(BEGINNING.pattern + r"Model\] ready", as_text("ready"))
    other = record("was refused")
    other.__dict__.update(of_request("xyz", status=404))
    assert Formatter("gateway").format(other).endswith(" INFO [gateway xyz] was refused")
    assert (
        json.loads(Formatter("gateway", as_json=True).format(other)).items()
        >= {"request_id": "xyz", "status": 404}.items()
    )


@given(st.text())
def test_no_value_can_begin_a_line_or_speak_to_a_terminal(value: str) -> None:
    line = as_text("path %s", value)
    assert len(line.splitlines()) == 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e]", line)


def test_a_json_line_names_the_trace_and_the_span_of_its_request() -> None:
    carried = Carried("00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    token = request_context.set(RequestContext(request_id="abc", carried=carried))
    try:
        found = as_json("ready")
    finally:
        request_context.reset(token)
    assert (found["trace_id"], found["span_id"]) == ("1" * 32, "2" * 16)
    assert "trace_id" not in as_json("ready")


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
    assert (found["levelname"], found["filename"], found["lineno"]) == ("INFO", "test_log.py", 1), "as in Ray Serve"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", found["asctime"])
    assert str(found["timestamp_ns"]).startswith(str(int(datetime.datetime.fromisoformat(found["time"]).timestamp())))


@given(st.text())
def test_json_keeps_every_message_as_it_is(value: str) -> None:
    assert as_json("%s!", value)["message"] == f"{value}!"


# -- where a process logs --------------------------------------------------------------------------


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The root logger, which is as it was afterwards."""
    found = logging.getLogger()
    handlers, level, noisy = [*found.handlers], found.level, logging.getLogger("asyncio").level
    monkeypatch.setattr(log, "_own", {})
    yield found
    for handler in log._own.get(os.getpid(), ()):
        handler.close()
    found.handlers[:], found.level = handlers, level
    for name in log._NOISY:
        logging.getLogger(name).setLevel(noisy)


def test_a_deployment_says_how_it_logs_and_the_settings_what_it_does_not_say(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_terminal(
        "Model", Settings(log_level="debug"), {"encoding": "JSON", "additional_log_standard_attrs": ["lineno", "name"]}
    )

    logging.getLogger("shop").debug("ready")

    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["message"], said["name"], type(said["lineno"])) == ("ready", "shop", int)


def test_a_process_may_be_told_again_how_to_log(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    mine = logging.NullHandler()
    for level in ("INFO", 40):
        log_to_terminal("Model", Settings(), {"log_level": level})
        root.addHandler(mine)

    logging.getLogger("shop").warning("hidden")
    logging.getLogger("shop").error("shown")

    assert len(capsys.readouterr().err.splitlines()) == 1
    assert mine in root.handlers, "it is the program's own"


def test_each_process_has_log_files_of_its_own_and_the_next_goes_on_with_them(
    root: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "FILE_LIMIT", 1000)
    monkeypatch.setattr(log, "OLD_FILES", 2)
    other = log._file_in(tmp_path / "logs", "shop-a_b")

    for number in range(100):
        if number in (0, 50):
            log_to_terminal("Model", Settings(), {"logs_dir": str(tmp_path / "logs")}, "shop-a/b")
        logging.getLogger("shop").info("line %d of them", number)
    other.close()

    files = sorted(path.name for path in (tmp_path / "logs").glob("*.log*"))
    [own] = {name.partition(".log")[0] for name in files if "-1.log" in name}
    assert files == [own.removesuffix("1") + "0.log", *(f"{own}.log{end}" for end in ("", ".1", ".2"))]
    assert (tmp_path / "logs" / f"{own}.log").read_text().endswith("line 99 of them\n")


def test_a_folder_that_cannot_be_written_does_not_stop_a_replica(
    root: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    log_to_terminal("Model", Settings(), {"logs_dir": str(tmp_path / "file" / "logs")}, "shop-Model")

    assert "ERROR [Model] there is no log file in" in capsys.readouterr().err
