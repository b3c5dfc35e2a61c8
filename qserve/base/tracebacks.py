"""Tracebacks as users want them, and of a length that can be stored and logged whatever the error holds."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

_QSERVE = Path(__file__).parents[1]
# beside one another when they are installed; in a checkout the workers have a folder of their own
_OURS = tuple(str(_QSERVE.parent / folder) for folder in (_QSERVE.name, "qserve_workers", "workers"))
_STDLIB = sysconfig.get_paths()["stdlib"]
LINE_LIMIT = 4096
LIMIT = 32_768
CUT = "… (truncated)"


def user_traceback(error: BaseException) -> str:
    """The traceback of an error from the user's first frame on, without those of qserve and the machinery above.

    Only the error where there is none.
    """
    frames = traceback.extract_tb(error.__traceback__)
    first = next((place for place, frame in enumerate(frames) if _is_users(frame.filename)), None)
    lines = [] if first is None else ["Traceback (most recent call last):\n", *traceback.format_list(frames[first:])]
    return _written(lambda: lines + traceback.format_exception_only(error))


def full_traceback(error: BaseException) -> str:
    """The whole traceback of an error, with its causes."""
    return _written(lambda: traceback.format_exception(error))


def _written(lines: Callable[[], list[str]]) -> str:
    try:
        return _cut("".join(lines()).rstrip())
    except BaseException as error:  # an error's class may run code of its own here, and raise anything
        return f"<the traceback is not available: {type(error).__name__}>"


def _cut(trace: str) -> str:
    """Cut long lines, so that a long message does not push the frames out, then what comes first."""
    if len(trace) > LINE_LIMIT:
        lines = trace.split("\n")
        trace = "\n".join(line if len(line) <= LINE_LIMIT else line[:LINE_LIMIT] + CUT for line in lines)
    return trace if len(trace) <= LIMIT else CUT + trace[-LIMIT:]


def _is_users(filename: str) -> bool:
    if filename.startswith("<") or "qserve_workers" in filename or filename.startswith(_OURS):
        return filename.startswith("<stdin")
    return "site-packages" in filename or not filename.startswith(_STDLIB)
