"""The compiled graph: plain frozen data, and the only thing that build time hands to run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Slot:
    """A place in a step's arguments that is filled while a request runs.

    ``index`` numbers the distinct sources of the step. ``nested`` marks the result of a node inside a container, which
    user code receives as a resolved ref; input values are never nested.
    """

    index: int
    nested: bool = False


@dataclass(frozen=True)
class InputKey:
    """A part of the request's input: all of it, ``inp[key]`` or ``inp.key``."""

    kind: Literal["whole", "item", "attribute"] = "whole"
    key: int | str | None = None


Source = int | InputKey
"""The origin of a value: the number of a step, or a part of the input."""


@dataclass(frozen=True)
class Step:
    """One call of one deployment: ``args`` and ``kwargs`` hold a ``Slot`` wherever a value arrives later."""

    deployment: str
    method: str = "__call__"
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    needs: int = 0


@dataclass(frozen=True)
class Plan:
    """A graph's steps, children before parents, and the slots that each value feeds.

    ``feeds`` maps a source to the (step, slot) pairs that wait for it; ``output`` is the source whose value is the
    answer.
    """

    steps: tuple[Step, ...]
    feeds: Mapping[Source, tuple[tuple[int, int], ...]]
    output: Source
