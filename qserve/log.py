"""Logging: one format, with the deployment and the request that a line belongs to."""

from __future__ import annotations

import logging
import sys

from qserve.context import request_context

_DEFAULT_SOURCE = "qserve"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; all of qserve's are children of ``qserve``."""
    return logging.getLogger(name if name.startswith("qserve") else f"qserve.{name}")


class _Formatter(logging.Formatter):
    """Time, level, source, request id, message; a line break in a value cannot forge a line."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self._source = source

    def format(self, record: logging.LogRecord) -> str:
        request_id = request_context.get().request_id
        where = f"{self._source} {request_id}" if request_id else self._source
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname} [{where}] {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_to_terminal(source: str = _DEFAULT_SOURCE, level: int = logging.INFO) -> None:
    """Send the root logger's lines to standard error, marked with ``source``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(source))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("celery", "kombu", "amqp", "gunicorn", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
