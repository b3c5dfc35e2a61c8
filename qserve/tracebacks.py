"""Tracebacks as users want them: their own frames, without those of qserve and the machinery above."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_OURS = (str(Path(__file__).parent), str(Path(__file__).parents[1] / "workers"))
_STDLIB = sysconfig.get_paths()["stdlib"]


def user_traceback(error: BaseException) -> str:
    """The traceback of an error from the user's first frame on; only the error where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((place for place, frame in enumerate(frames) if _is_users(frame.filename)), None)
    lines = [] if first is None else ["Traceback (most recent call last):\n", *traceback.format_list(frames[first:])]
    return "".join(lines + traceback.format_exception_only(error)).rstrip()


def _is_users(filename: str) -> bool:
    if filename.startswith("<") or "qserve_workers" in filename or filename.startswith(_OURS):
        return filename.startswith("<stdin")
    return "site-packages" in filename or not filename.startswith(_STDLIB)
