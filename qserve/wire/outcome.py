"""How a request ended."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """How a request ended: ``d`` done, ``f`` failed, ``c`` cancelled, ``x`` expired; with its bytes."""

    state: str
    payload: bytes
