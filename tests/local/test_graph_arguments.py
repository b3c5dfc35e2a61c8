"""How arguments arrive when a graph runs."""

from __future__ import annotations

import asyncio
import enum
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy
import pytest
from rendezvous import meet
from serving import ServeRun

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import PayloadError
from qserve.wire.moves import INPUTS_LIMIT


@serve.deployment
def give(value: Any = None) -> Any:
    return value


def test_results_arrive_as_values_by_position_and_by_keyword(serve_run: ServeRun) -> None:
    @serve.deployment
    def combine(a: int, b: int = 0, *, c: int = 0) -> list[int]:
        return [a, b, c]

    with InputNode() as inp:
        root = DAGDriver.bind(combine.bind(give.bind(inp[0]), c=give.bind(inp[1])))

    assert serve.get(serve_run(root).predict.remote([1, 2])) == [1, 0, 2]


def test_results_in_containers_arrive_as_refs_and_the_input_as_values(serve_run: ServeRun) -> None:
    @serve.deployment
    def combine(values: list[Any], named: dict[str, Any]) -> Any:
        assert not isinstance(values[0], int)
        return [sum(serve.get(values[:2])), values[2], serve.get(named["deep"][0]), named["inp"]]

    with InputNode() as inp:
        one, two = give.bind(inp[0]), give.bind(inp[1])
        root = DAGDriver.bind(combine.bind([one, two, inp[2]], {"deep": [two], "inp": inp["k"]}))

    handle = serve_run(root)

    assert serve.get(handle.predict.remote(1, 2, 3, k=4)) == [3, 3, 2, 4]


def test_async_code_awaits_the_refs_in_a_container(serve_run: ServeRun) -> None:
    @serve.deployment
    async def total(values: list[Any]) -> int:
        return sum(await asyncio.gather(*values))

    with InputNode() as inp:
        root = DAGDriver.bind(total.bind([give.bind(inp), give.bind(inp)]))

    assert serve.get(serve_run(root).predict.remote(4)) == 8


def test_a_shared_node_runs_once_for_all_its_consumers(serve_run: ServeRun) -> None:
    @serve.deployment
    class Once:
        def __init__(self) -> None:
            self.asked: set[int] = set()

        def value(self, request: int) -> int:
            if request in self.asked:
                raise AssertionError("asked twice for one request")
            self.asked.add(request)
            return request * 10

    @serve.deployment
    def collect(*values: Any) -> list[Any]:
        return [*values[:-1], serve.get(values[-1][0])]

    with InputNode() as inp:
        shared = Once.bind().value.bind(inp)
        root = DAGDriver.bind(collect.bind(shared, shared, give.bind(shared), [shared]))
    handle = serve_run(root)

    assert serve.get([handle.predict.remote(n) for n in range(3)]) == [[n * 10] * 4 for n in range(3)]


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [(([1, 2],), {}, [1, 2]), ((1, 2), {}, [1, 2]), ((1, 2), {"unused": 3}, [1, 2])],
)
def test_parts_of_one_value_and_several_values_feed_alike(
    serve_run: ServeRun, args: tuple[Any, ...], kwargs: dict[str, Any], expected: list[int]
) -> None:
    @serve.deployment
    def pair(a: int, b: int) -> list[int]:
        return [a, b]

    with InputNode() as inp:
        root = DAGDriver.bind(pair.bind(inp[0], inp[1]))

    assert serve.get(serve_run(root).predict.remote(*args, **kwargs)) == expected


def test_attributes_and_keywords_of_the_input(serve_run: ServeRun) -> None:
    with InputNode() as inp:
        root = DAGDriver.bind(give.bind(inp.real))
    handle = serve_run(root)

    assert serve.get(handle.predict.remote(3 + 4j)) == 3.0
    assert serve.get(handle.predict.remote(real="by keyword")) == "by keyword"


def test_a_missing_part_of_the_input_fails_the_request(serve_run: ServeRun) -> None:
    with InputNode() as inp:
        root = DAGDriver.bind(give.bind(inp["k"]))
    ref = serve_run(root).predict.remote(1, 2)

    with pytest.raises(KeyError, match="k"):
        serve.get(ref)


def test_a_graph_without_input_runs(serve_run: ServeRun) -> None:
    assert serve.get(serve_run(DAGDriver.bind(give.bind("constant"))).predict.remote()) == "constant"


def test_independent_nodes_run_at_the_same_time(serve_run: ServeRun, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @serve.deployment
    class Side:
        def wait_for(self, me: str, other: str) -> str:
            return meet(folder, me, other)

    @serve.deployment
    async def side(me: str, other: str) -> str:
        return await asyncio.to_thread(meet, folder, me, other)

    @serve.deployment
    def both(*names: str) -> str:
        return "".join(names)

    root = DAGDriver.bind(both.bind(Side.bind().wait_for.bind("a", "b"), side.bind("b", "a")))

    assert serve.get(serve_run(root).predict.remote()) == "ab"


def test_sync_and_async_functions_and_methods_mix(serve_run: ServeRun) -> None:
    @serve.deployment
    class Model:
        def __init__(self, weight: int) -> None:
            self.weight = weight

        def plain(self, x: int) -> int:
            return x * self.weight

        async def __call__(self, x: int) -> int:
            await asyncio.sleep(0)
            return x + self.weight

    @serve.deployment
    async def combine(a: int, b: int) -> tuple[int, int]:
        return a, b

    with InputNode() as inp:
        model = Model.bind(3)
        root = DAGDriver.bind(combine.bind(give.bind(model.plain.bind(inp)), model.__call__.bind(inp)))

    assert serve.get(serve_run(root).predict.remote(2)) == (6, 5)


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [5, 0.3 * 2, "text", b"bytes", None, True, (1, (2, [3])), {1: {2}}, frozenset({1}), 2**80, Decimal("0.10"), 1j],
    ids=repr,
)
def test_values_keep_their_type_on_the_way(run_here: ServeRun, value: Any) -> None:
    with InputNode() as inp:
        root = DAGDriver.bind(give.bind(give.bind(inp)))

    result = serve.get(run_here(root).predict.remote(value))

    assert result == value
    assert type(result) is type(value)


def test_arrays_enums_and_lambdas_travel(serve_run: ServeRun) -> None:
    @serve.deployment
    def use(array: Any, colour: Colour, function: Any) -> Any:
        return function(array), colour, array.dtype.name

    with InputNode() as inp:
        root = DAGDriver.bind(use.bind(give.bind(inp[0]), inp[1], inp[2]))
    array = numpy.arange(6, dtype="int16").reshape(2, 3)

    doubled, colour, dtype = serve.get(serve_run(root).predict.remote(array, Colour.RED, lambda a: a * 2))

    assert (doubled == array * 2).all()
    assert (colour.value, dtype) == ("red", "int16")


def test_what_user_code_changes_is_its_own_copy(serve_run: ServeRun) -> None:
    @serve.deployment
    class Greedy:
        def eat(self, bound: list[int], given: list[int]) -> list[int]:
            bound.append(len(bound))
            given.clear()
            return bound

    with InputNode() as inp:
        handle = serve_run(DAGDriver.bind(Greedy.bind().eat.bind([], inp)))
    given = [1]

    assert [serve.get(handle.predict.remote(given)) for _ in range(2)] == [[0], [0]]
    assert given == [1]


def test_handles_of_bound_deployments_arrive_in_constructors(serve_run: ServeRun) -> None:
    @serve.deployment
    class Leaf:
        def __init__(self, base: int) -> None:
            self.base = base

        def add(self, x: int) -> int:
            return self.base + x

    @serve.deployment
    class Parent:
        def __init__(self, first: Any, *, others: dict[str, list[Any]]) -> None:
            self.leaves = [first, *others["rest"]]

        async def __call__(self, x: int) -> list[int]:
            refs = [await leaf.add.remote(x) for leaf in self.leaves]
            return list(await asyncio.gather(*refs))

    @serve.deployment
    class GrandParent:
        def __init__(self, parent: Any, leaf: Any) -> None:
            self.parent, self.leaf = parent, leaf

        async def __call__(self, x: int) -> list[int]:
            return [*await (await self.parent.remote(x)), await (await self.leaf.add.remote(x))]

    leaf, other = Leaf.bind(1), Leaf.bind(2)
    handle = serve_run(GrandParent.bind(Parent.bind(leaf, others={"rest": [other, leaf]}), leaf))

    assert serve.get(handle.remote(10)) == [11, 12, 11, 11]


def test_a_graph_in_a_constructor_arrives_as_a_graph_handle(serve_run: ServeRun) -> None:
    @serve.deployment
    def join(a: str, b: str) -> str:
        return a + b

    @serve.deployment
    class Own:
        def __init__(self, dag: Any) -> None:
            self.dag = dag

        async def __call__(self, x: str) -> str:
            return await (await self.dag.remote(x, "!")) + "?"

        def in_sync(self, x: str) -> str:
            return serve.get(self.dag.remote(x, "!"))

    with InputNode() as inp:
        root = Own.bind(join.bind(give.bind(inp[0]), inp[1]))

    handle = serve_run(root)

    assert serve.get(handle.remote("hello")) == "hello!?"
    assert serve.get(handle.in_sync.remote("hello")) == "hello!"


def test_a_deployment_as_a_nodes_argument_arrives_as_a_handle(serve_run: ServeRun) -> None:
    @serve.deployment
    class Model:
        def __call__(self, x: int) -> int:
            return x + 1

    @serve.deployment
    async def use(model: Any, x: int) -> int:
        return await (await model.remote(x))

    with InputNode() as inp:
        root = DAGDriver.bind(use.bind(Model.bind(), inp))

    assert serve.get(serve_run(root).predict.remote(1)) == 2


@serve.deployment
class Wide:
    """Takes any number of values."""

    def total(self, *values: int) -> list[int]:
        return [len(values), sum(values)]

    def one(self, value: int) -> int:
        return value


def test_a_call_takes_as_many_parts_of_the_request_as_a_step_may_have(serve_run: ServeRun) -> None:
    wide = Wide.bind()
    sizes = (1, 255, 256, 257, INPUTS_LIMIT)
    with InputNode() as inp:
        dags = {f"/{size}": wide.total.bind(*[inp[number] for number in range(size)]) for size in sizes}
    handle = serve_run(DAGDriver.bind(dags))

    for size in sizes:
        values = list(range(size))
        assert serve.get(handle.predict_with_route.remote(f"/{size}", values), timeout=60) == [size, sum(values)]


def test_a_result_goes_to_any_number_of_calls_and_one_call_takes_the_results_of_all_of_them(
    serve_run: ServeRun,
) -> None:
    wide = Wide.bind()
    sizes = (1, 255, 256, 257)
    with InputNode() as inp:
        first = wide.one.bind(inp)
        dags = {f"/{size}": wide.total.bind(*[wide.one.bind(first) for _ in range(size)]) for size in sizes}
    handle = serve_run(DAGDriver.bind(dags))

    for size in sizes:
        assert serve.get(handle.predict_with_route.remote(f"/{size}", 7), timeout=30) == [size, 7 * size]


@pytest.mark.parametrize("number", [1, 254, 255, 256])
def test_a_call_takes_any_number_of_other_calls_results(serve_run: ServeRun, number: int) -> None:
    handle = serve_run(Wide.bind())
    refs = [handle.one.remote(value) for value in range(number)]

    assert serve.get(handle.total.remote(*refs), timeout=60) == [number, sum(range(number))]


@pytest.mark.slow
def test_a_call_with_more_results_than_a_step_may_have_is_refused_before_anything_is_sent(run_here: ServeRun) -> None:
    handle = run_here(Wide.bind())
    refs = [handle.one.remote(value) for value in range(INPUTS_LIMIT)]

    assert serve.get(handle.total.remote(*refs[1:]), timeout=60) == [INPUTS_LIMIT - 1, sum(range(INPUTS_LIMIT))]
    with pytest.raises(
        PayloadError, match=r"Wide.total has 3000 results of other calls .* the limit is 2999. Await some"
    ):
        handle.total.remote(*refs)


def test_values_that_are_too_long_together_fail_the_call_by_its_own_error(run_here: ServeRun) -> None:
    @serve.deployment
    def large(megabytes: int) -> bytes:
        return bytes(megabytes * 1024 * 1024)

    wide = Wide.bind()
    with InputNode() as inp:
        value = large.bind(inp)
        root = DAGDriver.bind(wide.total.bind([wide.one.bind(value) for _ in range(30)]))

    with pytest.raises(
        PayloadError, match=r"30 calls of the graph would get \d+ bytes at once; the limit is 268435456"
    ):
        serve.get(run_here(root).predict.remote(9), timeout=60)


@serve.deployment
class Keywords:
    def __init__(this, /, **named: Any) -> None:  # noqa: N805
        this.named = named

    def __call__(this, /, **named: Any) -> dict[str, Any]:  # noqa: N805
        return named

    def given(this, /, **named: Any) -> dict[str, Any]:  # noqa: N805
        return this.named

    @serve.batch
    async def batched(self, node: list[Any], cls: list[Any]) -> list[Any]:
        return list(zip(node, cls, strict=True))


@serve.deployment
def keywords(**named: Any) -> dict[str, Any]:
    return named


def test_any_keyword_that_a_function_may_have_arrives(serve_run: ServeRun) -> None:
    names = ["self", "cls", "node", "args", "kwargs", "call", "graph", "method", "options", "request", "timeout_s"]
    named = {name: number for number, name in enumerate(names)}
    with InputNode() as inp:
        # mypy: the node's names of parameters are those of the class
        node: Any = Keywords.bind(**named)
        root = DAGDriver.bind(
            {"/method": node.__call__.bind(**named), "/given": node.given.bind(), "/function": keywords.bind(**named),
             "/input": keywords.bind(first=inp.self, second=inp.args)}
        )  # fmt: skip
    handle = serve_run(root)

    for route in ("/method", "/given", "/function"):
        assert serve.get(handle.predict_with_route.remote(route, **named)) == named
    assert serve.get(handle.predict_with_route.remote("/input", **named)) == {"first": 0, "second": 3}
    alone = serve_run(Keywords.bind(**named), name="alone")
    assert serve.get(alone.remote(**named)) == named
    assert serve.get(alone.batched.remote(node=1, cls=2)) == (1, 2)
