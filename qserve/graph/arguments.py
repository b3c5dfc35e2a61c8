"""A step's arguments, prepared once and filled for every request."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qserve.graph.containers import CONTAINERS, replace_in_copy
from qserve.graph.plan import Slot

Values = Iterable[tuple[int, Any]] | Mapping[int, Any]
"""The values of a step's slots, by slot index."""

Filled = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments, ready for the user's code."""


Maker = Callable[[Mapping[int, Any], Callable[[Any], Any]], Any]
"""Makes one argument from the slots' values and ``ref``."""


class Arguments:
    """The arguments of one step, ready to be filled.

    Parameters:
      args: Positional arguments with slots.
      kwargs: Keyword arguments with slots.
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._args = list(args)
        self._kwargs = dict(kwargs)
        self._slots = [(place, value.index) for place, value in enumerate(args) if isinstance(value, Slot)]
        self._named_slots = [(name, value.index) for name, value in kwargs.items() if isinstance(value, Slot)]
        self._makers = [(place, _maker(value)) for place, value in enumerate(args) if _must_be_made(value)]
        self._named_makers = [(name, _maker(value)) for name, value in kwargs.items() if _must_be_made(value)]
        self.is_flat = not self._makers and not self._named_makers
        """Whether every slot is an argument itself, so that no container has to be walked."""

    def fill(self, values: Values, ref: Callable[[Any], Any]) -> Filled:
        """Return the arguments with every slot filled.

        Lists, dicts and sets are new for each request, so that user code may change them.

        Parameters:
          values: The values of the slots.
          ref: Wraps a node result inside a container.
        """
        known = dict(values)
        args = self._args.copy()
        kwargs = self._kwargs.copy()
        for place, index in self._slots:
            args[place] = known[index]
        for name, index in self._named_slots:
            kwargs[name] = known[index]
        if not self.is_flat:
            for place, make in self._makers:
                args[place] = make(known, ref)
            for name, make in self._named_makers:
                kwargs[name] = make(known, ref)
        return tuple(args), kwargs


def fill(
    template_args: Sequence[Any],
    template_kwargs: Mapping[str, Any],
    values: Values,
    ref: Callable[[Any], Any],
) -> Filled:
    """Fill arguments that are used once; ``Arguments`` prepares those that are used often."""
    return Arguments(template_args, template_kwargs).fill(values, ref)


def _must_be_made(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return any(isinstance(member, Slot) or _must_be_made(member) for member in value)
    return isinstance(value, CONTAINERS)


def _maker(container: Any) -> Maker:
    members = container.values() if isinstance(container, dict) else container
    if not any(isinstance(member, (Slot, *CONTAINERS)) for member in members):
        # Walking a bound list of a million numbers takes 0.3 s, copying it a few milliseconds.
        return lambda known, ref: copy.copy(container)

    def make(known: Mapping[int, Any], ref: Callable[[Any], Any]) -> Any:
        def value_of(slot: Slot) -> Any:
            value = known[slot.index]
            return ref(value) if slot.nested else value

        return replace_in_copy(container, Slot, value_of)

    return make
