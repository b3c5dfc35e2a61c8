"""Format tracebacks as users want to see them, and limit their length."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

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


def place_in(frames: Iterable[FrameType]) -> str:
    """Return where code stands: the innermost line of the user's own modules, otherwise of any library.

    Parameters:
      frames: The innermost first.
    """
    found = list(frames)
    own = (frame for frame in found if _is_user_code(name := frame.f_code.co_filename) and "site-packages" not in name)
    frame = next(own, found[0] if found else None)
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def frames_of_thread(ident: int | None) -> Iterator[FrameType]:
    """Yield the frames of a thread, the innermost first."""
    frame = sys._current_frames().get(ident or 0)
    while frame is not None:
        yield frame
        frame = frame.f_back


def frames_of_coroutine(awaited: Any) -> list[FrameType]:
    """Return the frames of a coroutine, and of those that it awaits, the innermost first."""
    found: list[FrameType] = []
    while awaited is not None:
        frame = next((frame for name in ("cr", "gi", "ag") if (frame := getattr(awaited, f"{name}_frame", None))), None)
        found += [frame] if frame is not None else []
        names = ("cr_await", "gi_yieldfrom", "ag_await")
        awaited = next((inner for name in names if (inner := getattr(awaited, name, None)) is not None), None)
    return found[::-1]


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
