"""Random graphs, run by a small interpreter over begin, advance and fill, against plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import Graph, graphs

from qserve.define.compile import compile_application
from qserve.graph.advance import Answer, Arguments, Move, advance, begin
from qserve.graph.plan import Plan


@dataclass(frozen=True)
class Ref:
    """What a nested result arrives as."""

    value: Any


def outcome(kind: int, args: Any, kwargs: dict[str, Any]) -> int:
    """A value that depends on every argument, its place and its wrapping."""
    return hash(repr((list(args), sorted(kwargs.items())))) % 1_000_003


@dataclass
class Interpreter:
    """Carries out moves until nothing is left, always taking the call that ``choose`` picks."""

    plan: Plan
    choose: Callable[[int], int]
    runs: Counter[int] = field(default_factory=Counter)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        waiting: dict[int, dict[int, Any]] = {}
        ready: list[tuple[int, dict[int, Any]]] = []
        answers: list[Any] = []
        moves: list[Move] = begin(self.plan, args, kwargs)
        while True:
            for move in moves:
                if isinstance(move, Answer):
                    answers.append(move.value)
                    continue
                slots = waiting.setdefault(move.step, {})
                assert not slots.keys() & dict(move.values).keys(), "a slot was filled twice"
                slots.update(move.values)
                if len(slots) == move.needs:
                    ready.append((move.step, slots))
            if not ready:
                break
            number, slots = ready.pop(self.choose(len(ready)))
            moves = advance(self.plan, number, self.call(number, slots))
        assert len(answers) == 1
        return answers[0]

    def call(self, number: int, slots: dict[int, Any]) -> int:
        self.runs[number] += 1
        template = self.plan.steps[number]
        assert len(slots) == template.needs
        return outcome(0, *Arguments(template.args, template.kwargs).fill(slots, Ref))


@pytest.mark.slow
@settings(max_examples=100)
@given(graphs(), st.data())
def test_a_graph_gives_what_plain_python_gives_and_runs_each_node_once(graph: Graph, data: st.DataObject) -> None:
    plan = compile_application(graph.bind()).graphs[""]
    interpreter = Interpreter(plan, lambda count: data.draw(st.integers(0, count - 1)))
    answer = interpreter.run(tuple(graph.args), graph.kwargs)

    assert answer == graph.run(outcome, nested=Ref)
    assert interpreter.runs == Counter(range(len(plan.steps)))
    assert len(plan.steps) == len(graph.nodes)
