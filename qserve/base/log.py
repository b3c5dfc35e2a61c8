"""Logging: one line for an event, with the deployment and the request that it belongs to.

What a line says may come from anybody: a path, an id, the message of an exception. Control characters in it
are written as escapes, and a line has at most ``LINE_LIMIT`` bytes. A traceback follows its line; each of its
lines is indented, so that nothing in it can pass for a line of its own. With ``QSERVE_LOG_FORMAT=json`` each
event is one object on one line, its traceback included.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys

from qserve.base.context import request_context
from qserve.base.escapes import one_line, printable
from qserve.base.settings import Settings
from qserve.base.tracebacks import full_traceback

LINE_LIMIT = 8192
_TAIL = "… (truncated)"
_INDENT = "    "


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; all of qserve's are children of ``qserve``."""
    return logging.getLogger(name if name.startswith("qserve") else f"qserve.{name}")


class _SourceFormatter(logging.Formatter):
    """Knows which process writes.

    Parameters:
      source: Which process writes.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source


class TextFormatter(_SourceFormatter):
    """Time, level, source, request id, message; a traceback below, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of an event."""
        request_id = request_context.get().request_id
        where = f"{self.source} {request_id}" if request_id else self.source
        said = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname} [{where}] {_message(record)}"
        line = _cut(one_line(said))
        trace = _traceback(record)
        return f"{line}\n{_indented(trace)}" if trace else line


class JsonFormatter(_SourceFormatter):
    """An object with ``time`` (UTC), ``level``, ``source``, ``logger``, ``message``; ``request_id`` and ``traceback``
    where there are any.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The object of an event."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "source": self.source,
            "logger": record.name,
            "message": _cut(_message(record)),
            "request_id": request_context.get().request_id,
            "traceback": _traceback(record),
        }
        # in ASCII: JSON itself escapes what a terminal would obey
        return json.dumps({name: value for name, value in fields.items() if value})


_FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}


def log_to_terminal(source: str, settings: Settings) -> None:
    """Send the root logger's lines to standard error.

    Parameters:
      source: Marks the lines of this process.
      settings: Name the level and the format.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[settings.log_format](source))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("celery", "kombu", "amqp", "gunicorn", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a __str__ of user code that raises must not lose the event
        return f"{record.msg} (its values cannot be written: {type(error).__name__})"


def _traceback(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return full_traceback(error) if error is not None else ""


def _indented(trace: str) -> str:
    return "\n".join(f"{_INDENT}{line}" for line in printable(trace).splitlines())


def _cut(text: str) -> str:
    data = text.encode(errors="backslashreplace")
    return text if len(data) <= LINE_LIMIT else data[:LINE_LIMIT].decode(errors="ignore") + _TAIL
