"""What happens next in a graph: pure rules, with no clock and no I/O.

``begin`` says what a request starts, ``advance`` what follows when a step has ended. Whoever calls
them carries the moves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qserve.graph.arguments import Arguments, fill
from qserve.graph.plan import InputKey, Plan

__all__ = ["Answer", "Arguments", "Fill", "Move", "Send", "advance", "begin", "fill"]


@dataclass(frozen=True, slots=True)
class Send:
    """Start a step: ``values`` are all the slots that it needs."""

    step: int
    values: tuple[tuple[int, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Fill:
    """Fill some slots of a step, and start it when it has all ``needs`` of them."""

    step: int
    values: tuple[tuple[int, Any], ...]
    needs: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the request."""

    value: Any


Move = Send | Fill | Answer


def begin(plan: Plan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Move]:
    """Return what is to be done when a request arrives.

    Parameters:
      plan: The graph.
      args: The positional input. One value and no keywords is the input itself, whose items and
        attributes the graph may read; otherwise the graph reads positions and keywords.
      kwargs: The keyword input.

    Raises:
      IndexError: The graph reads a position that was not given.
      KeyError: The graph reads a keyword that was not given.
      TypeError: The graph reads its input as a whole, and there is none, or no single one.
      Exception: Whatever reading an item or attribute of a single input raises.
    """
    filled: dict[int, list[tuple[int, Any]]] = {}
    for source, targets in plan.feeds.items():
        if isinstance(source, InputKey):
            value = read_input(source, args, kwargs)
            for target, slot in targets:
                filled.setdefault(target, []).append((slot, value))
    moves: list[Move] = []
    for number, step in enumerate(plan.steps):
        if step.needs == 0:
            moves.append(Send(number))
        elif number in filled:
            moves.append(_move(number, tuple(filled[number]), step.needs))
    if isinstance(plan.output, InputKey):
        moves.append(Answer(read_input(plan.output, args, kwargs)))
    return moves


def advance(plan: Plan, step: int, value: Any) -> list[Move]:
    """Return what follows when a step has ended.

    Parameters:
      plan: The graph.
      step: The number of the step.
      value: What it returned.
    """
    if step == plan.output:
        return [Answer(value)]
    steps = plan.steps
    return [_move(target, ((slot, value),), steps[target].needs) for target, slot in plan.feeds.get(step, ())]


def read_input(key: InputKey, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Look up one part of a request's input.

    Parameters:
      key: The part.
      args: The positional input.
      kwargs: The keyword input.

    Raises:
      IndexError: See ``begin``.
      KeyError: See ``begin``.
      TypeError: See ``begin``.
    """
    if len(args) == 1 and not kwargs:
        if key.kind == "whole":
            return args[0]
        if key.kind == "item":
            return args[0][key.key]
        return getattr(args[0], str(key.key))
    if key.kind == "whole":
        return _whole(args, kwargs)
    if isinstance(key.key, int):
        return _positional(key.key, args, kwargs)
    return _keyword(str(key.key), args, kwargs)


def _move(step: int, values: tuple[tuple[int, Any], ...], needs: int) -> Move:
    return Send(step, values) if len(values) == needs else Fill(step, values, needs)


def _whole(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if args and not kwargs:
        return tuple(args)
    if kwargs and not args:
        return dict(kwargs)
    given = "both positional values and keywords" if args else "nothing"
    raise TypeError(
        f"the graph uses its input as a whole, but the request brought {given}. Give one value, or "
        "let the graph read inp[0] and inp.key."
    )


def _positional(key: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return args[key]
    except IndexError:
        raise IndexError(f"the graph reads inp[{key}], but the request brought {_described(args, kwargs)}") from None


def _keyword(key: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return kwargs[key]
    except KeyError:
        raise KeyError(f"the graph reads inp.{key}, but the request brought {_described(args, kwargs)}") from None


def _described(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    count = len(args)
    values = f"{count or 'no'} positional value{'' if count == 1 else 's'}"
    names = ", ".join(repr(name) for name in kwargs)
    return f"{values} and {'the keywords ' + names if names else 'no keywords'}"
