"""Whether this process makes spans: the one thing that is looked up on the way of a request when it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qserve.tracing.spans import Spans


class Switch:
    """``spans`` makes the spans of this process; None when it makes none."""

    __slots__ = ("spans",)

    def __init__(self) -> None:
        self.spans: Spans | None = None


switch: Final = Switch()
