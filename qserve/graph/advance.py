"""The moves of a request through a graph, and the arguments of its steps: pure rules, with no clock and no I/O.

``begin`` returns the moves that start a request, ``advance`` those that follow when a step has ended; the caller
carries them out. ``Arguments`` holds a step's arguments, prepared once and filled for every request.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qserve.graph.containers import CONTAINERS, has_shared, replace
from qserve.graph.plan import InputKey, Plan, Slot


@dataclass(frozen=True, slots=True)
class Fill:
    """Fill some slots of a step, and start it when it has all ``needs`` of them: at once when these are all."""

    step: int
    values: tuple[tuple[int, Any], ...]
    needs: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the request."""

    value: Any


Move = Fill | Answer


@dataclass(frozen=True, slots=True)
class ReadInput:
    """A single input that was read elsewhere: the parts of it that the graph needs, or the errors of reading them.

    ``size`` is what they take in bytes, once encoded.
    """

    parts: Mapping[InputKey, Any]
    size: int

    def read(self, key: InputKey) -> Any:
        """Return a part; or raise the error of reading it; KeyError for a part that was not asked for."""
        part = self.parts[key]
        if isinstance(part, Exception):
            raise part
        return part


def begin(plan: Plan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Move]:
    """Return the moves that start a request.

    Parameters:
      args: The positional input. A single value without keywords is the input itself: the graph reads its items
        and attributes. Otherwise the graph reads positions and keywords.
      kwargs: The keyword input.

    Raises:
      IndexError: The graph reads a position that was not given.
      KeyError: The graph reads a keyword that was not given.
      TypeError: The graph reads its input as a whole, but the request has nothing, or values and keywords.
      Exception: Any error from reading an item or attribute of a single input.
    """
    filled: dict[int, list[tuple[int, Any]]] = {}
    for source, targets in plan.feeds.items():
        if isinstance(source, InputKey):
            value = read_input(source, args, kwargs)
            for target, slot in targets:
                filled.setdefault(target, []).append((slot, value))
    moves: list[Move] = [
        Fill(number, tuple(filled.get(number, ())), step.needs)
        for number, step in enumerate(plan.steps)
        if number in filled or step.needs == 0
    ]
    if isinstance(plan.output, InputKey):
        moves.append(Answer(read_input(plan.output, args, kwargs)))
    return moves


def inputs_of(plan: Plan) -> list[InputKey]:
    """Return the parts of its input that a graph reads."""
    return [source for source in {*plan.feeds, plan.output} if isinstance(source, InputKey)]


def advance(plan: Plan, step: int, value: Any) -> list[Move]:
    """Return the moves that follow when the step of that number has returned ``value``."""
    if step == plan.output:
        return [Answer(value)]
    steps = plan.steps
    return [Fill(target, ((slot, value),), steps[target].needs) for target, slot in plan.feeds.get(step, ())]


def read_input(key: InputKey, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return one part of a request's input; raises as ``begin`` does."""
    if len(args) == 1 and not kwargs:
        if type(args[0]) is ReadInput:
            return args[0].read(key)
        if key.kind == "whole":
            return args[0]
        if key.kind == "item":
            return args[0][key.key]
        return getattr(args[0], str(key.key))
    if key.kind == "whole":
        if bool(args) == bool(kwargs):
            given = "both positional values and keywords" if args else "nothing"
            raise TypeError(
                f"the graph uses its input as a whole, but the request has {given}. Give one value, or "
                "let the graph read inp[0] and inp.key."
            )
        return tuple(args) or dict(kwargs)
    try:
        return args[key.key] if isinstance(key.key, int) else kwargs[str(key.key)]
    except LookupError as error:
        read = f"inp[{key.key}]" if isinstance(key.key, int) else f"inp.{key.key}"
        raise type(error)(f"the graph reads {read}, but the request has {_described(args, kwargs)}") from None


def _described(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    count = len(args)
    values = f"{count or 'no'} positional value{'' if count == 1 else 's'}"
    names = ", ".join(repr(name) for name in kwargs)
    return f"{values} and {'the keywords ' + names if names else 'no keywords'}"


Maker = Callable[[Mapping[int, Any], Callable[[Any], Any]], Any]
"""Makes one argument from the slots' values and ``ref``."""


class Arguments:
    """The arguments of one step with their slots, ready to be filled."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._args = list(args)
        self._kwargs = dict(kwargs)
        self._slots = [(place, value.index) for place, value in enumerate(args) if isinstance(value, Slot)]
        self._named_slots = [(name, value.index) for name, value in kwargs.items() if isinstance(value, Slot)]
        self._is_shared = has_shared([*args, *kwargs.values()])
        if self._is_shared:  # all are made together, to have one copy
            return
        self._makers = [(place, _maker(value)) for place, value in enumerate(args) if _must_be_made(value)]
        self._named_makers = [(name, _maker(value)) for name, value in kwargs.items() if _must_be_made(value)]

    def fill(self, values: Mapping[int, Any], ref: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments with every slot filled.

        Lists, dicts and sets are copied for each request, so that user code may change them.

        Parameters:
          values: By the index of their slots.
          ref: Wraps a node result inside a container.
        """
        if self._is_shared:

            def value_of(slot: Slot) -> Any:
                return ref(values[slot.index]) if slot.nested else values[slot.index]

            args, kwargs = replace([self._args, self._kwargs], Slot, value_of, is_copy=True)
            return tuple(args), kwargs
        args = self._args.copy()
        kwargs = self._kwargs.copy()
        for place, index in self._slots:
            args[place] = values[index]
        for name, index in self._named_slots:
            kwargs[name] = values[index]
        for place, make in self._makers:
            args[place] = make(values, ref)
        for name, make in self._named_makers:
            kwargs[name] = make(values, ref)
        return tuple(args), kwargs


def _must_be_made(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return any(isinstance(member, Slot) or _must_be_made(member) for member in value)
    return isinstance(value, CONTAINERS)


def _maker(container: Any) -> Maker:
    members = container.values() if isinstance(container, dict) else container
    if not any(isinstance(member, (Slot, *CONTAINERS)) for member in members):
        # walking a bound list of a million numbers takes 0.3 s, copying it a few milliseconds
        return lambda values, ref: copy.copy(container)

    def make(values: Mapping[int, Any], ref: Callable[[Any], Any]) -> Any:
        def value_of(slot: Slot) -> Any:
            return ref(values[slot.index]) if slot.nested else values[slot.index]

        return replace(container, Slot, value_of, is_copy=True)

    return make
