"""The end of all events, apart from them: a gateway without the page does not import what it shows."""

from __future__ import annotations

import threading

_ending = threading.Event()
is_ending = _ending.is_set


def end_all() -> None:
    """End the events of all viewers, so that the process can end."""
    _ending.set()
