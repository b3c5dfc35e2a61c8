"""Logging: one line for an event, with the deployment and the request that it belongs to.

The text of an event may come from outside: a path, an ID, the message of an exception. Control characters in it are
escaped, and a line has at most ``LINE_LIMIT`` bytes. A traceback follows its line, and each of its own lines is
indented, so that none can be mistaken for an event. With ``QSERVE_LOG_FORMAT=json`` each event is one JSON object on
one line, with its traceback inside.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys

from qserve.base.context import request_context
from qserve.base.settings import Settings
from qserve.base.tracebacks import CUT, full_traceback

LINE_LIMIT = 8192
_INDENT = "    "
_NOISY = ("celery", "kombu", "amqp", "gunicorn", "asyncio")
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


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; all loggers of qserve are children of ``qserve``."""
    return logging.getLogger(name if name.startswith("qserve") else f"qserve.{name}")


def log_to_terminal(source: str, settings: Settings) -> None:
    """Send the root logger's events to standard error; ``source`` is the name of this process in each line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(source, as_json=settings.log_format == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def enable_logging() -> None:
    """Let our loggers write again after user code has configured logging, which may disable all that exist."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "qserve" and isinstance(logger, logging.Logger):
            logger.disabled = False


class Formatter(logging.Formatter):
    """Write an event as a line of text or as a JSON object.

    Text: time, level, source, request ID and message, with the traceback indented below. JSON: ``time`` (UTC),
    ``level``, ``source``, ``logger`` and ``message``, with ``request_id`` and ``traceback`` where there are any.
    """

    def __init__(self, source: str, as_json: bool = False) -> None:
        super().__init__()
        self._source = source
        self._write = self._json if as_json else self._text

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        trace = full_traceback(error) if error is not None else ""
        return self._write(record, _message(record), request_context.get().request_id, trace)

    def _text(self, record: logging.LogRecord, message: str, request_id: str, trace: str) -> str:
        where = f"{self._source} {request_id}" if request_id else self._source
        line = _cut(f"{self.formatTime(record, '%H:%M:%S')} {record.levelname} [{where}] {message}".translate(_ESCAPES))
        return "\n".join([line, *(f"{_INDENT}{part}" for part in printable(trace).splitlines())])

    def _json(self, record: logging.LogRecord, message: str, request_id: str, trace: str) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "source": self._source,
            "logger": record.name,
            "message": _cut(message),
            "request_id": request_id,
            "traceback": trace,
        }
        # json writes ASCII, so control characters are escaped already
        return json.dumps({name: value for name, value in fields.items() if value})


def printable(text: str) -> str:
    """Return untrusted text with its line breaks and tabs, and every other control character escaped.

    A terminal, an editor or a line parser would obey them.
    """
    return text.translate(_ESCAPES_IN_LINES)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # an error in a __str__ of user code must not lose the event
        return f"{record.msg} (its values cannot be written: {type(error).__name__})"


def _cut(text: str) -> str:
    data = text.encode(errors="backslashreplace")
    return text if len(data) <= LINE_LIMIT else data[:LINE_LIMIT].decode(errors="ignore") + CUT
