"""Logging: one line for an event, with the deployment and the request that it belongs to.

The text of an event may come from outside: a path, an ID, the message of an exception. Control characters in it are
escaped, and a line has at most ``LINE_LIMIT`` bytes. A traceback follows its line, and each of its own lines is
indented, so that none can be mistaken for an event. With ``QSERVE_LOG_FORMAT=json`` each event is one JSON object on
one line, with its traceback inside.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import json
import logging
import logging.handlers
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qserve.base.context import request_context
from qserve.base.settings import Settings
from qserve.base.tracebacks import CUT, full_traceback

LINE_LIMIT = 8192
FILE_LIMIT, OLD_FILES = 16 << 20, 5
"""How long a log file gets before it is renamed to ``.1``, and how many of those are kept."""
STANDARD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"asctime", "message"}
"""The attributes of each event, as Python's ``logging`` names them."""
_INDENT = "    "
_NOISY = ("celery", "kombu", "amqp", "gunicorn", "asyncio", "watchfiles")
# control characters, and those that reverse the direction of text or that some readers take for the end of a line
_CONTROLS = (
    range(32),
    range(127, 160),
    range(0x61C, 0x61D),
    range(0x200E, 0x2010),
    range(0x2028, 0x202F),
    range(0x2066, 0x206A),
)
_ESCAPES = {code: repr(chr(code))[1:-1] for codes in _CONTROLS for code in codes}
_ESCAPES_IN_LINES = {code: escape for code, escape in _ESCAPES.items() if chr(code) not in "\n\t"}


add_to_json: Callable[[], Mapping[str, Any]] = dict
"""Returns what else each JSON object has, such as the IDs of a trace; it is called in the context of the event."""


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; all loggers of qserve are children of ``qserve``."""
    return logging.getLogger(name if name.startswith("qserve") else f"qserve.{name}")


def of_request(request_id: str, **fields: Any) -> dict[str, Any]:
    """Return the ``extra`` of an event that belongs to another request than the code that logs it.

    Parameters:
      request_id: The ID that people see: ``X-Request-ID``.
      fields: Further members of the JSON object.
    """
    return {"qserve_request": request_id, "qserve_fields": fields}


def request_of(record: logging.LogRecord) -> str:
    """Return the ID of the request that an event belongs to; "" for none."""
    return getattr(record, "qserve_request", "") or request_context.get().request_id


_own: dict[int, list[logging.Handler]] = {}
"""The handlers that this process has by ``log_to_terminal``, by its id: a fork begins with none."""


def log_to_terminal(
    source: str,
    settings: Settings,
    chosen: Mapping[str, Any] = MappingProxyType({}),
    file: str = "",
    members: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Send the root logger's events to standard error, and no more to where this has sent them before.

    Parameters:
      source: The name of this process in each line.
      chosen: What the ``logging_config`` of a deployment says, in the place of the settings.
      file: The beginning of the names of log files in the ``logs_dir`` of ``chosen``.
      members: What else each JSON object says of this process.
    """
    root, problem, own = logging.getLogger(), "", _own.setdefault(os.getpid(), [])
    if not own:
        root.handlers.clear()
    for handler in own:
        root.removeHandler(handler)
        handler.close()
    own[:] = [logging.StreamHandler(sys.stderr)]
    if folder := chosen.get("logs_dir"):
        try:
            own.append(_file_in(Path(folder), re.sub(r"[^\w.-]", "_", file)))
        except OSError as error:
            problem = f"there is no log file in {folder}: {error.strerror}"
    encoding, level = chosen.get("encoding", settings.log_format), chosen.get("log_level", settings.log_level)
    attributes = chosen.get("additional_log_standard_attrs", ())
    formatter = Formatter(source, encoding.lower() == "json", attributes, members)
    for handler in own:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    set_level(root, logging.getLevelNamesMapping().get(str(level).upper(), level))
    for name in _NOISY:
        set_level(logging.getLogger(name), logging.WARNING)
    if problem:
        get_logger(__name__).error("%s", problem)


def set_level(logger: logging.Logger, level: int | str) -> None:
    """Set the level of a logger unless it has it: that writes to all loggers, which costs a forked process 0.6 MB."""
    if logger.level != level:
        logger.setLevel(level)


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log file that no other process writes as long as it is open here."""

    def __init__(self, path: Path, lock: int) -> None:
        super().__init__(path, maxBytes=FILE_LIMIT, backupCount=OLD_FILES, encoding="utf-8", errors="backslashreplace")
        self._lock_of_file = lock

    def close(self) -> None:
        super().close()
        os.close(self._lock_of_file)


def _file_in(folder: Path, name: str) -> _LogFile:
    """Open the first log file of that name that no process writes, so that a replica goes on with that of one before.

    Raises:
      OSError: There cannot be any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        path = folder / f"{name}-{os.uname().nodename}-{number}.log"
        lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _LogFile(path, lock)
        os.close(lock)
    raise AssertionError


def enable_logging() -> None:
    """Let our loggers write again after user code has configured logging, which may disable all that exist."""
    if not get_logger(__name__).disabled:
        return  # to look at all of them writes to each of them, which costs a forked process 0.5 MB
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "qserve" and isinstance(logger, logging.Logger):
            logger.disabled = False


class Formatter(logging.Formatter):
    """Write an event as a line of text or as a JSON object.

    Text: date, time, level, source, request ID and message, with the traceback indented below. JSON: ``time`` (UTC),
    ``level``, ``source``, ``logger`` and ``message``, with ``request_id`` and ``traceback`` where there are any, and
    what Ray Serve's objects have: ``asctime``, ``levelname``, ``filename``, ``lineno``, ``process`` and
    ``timestamp_ns``.

    Parameters:
      attributes: Attributes of Python's own that a JSON object has besides.
      members: What each JSON object has besides.
    """

    def __init__(
        self,
        source: str,
        as_json: bool = False,
        attributes: Sequence[str] = (),
        members: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._source = source
        self._write = self._json if as_json else self._text
        self._attributes = attributes
        self._members = members

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        trace = full_traceback(error) if error is not None else ""
        return self._write(record, _message(record), request_of(record), trace)

    def _text(self, record: logging.LogRecord, message: str, request_id: str, trace: str) -> str:
        where = f"{self._source} {request_id}" if request_id else self._source
        at = f"{_second_of(record.created // 1)[0]}.{int(record.msecs):03d}"
        line = _cut(f"{at} {record.levelname} [{where}] {message}".translate(_ESCAPES))
        return "\n".join([line, *(f"{_INDENT}{part}" for part in printable(trace).splitlines())])

    def _json(self, record: logging.LogRecord, message: str, request_id: str, trace: str) -> str:
        (local, utc), ms = _second_of(record.created // 1), int(record.msecs)
        fields = {
            "time": f"{utc}.{ms:03d}+00:00",
            "level": record.levelname,
            "source": self._source,
            "logger": record.name,
            "message": _cut(message),
            "request_id": request_id,
            "route": request_context.get().route,
            **_trace(request_context.get().traceparent),
            **self._members,
            "asctime": f"{local},{ms:03d}",
            "levelname": record.levelname,
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
            "timestamp_ns": int(record.created * 1e9),
            **add_to_json(),
            **getattr(record, "qserve_fields", {}),
            "traceback": trace,
        }
        more = {name: getattr(record, name, None) for name in self._attributes if name not in fields}
        # json writes ASCII, so control characters are escaped already
        return json.dumps(
            {name: value for name, value in fields.items() if value not in ("", None)} | more, default=str
        )


def _trace(traceparent: str) -> dict[str, str]:
    """Return what a W3C ``traceparent`` says, under the names of OpenTelemetry."""
    _, trace_id, span_id, *_ = (*traceparent.split("-"), "", "")
    return {"trace_id": trace_id, "span_id": span_id}


@lru_cache(maxsize=2)
def _second_of(at_s: float) -> tuple[str, str]:
    """Return a second as local time and as UTC: most lines come in one that had a line before."""
    utc = datetime.datetime.fromtimestamp(at_s, datetime.UTC)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s)), utc.strftime("%Y-%m-%dT%H:%M:%S")


def printable(text: str) -> str:
    """Return untrusted text with its line breaks and tabs, and every other control character escaped.

    A terminal, an editor or a line parser would obey them.
    """
    return text.translate(_ESCAPES_IN_LINES)


def on_one_line(text: str, limit: int = 200) -> str:
    """Return untrusted text as one line for people, cut after ``limit`` characters."""
    line = text if text.isprintable() else repr(text)[1:-1]
    return line if len(line) <= limit else f"{line[:limit]}…"


def text_of(record: logging.LogRecord) -> str:
    """Return the message of an event on one line, escaped, with its traceback indented below."""
    error = record.exc_info[1] if record.exc_info else None
    trace = full_traceback(error) if error is not None else ""
    line = _cut(_message(record).translate(_ESCAPES))
    return "\n".join([line, *(f"{_INDENT}{part}" for part in printable(trace).splitlines())])


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # an error in a __str__ of user code must not lose the event
        return f"{record.msg} (its values cannot be written: {type(error).__name__})"


def _cut(text: str) -> str:
    data = text.encode(errors="backslashreplace")
    return text if len(data) <= LINE_LIMIT else data[:LINE_LIMIT].decode(errors="ignore") + CUT
