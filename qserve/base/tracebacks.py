"""Format tracebacks as users want to see them, and limit their length."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

_QSERVE = Path(__file__).parents[1]
# side by side when they are installed; in a checkout the workers have their own folder
_OURS = tuple(str(_QSERVE.parent / folder) for folder in (_QSERVE.name, "qserve_workers", "workers"))
_STDLIB = sysconfig.get_paths()["stdlib"]
LINE_LIMIT = 4096
LIMIT = 32_768
CUT = "… (truncated)"


def user_traceback(error: BaseException) -> str:
    """Return the traceback of an error from the first frame of user code on, without the frames of qserve above it.

    Without any user code in it, only the error is returned.
    """
    frames = traceback.extract_tb(error.__traceback__)
    first = next((index for index, frame in enumerate(frames) if _is_user_code(frame.filename)), None)
    lines = [] if first is None else ["Traceback (most recent call last):\n", *traceback.format_list(frames[first:])]
    return _formatted(lambda: lines + traceback.format_exception_only(error))


def one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its text."""
    try:
        first, *rest = str(error).strip().splitlines() or [""]
    except BaseException as second:  # a __str__ that raises
        first, rest = f"<its text is not available: {type(second).__name__}>", []
    text = _cut(first) + (" …" if any(rest) else "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def full_traceback(error: BaseException) -> str:
    """Return the whole traceback of an error, with its causes."""
    return _formatted(lambda: traceback.format_exception(error))


def _formatted(lines: Callable[[], list[str]]) -> str:
    try:
        return _cut("".join(lines()).rstrip())
    except BaseException as error:  # the class of an error may run its own code here, and raise anything
        return f"<the traceback is not available: {type(error).__name__}>"


def _cut(trace: str) -> str:
    """Cut long lines first, so that a long message does not push the frames out, and then the beginning."""
    if len(trace) > LINE_LIMIT:
        lines = trace.split("\n")
        trace = "\n".join(line if len(line) <= LINE_LIMIT else line[:LINE_LIMIT] + CUT for line in lines)
    return trace if len(trace) <= LIMIT else CUT + trace[-LIMIT:]


def _is_user_code(filename: str) -> bool:
    if filename.startswith("<") or "qserve_workers" in filename or filename.startswith(_OURS):
        return filename.startswith("<stdin")
    return "site-packages" in filename or not filename.startswith(_STDLIB)
