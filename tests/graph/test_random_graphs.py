"""Random graphs, run by a small interpreter over begin, advance and fill, against plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qserve.dag import InputNode
from qserve.define.compile import compile_application
from qserve.define.deployments import deployment
from qserve.deployment_graph import DAGNode, FunctionNode, MethodNode
from qserve.drivers import DAGDriver
from qserve.graph.advance import Answer, Arguments, Fill, Move, Send, advance, begin
from qserve.graph.plan import Plan


@dataclass(frozen=True)
class Ref:
    """What a nested result arrives as."""

    value: Any


@deployment
def step(*args: Any, **kwargs: Any) -> Any:
    return None


@deployment
class Model:
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return None


def outcome(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """A value that depends on every argument, its place and its wrapping."""
    return hash(repr((args, sorted(kwargs.items())))) % 1_000_003


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
                needs = move.needs if isinstance(move, Fill) else len(move.values)
                if isinstance(move, Send) or len(slots) == needs:
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
        return outcome(*Arguments(template.args, template.kwargs).fill(slots, Ref))


@dataclass
class Reference:
    """Evaluates nodes the plain way: recursion, a memo, and the rules for values and refs."""

    read: Callable[[DAGNode], Any]
    known: dict[DAGNode, Any] = field(default_factory=dict)

    def value(self, node: DAGNode) -> Any:
        if not isinstance(node, FunctionNode | MethodNode):
            return self.read(node)
        if node not in self.known:
            args = tuple(self.argument(value) for value in node.get_args())
            kwargs = {key: self.argument(value) for key, value in node.get_kwargs().items()}
            self.known[node] = outcome(args, kwargs)
        return self.known[node]

    def argument(self, value: Any) -> Any:
        return self.value(value) if isinstance(value, DAGNode) else self.nested(value)

    def nested(self, value: Any) -> Any:
        if isinstance(value, FunctionNode | MethodNode):
            return Ref(self.value(value))
        if isinstance(value, DAGNode):
            return self.read(value)
        if isinstance(value, list | tuple):
            return type(value)(self.nested(member) for member in value)
        if isinstance(value, dict):
            return {key: self.nested(member) for key, member in value.items()}
        return value


@dataclass
class Request:
    """One way of bringing an input, and what each part of it is then."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parts: Callable[[Any], list[tuple[DAGNode, Any]]]


LIST = Request(([11, 22],), {}, lambda inp: [(inp, [11, 22]), (inp[0], 11), (inp[1], 22), (inp[-1], 22)])
DICT = Request(
    ({"a": 1, "b": [2]},),
    {},
    lambda inp: [(inp, {"a": 1, "b": [2]}), (inp["a"], 1), (inp["b"], [2])],
)
OBJECT = Request(
    (SimpleNamespace(x=1, y=2),),
    {},
    lambda inp: [(inp, SimpleNamespace(x=1, y=2)), (inp.x, 1), (inp.y, 2)],
)
SEVERAL = Request(
    (5, "six"),
    {"k": 7, "z": None},
    lambda inp: [(inp[0], 5), (inp[1], "six"), (inp.k, 7), (inp["k"], 7), (inp.z, None)],
)
MIXED = Request((5,), {"k": 7}, lambda inp: [(inp[0], 5), (inp.k, 7)])
KEYWORD = Request((), {"k": 7}, lambda inp: [(inp.k, 7), (inp["k"], 7)])


def arguments(sources: list[DAGNode]) -> st.SearchStrategy[Any]:
    """Nodes, constants, and containers of both."""
    nodes = st.sampled_from(sources)
    atoms = st.one_of(nodes, nodes, nodes, st.integers(0, 9), st.sampled_from(["text", None]))
    return st.one_of(
        nodes,
        atoms,
        st.lists(atoms, min_size=1, max_size=3),
        st.tuples(atoms, st.lists(atoms, max_size=2)),
        st.dictionaries(st.sampled_from("pqr"), atoms | st.lists(atoms, max_size=2), max_size=2),
    )


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Request, dict[DAGNode, Any], DAGNode]:
    """A request, the values of its parts, and a random graph that reads them."""
    request = draw(st.sampled_from([LIST, DICT, OBJECT, SEVERAL, MIXED, KEYWORD]))
    models = [Model.bind(), Model.bind()]
    with InputNode() as inp:
        parts = request.parts(inp)
    sources: list[DAGNode] = [node for node, _ in parts]
    unused: dict[DAGNode, None] = {}
    for _ in range(draw(st.integers(1, 10))):
        # Half of the positional draws come from the newest nodes, for depth; the rest is sharing.
        recent = sources[-3:] if draw(st.booleans()) else sources
        args = draw(st.lists(arguments(recent), max_size=3))
        kwargs = draw(st.dictionaries(st.sampled_from("uvw"), arguments(sources), max_size=2))
        node = draw(st.sampled_from([step, models[0].forward, models[1].forward])).bind(*args, **kwargs)
        for child in node.get_all_child_nodes():
            unused.pop(child, None)
        unused[node] = None
        sources.append(node)
    # The root needs whatever nobody else does, so that every node is reached.
    return request, dict(parts), step.bind(*unused, [*unused][:2])


@settings(max_examples=100, deadline=None)
@given(graphs(), st.data())
def test_a_graph_gives_what_plain_python_gives_and_runs_each_node_once(
    case: tuple[Request, dict[DAGNode, Any], DAGNode], data: st.DataObject
) -> None:
    request, parts, output = case
    reference = Reference(parts.__getitem__)
    expected = reference.value(output)

    plan = compile_application(DAGDriver.bind(output)).graphs[""]
    interpreter = Interpreter(plan, lambda count: data.draw(st.integers(0, count - 1)))
    answer = interpreter.run(request.args, request.kwargs)

    assert answer == expected
    assert interpreter.runs == Counter(range(len(plan.steps)))
    assert len(plan.steps) == len(reference.known)
