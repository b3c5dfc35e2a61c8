"""Suggest the name that somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the known name that is closest to a mistaken one; "" when none is close.

    did_you_mean("num_replica", ["name", "num_replicas"]) == "Did you mean 'num_replicas'?"
    """
    close = difflib.get_close_matches(name, [*known], n=1)
    return f"Did you mean {close[0]!r}?" if close else ""
