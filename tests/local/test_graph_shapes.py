"""Graphs of every shape, run in this process: how nodes are bound to each other and to the input."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from serving import ask

import qserve as serve
from qserve.dag import InputNode
from qserve.define.compile import compile_application
from qserve.drivers import DAGDriver
from qserve.handle import RayServeDAGHandle, RayServeHandle, RayServeSyncHandle

pytestmark = pytest.mark.usefixtures("run_here")


def predicts(node: Any, *args: Any, **kwargs: Any) -> Any:
    """What a graph answers by Python."""
    handle = serve.run(DAGDriver.bind(node), local=True)
    return ask(handle.predict, *args, **kwargs)


def built_names(node: Any) -> list[str]:
    return [one.name for one in compile_application(node).deployments]


@serve.deployment
class Model:
    def __init__(self, weight: float = 1, ratio: float = 1) -> None:
        self.weight, self.ratio = weight, ratio

    def forward(self, value: Any) -> Any:
        return self.ratio * self.weight * value

    def get(self) -> float:
        return self.weight

    __call__ = forward


@serve.deployment
def combine(first: Any, second: Any, kwargs_output: Any = 0) -> Any:
    return first + second + kwargs_output


@serve.deployment
def collect(*values: Any) -> list[Any]:
    return list(values)


@serve.deployment
def show(value: Any) -> Any:
    return value


# -- binding ---------------------------------------------------------------------------------------


def test_constructor_arguments_come_by_position_by_keyword_and_by_keyword_only() -> None:
    @serve.deployment
    class Arrays:
        def __init__(self, left: Any, *, right: Any) -> None:
            self.total = left + right

        def get(self) -> Any:
            return self.total

    array = np.array([1, 2])

    assert predicts(Arrays.bind(array, right=array).get.bind()).tolist() == [2, 4]
    assert predicts(Model.bind(2, ratio=0.3).forward.bind(1)) == 0.6
    assert predicts(Model.bind(ratio=3).get.bind()) == 1


def test_keyword_nodes_plain_keywords_and_defaults_arrive() -> None:
    with InputNode() as dag_input:
        m1, m2 = Model.bind(1), Model.bind(2)
        left, right = m1.forward.bind(dag_input[0]), m2.forward.bind(dag_input[1])
        by_node = combine.bind(left, right, kwargs_output=dag_input[2])
        by_value = combine.bind(left, right, kwargs_output=100)
        by_default = combine.bind(left, right)
        all_by_keyword = combine.bind(second=right, first=left)

    assert [predicts(node, 1, 2, 3) for node in (by_node, by_value, by_default, all_by_keyword)] == [8, 105, 5, 5]


def test_a_function_with_any_number_of_parameters_takes_any_number_of_nodes() -> None:
    with InputNode() as inp:
        nodes = [Model.bind(weight).forward.bind(inp) for weight in range(4)]
        output = collect.bind(*nodes)

    assert predicts(output, 10) == [0, 10, 20, 30]
    assert predicts(collect.bind(*nodes[:2]), 10) == [0, 10]


def test_nodes_may_be_bound_outside_inside_and_after_the_block() -> None:
    outside = Model.bind(2)
    with InputNode() as inp:
        inside = outside.forward.bind(inp)
    after = collect.bind(inside, Model.bind(5).forward.bind(inp), inp)

    assert predicts(after, 10) == [20, 50, 10]


def test_nodes_kept_in_lists_make_a_chain() -> None:
    with InputNode() as inp:
        chain: list[Any] = [inp]
        for weight in (1, 2, 3):
            chain.append(Model.bind(weight).forward.bind(chain[-1]))

    assert predicts(chain[-1], 1) == 6


def test_a_diamond_and_the_same_node_twice() -> None:
    with InputNode() as inp:
        top = Model.bind(2).forward.bind(inp)
        left, right = Model.bind(3).forward.bind(top), Model.bind(4).forward.bind(top)
        output = collect.bind(combine.bind(left, right), combine.bind(top, top))

    assert predicts(output, 1) == [14, 4]


def test_two_methods_of_one_node_share_its_state() -> None:
    @serve.deployment
    class Accumulator:
        def __init__(self) -> None:
            self.total = 0

        def add(self, value: int) -> int:
            self.total += value
            return self.total

        def after(self, _added: int) -> int:
            return self.total

    accumulator = Accumulator.bind()
    with InputNode() as inp:
        output = accumulator.after.bind(accumulator.add.bind(inp))

    assert built_names(DAGDriver.bind(output)) == ["Accumulator", "DAGDriver"]
    assert predicts(output, 5) == 5


# -- the input -------------------------------------------------------------------------------------


def test_several_values_and_keywords_are_read_by_place_and_by_name() -> None:
    with InputNode() as inp:
        output = collect.bind(inp[0], inp[1], inp.m3, inp["m3"], inp["m4"])

    assert predicts(output, 1, 2, m3=3, m4={"deep": [4]}) == [1, 2, 3, 3, {"deep": [4]}]


def test_the_whole_input_and_its_parts_go_to_any_number_of_nodes() -> None:
    with InputNode() as inp:
        first = inp[0]
        output = collect.bind(first, show.bind(first), inp, show.bind(inp), [inp[1], {"k": first}])

    assert predicts(output, [1, 2]) == [1, 1, [1, 2], [1, 2], [2, {"k": 1}]]


# -- running ---------------------------------------------------------------------------------------


def test_nothing_is_called_besides_what_the_graph_says() -> None:
    @serve.deployment
    class Touchy:
        def __call__(self, *_: Any) -> None:
            raise AssertionError("nobody asked for this")

        def value(self) -> int:
            return 1

        def unused(self, *_: Any) -> None:
            raise AssertionError("nobody asked for this either")

    touchy = Touchy.bind()
    with InputNode() as inp:
        touchy.unused.bind(inp)
        output = collect.bind(touchy.value.bind(), inp)

    assert [predicts(output, n) for n in range(2)] == [[1, 0], [1, 1]]


NESTED_HANDLE_KEY = "nested_handle"


def test_a_class_combines_handles_that_are_nested_in_a_dict() -> None:
    @serve.deployment
    class Combine:
        def __init__(self, m1: RayServeHandle, m2: dict[str, RayServeHandle], m2_nested: bool = False) -> None:
            self.m1, self.m2 = m1, m2[NESTED_HANDLE_KEY] if m2_nested else m2

        async def predict(self, value: float) -> float:
            first, second = await self.m1.forward.remote(value), await self.m2.forward.remote(value)  # type: ignore[union-attr]
            return sum(await asyncio.gather(first, second))

    m2 = Model.bind(2, ratio=0.5)
    with InputNode() as inp:
        output = Combine.bind(Model.bind(1), m2={NESTED_HANDLE_KEY: m2}, m2_nested=True).predict.bind(inp)

    assert predicts(output, 4) == 8


def test_a_driver_of_the_users_runs_a_graph_by_several_values() -> None:
    @serve.deployment
    class Driver:
        def __init__(self, graph: RayServeDAGHandle) -> None:
            self.graph = graph

        async def ask(self, *args: Any, **kwargs: Any) -> Any:
            return await (await self.graph.remote(*args, **kwargs))

    with InputNode() as inp:
        node = Driver.bind(collect.bind(inp[0], inp["b"], show.bind(inp.c)))
    handle = serve.run(node, local=True)

    assert ask(handle.ask, 1, b=2, c=3) == [1, 2, 3]


def test_a_parent_and_a_grandparent_share_their_children() -> None:
    @serve.deployment
    class Child:
        def __init__(self) -> None:
            self.calls = 0

        def count(self) -> int:
            self.calls += 1
            return self.calls

    @serve.deployment
    class Parent:
        def __init__(self, child: RayServeHandle) -> None:
            self.child = child

        async def count(self) -> int:
            return await (await self.child.count.remote())

    @serve.deployment
    class GrandParent:
        def __init__(self, children: dict[str, RayServeSyncHandle]) -> None:
            self.children = children

        def __call__(self) -> list[int]:
            return [serve.get(child.count.remote()) for child in self.children.values()]

    child = Child.bind()
    root = GrandParent.bind({"parent": Parent.bind(child), "child": child})

    assert built_names(root) == ["Child", "Parent", "GrandParent"]
    assert ask(serve.run(root, local=True)) == [1, 2]
