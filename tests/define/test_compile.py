"""From a bound root to an application: deployments, handles, plans, and what is refused."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import cloudpickle
import pytest
from nodes import Combine, Model, Parent, combine, func

from qserve.calls.ref import current
from qserve.dag import InputNode
from qserve.define.application import single_ingress
from qserve.define.compile import CompiledApplication, Compiler, assign_names, compile_application
from qserve.define.deployments import Deployment, deployment
from qserve.drivers import DAGDriver
from qserve.graph.nodes import bottom_up
from qserve.graph.plan import InputKey, Plan, Slot, Step
from qserve.handle import RayServeDAGHandle, RayServeDeploymentHandle
from qserve.wire.application import DriverRecord
from qserve.wire.moves import INPUTS_LIMIT, STEPS_LIMIT


def names(application: CompiledApplication) -> list[str]:
    return [built.name for built in application.deployments]


def by_name(application: CompiledApplication, name: str) -> Deployment:
    return {built.name: built for built in application.deployments}[name]


def plan_of(node: Any) -> Plan:
    return compile_application(DAGDriver.bind(node)).graphs[""]


# deployments


def test_deployments_come_children_first_and_the_root_last() -> None:
    m1, m2 = Model.bind(1), Model.bind(2)

    application = compile_application(Combine.bind(m1, m2=m2))

    assert names(application) == ["Model", "Model_1", "Combine"]
    assert application.ingress.name == "Combine"
    assert application.driver is None
    assert application.graphs == {}


@pytest.mark.parametrize(
    ("root", "count"),
    [
        (func.bind(), 1),
        (Parent.bind(), 1),
        (Parent.bind(func.bind()), 2),
        (Parent.bind(Parent.bind(func.bind()), func.bind(), func.bind()), 5),
    ],
)
def test_every_bind_is_a_deployment(root: Any, count: int) -> None:
    assert len(compile_application(root).deployments) == count


def test_building_twice_gives_the_same() -> None:
    root = Combine.bind(Model.bind(1), Model.bind(2))

    assert names(compile_application(root)) == names(compile_application(root))


def test_class_nodes_arrive_as_handles_wherever_they_are_nested() -> None:
    m1, m2, m3 = Model.bind(1), Model.bind(2), Model.bind(3)

    application = compile_application(Combine.bind(m1, [(m2,)], m2={"key": m2, "deep": [{"x": m3}]}), app_name="shop")

    built = by_name(application, "Combine")
    assert built.init_args[0] == RayServeDeploymentHandle("Model", "shop")
    assert built.init_args[0].deployment_name == "Model"
    assert built.init_args[1] == [(RayServeDeploymentHandle("Model_1", "shop"),)]
    assert built.init_kwargs["m2"]["key"].deployment_name == "Model_1"
    assert built.init_kwargs["m2"]["deep"][0]["x"].deployment_name == "Model_2"


def test_constants_stay_as_they_are() -> None:
    constant = {"a": [1, 2]}

    built = compile_application(Combine.bind(constant, x=5)).deployments[0]

    assert built.init_args[0] is constant
    assert built.init_kwargs == {"x": 5}


def test_options_survive_building() -> None:
    options = {"num_replicas": 2, "user_config": {"a": 1}, "max_concurrent_queries": 7}
    root = Parent.options(**options).bind(func.options(**options).bind())

    for built in compile_application(root).deployments:
        assert built.num_replicas == 2
        assert built.user_config == {"a": 1}
        assert built.max_concurrent_queries == 7


def test_built_applications_can_be_pickled() -> None:
    application = compile_application(Parent.bind(Model.bind().forward.bind(1)), app_name="a")

    copied = cloudpickle.loads(cloudpickle.dumps(application))

    assert names(copied) == ["Model", "Parent"]
    assert copied.graphs == application.graphs
    assert isinstance(copied, CompiledApplication)


# the ingress


@pytest.mark.parametrize("target", [Parent, func])
def test_the_root_answers_at_slash_unless_it_says_otherwise(target: Deployment) -> None:
    assert compile_application(target.bind()).ingress.route_prefix == "/"
    assert compile_application(target.options(route_prefix=None).bind()).ingress.route_prefix == "/"
    assert compile_application(target.options(route_prefix="/hi").bind()).ingress.route_prefix == "/hi"


def test_only_the_root_has_a_route_prefix() -> None:
    application = compile_application(Parent.bind(Model.bind(), func.bind()))

    assert [built.route_prefix for built in application.deployments] == [None, None, "/"]
    assert single_ingress(application.deployments).name == "Parent"


def test_a_route_prefix_below_the_root_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        compile_application(Parent.bind(Model.options(route_prefix="/m").bind()))

    assert str(caught.value) == (
        "Route prefix is only configurable on the ingress deployment. 'Model' has "
        "route_prefix='/m'; set it on 'Parent' instead."
    )


def test_two_route_prefixes_among_built_deployments_are_refused() -> None:
    deployments = compile_application(Parent.bind(Model.bind())).deployments
    deployments[-1].set_options(route_prefix="/changed")
    assert single_ingress(deployments).route_prefix == "/changed"

    deployments[0].set_options(route_prefix="/x")

    with pytest.raises(ValueError) as caught:
        single_ingress(deployments)
    assert str(caught.value) == (
        "Only one deployment in an Serve Application or DAG can have non-None route prefix. 2 have: 'Model', 'Parent'."
    )
    with pytest.raises(ValueError, match="0 have: none"):
        single_ingress([])


def test_a_function_above_other_deployments_needs_a_driver() -> None:
    words = (
        "The ingress deployment to your application cannot be a function if there are multiple "
        "deployments: 'combine' needs 'func'. Please provide a driver class: write "
        "DAGDriver.bind(node) with the node of 'combine', so that it is bound to a DAGDriver."
    )
    with pytest.raises(ValueError) as caught:
        compile_application(combine.bind(func.bind()))
    assert str(caught.value) == words
    with pytest.raises(ValueError, match="'combine' needs 'Model'"):
        compile_application(combine.bind([Model.bind()]))


@pytest.mark.parametrize(
    ("target", "kind", "label"),
    [
        (Model.bind().forward.bind(), "MethodNode", "forward"),
        (InputNode(), "InputNode", "INPUT_NODE"),
        (InputNode()[0], "InputAttributeNode", "INPUT_ATTRIBUTE_NODE"),
    ],
)
def test_a_node_that_is_no_deployment_needs_a_driver(target: Any, kind: str, label: str) -> None:
    with pytest.raises(ValueError) as caught:
        compile_application(target)

    assert str(caught.value) == (
        f"Invalid DAGNode type as entry to serve.run(), type: {kind}, accepted: ClassNode, "
        "FunctionNode; please provide a driver class and bind it as entrypoint to your Serve DAG. "
        f"For {label!r} write serve.run(DAGDriver.bind(node))."
    )


@pytest.mark.parametrize(
    ("target", "ending"),
    [
        (5, "int."),
        (None, "NoneType."),
        ("module:node", "str."),
        (
            len,
            "builtin_function_or_method. 'len' is a function: decorate it with @qserve.deployment and write"
            " len.bind(...). If it makes the node, call it: node = len(...).",
        ),
        (func, "Deployment. Write func.bind(...)."),
        (Model, "Deployment. Write Model.bind(...)."),
        (
            Model.bind().forward,
            "UnboundMethod. UnboundMethod('Model.forward') is not bound yet: call its .bind(...), and give the result"
            " to a DAGDriver.",
        ),
    ],
)
def test_what_is_no_node_is_no_target(target: Any, ending: str) -> None:
    with pytest.raises(TypeError) as caught:
        compile_application(target)

    assert str(caught.value) == (
        "Expected a ClassNode, FunctionNode, or Application as target. Got unexpected type " + ending
    )


# graphs in constructor arguments


def test_a_method_node_in_a_constructor_is_a_graph() -> None:
    with InputNode() as inp:
        dag = Model.bind().forward.bind(inp)

    application = compile_application(Parent.bind([dag], again=dag), app_name="a")

    built = by_name(application, "Parent")
    assert built.init_args == ([RayServeDAGHandle("Parent:0", "a")],)
    assert built.init_kwargs["again"].graph_name == "Parent:0"
    assert application.graphs == {
        "Parent:0": Plan((Step("Model", "forward", (Slot(0),), {}, 1),), {InputKey(): ((0, 0),)}, 0)
    }


def test_a_function_node_with_arguments_in_a_constructor_is_a_graph() -> None:
    application = compile_application(Parent.bind(func.bind(5)))

    assert application.deployments[-1].init_args == (RayServeDAGHandle("Parent:0", "default"),)
    assert application.graphs["Parent:0"] == Plan((Step("func", args=(5,)),), {}, 0)


def test_a_function_node_without_arguments_in_a_constructor_is_a_plain_handle() -> None:
    application = compile_application(Parent.bind(func.bind()))

    assert application.deployments[-1].init_args == (RayServeDeploymentHandle("func", "default"),)
    assert application.graphs == {}


def test_graphs_in_the_constructors_of_inner_classes_work_alike() -> None:
    shared = func.bind(1)
    inner = Model.bind(shared, func.bind(2))

    application = compile_application(Parent.bind(inner, shared, func.bind(3)))

    assert [handle.graph_name for handle in by_name(application, "Model").init_args] == [
        "Model:0",
        "Model:1",
    ]
    assert [handle.graph_name for handle in application.deployments[-1].init_args[1:]] == [
        "Model:0",
        "Parent:0",
    ]
    assert set(application.graphs) == {"Model:0", "Model:1", "Parent:0"}


def shared_graphs() -> Any:
    shared = func.bind(1)
    return Parent.bind(Model.bind(shared, func.bind(2)), Parent.bind(shared, func.bind(3)), Model.bind(shared))


def driven() -> Any:
    model = Model.bind(func.bind(1))
    with InputNode() as inp:
        return DAGDriver.bind({"/a": model.forward.bind(inp), "/b": combine.bind(inp, Parent.bind(model))})


@pytest.mark.parametrize("root", [shared_graphs(), driven(), func.bind()], ids=["graphs", "driver", "function"])
def test_a_deployment_that_is_compiled_by_itself_is_the_same_as_among_all(root: Any) -> None:
    everything = compile_application(root, app_name="a")

    for one in everything.deployments:
        alone = compile_application(root, app_name="a", only=one.name)

        same = by_name(alone, one.name)
        assert (same.func_or_class, same.config) == (one.func_or_class, one.config)
        assert set(names(alone)) == {one.name, everything.ingress.name}
        assert alone.ingress.name == everything.ingress.name
        assert (alone.driver, alone.graphs) == (everything.driver, everything.graphs)


def test_a_single_function_with_bound_arguments_is_a_graph() -> None:
    with InputNode() as inp:
        application = compile_application(func.bind(inp, 2))

    assert names(application) == ["func"]
    assert application.graphs[""].steps == (Step("func", args=(Slot(0), 2), needs=1),)


def test_a_single_function_without_arguments_is_no_graph() -> None:
    assert compile_application(func.bind()).graphs == {}


# drivers


def test_a_driver_serves_one_graph() -> None:
    with InputNode() as inp:
        root = DAGDriver.options(route_prefix="/my-dag", num_replicas=2).bind(func.bind(inp))

    application = compile_application(root, app_name="a")

    assert names(application) == ["func", "DAGDriver"]
    assert application.ingress.name == "DAGDriver"
    assert application.ingress.route_prefix == "/my-dag"
    assert application.deployments[-1].func_or_class is DAGDriver.func_or_class
    assert application.deployments[-1].init_args == (RayServeDAGHandle("", "a"),)
    assert (application.driver, application.adapter) == (DriverRecord("starlette_request"), None)


def test_a_driver_over_a_class_node_calls_it_with_the_input() -> None:
    application = compile_application(DAGDriver.bind(Model.bind()))

    assert application.driver == DriverRecord("starlette_request", direct={"": "Model"})
    assert application.graphs == {"": Plan((Step("Model", "__call__", (Slot(0),), {}, 1),), {InputKey(): ((0, 0),)}, 0)}


def test_a_driver_serves_graphs_by_route() -> None:
    d1, d2 = Model.bind(1), Model.bind(2)
    with InputNode() as inp:
        routes = {
            "/method": d1.forward.bind(),
            "/class": d2,
            "/function": func.bind(),
            "/hello/world": combine.bind(d1.forward.bind(inp), 1),
        }
        root = DAGDriver.bind(routes, http_adapter="pkg.mod.fn")

    application = compile_application(root)

    assert application.driver == DriverRecord("", tuple(routes), {"/class": "Model_1"})
    assert application.adapter == "pkg.mod.fn"
    assert list(application.graphs) == list(routes)
    assert application.graphs["/method"].steps == (Step("Model", "forward"),)
    assert application.graphs["/function"].steps == (Step("func"),)
    assert application.graphs["/class"].feeds == {InputKey(): ((0, 0),)}
    assert [step.deployment for step in application.graphs["/hello/world"].steps] == [
        "Model",
        "combine",
    ]


def test_one_route_does_not_run_the_methods_of_another() -> None:
    model = Model.bind()

    application = compile_application(DAGDriver.bind({"/a": model.forward.bind(1), "/b": model.forward.bind(2)}))

    assert application.graphs["/a"].steps == (Step("Model", "forward", (1,)),)
    assert application.graphs["/b"].steps == (Step("Model", "forward", (2,)),)


def test_input_schema_is_the_older_name_of_the_adapter() -> None:
    application = compile_application(DAGDriver.bind(func.bind(1), input_schema="a.b"))

    assert (application.driver, application.adapter) == (DriverRecord(), "a.b")


@pytest.mark.parametrize(
    ("args", "kwargs", "kind", "words"),
    [
        ((), {}, TypeError, "DAGDriver.bind(): missing a required argument: 'dags'. Write"),
        ((func.bind(),), {"adapter": 1}, TypeError, "unexpected keyword argument 'adapter'"),
        ((5,), {}, TypeError, "DAGDriver.bind(graph) of a DAGDriver needs a node, got int 5."),
        (({"/a": 5},), {}, TypeError, "the route '/a' of a DAGDriver needs a node, got int 5."),
        (({"a": func.bind()},), {}, ValueError, "must be a string that starts with '/', got 'a'"),
        (({},), {}, ValueError, "DAGDriver.bind({}) serves nothing."),
        (
            (func.bind(),),
            {"http_adapter": "a.b", "input_schema": "a.b"},
            TypeError,
            "give only http_adapter",
        ),
    ],
)
def test_wrong_driver_arguments_are_refused_when_built(
    args: tuple[Any, ...], kwargs: dict[str, Any], kind: type[Exception], words: str
) -> None:
    root = DAGDriver.bind(*args, **kwargs)

    with pytest.raises(kind, match=re.escape(words)):
        compile_application(root)


def test_a_driver_is_only_the_root() -> None:
    with pytest.raises(ValueError, match="'DAGDriver' can only be the root of an application"):
        compile_application(Parent.bind(DAGDriver.bind(func.bind())))


# plans


def test_a_chain_feeds_each_step_into_the_next() -> None:
    with InputNode() as inp:
        plan = plan_of(func.bind(combine.bind(inp)))

    assert plan == Plan(
        steps=(
            Step("combine", args=(Slot(0),), needs=1),
            Step("func", args=(Slot(0),), needs=1),
        ),
        feeds={InputKey(): ((0, 0),), 0: ((1, 0),)},
        output=1,
    )


def test_the_guides_example_compiles_to_three_steps() -> None:
    m1, m2 = Model.bind(1), Model.bind(2)
    with InputNode() as inp:
        plan = plan_of(combine.bind(m1.forward.bind(inp[0]), m2.forward.bind(inp.b), kwargs_output=inp["c"]))

    assert [(step.deployment, step.method, step.needs) for step in plan.steps] == [
        ("Model", "forward", 1),
        ("Model_1", "forward", 1),
        ("combine", "__call__", 3),
    ]
    assert plan.steps[2].kwargs == {"kwargs_output": Slot(2)}
    assert plan.feeds == {
        InputKey("item", 0): ((0, 0),),
        InputKey("attribute", "b"): ((1, 0),),
        InputKey("item", "c"): ((2, 2),),
        0: ((2, 0),),
        1: ((2, 1),),
    }


def test_a_shared_node_is_one_step() -> None:
    shared = func.bind(1)

    plan = plan_of(combine.bind(combine.bind(shared), combine.bind(shared)))

    assert len(plan.steps) == 4
    assert plan.feeds[0] == ((1, 0), (2, 0))


def test_a_source_used_twice_in_a_step_has_one_slot() -> None:
    x = func.bind(1)

    (_, step) = plan_of(combine.bind(x, [x], k=x)).steps

    assert step.args == (Slot(0), [Slot(0, nested=True)])
    assert step.kwargs == {"k": Slot(0)}
    assert step.needs == 1


def test_nested_results_are_marked_and_nested_inputs_are_not() -> None:
    with InputNode() as inp:
        plan = plan_of(combine.bind({"x": func.bind(), "y": (inp, [inp.a])}))

    assert plan.steps[1].args == ({"x": Slot(0, nested=True), "y": (Slot(1), [Slot(2)])},)


def test_class_nodes_given_to_calls_arrive_as_handles() -> None:
    model = Model.bind()

    application = compile_application(DAGDriver.bind(func.bind(model, [model])), app_name="a")

    handle = RayServeDeploymentHandle("Model", "a")
    assert application.graphs[""].steps == (Step("func", args=(handle, [handle])),)
    assert names(application) == ["Model", "func", "DAGDriver"]


def test_nodes_that_the_root_does_not_need_are_ignored() -> None:
    model = Model.bind()
    model.forward.bind(1)
    Model.bind(2)

    application = compile_application(DAGDriver.bind(model.forward.bind(2)))

    assert names(application) == ["Model", "DAGDriver"]
    assert application.graphs[""].steps == (Step("Model", "forward", (2,)),)


def test_what_an_instance_was_made_of_is_no_step_of_its_calls() -> None:
    application = compile_application(DAGDriver.bind(Model.bind(func.bind(1)).forward.bind()))

    assert [step.deployment for step in application.graphs[""].steps] == ["Model"]
    assert [step.deployment for step in application.graphs["Model:0"].steps] == ["func"]


def test_an_input_may_be_the_output() -> None:
    with InputNode() as inp:
        assert Compiler({}, "a").plan(inp) == Plan((), {}, InputKey())
        assert Compiler({}, "a").plan(inp["x"]).output == InputKey("item", "x")


def test_an_input_made_outside_with_is_refused() -> None:
    inp = InputNode()

    for read in (inp, inp[0]):
        with pytest.raises(AssertionError) as caught:
            compile_application(DAGDriver.bind(func.bind(read)))
        assert str(caught.value) == (
            "InputNode is a singleton instance that should be only used in context manager. "
            "Write `with InputNode() as inp:` instead of `inp = InputNode()`."
        )


def test_two_inputs_in_one_graph_are_refused() -> None:
    with InputNode() as one, InputNode() as two:
        root = DAGDriver.bind(combine.bind(one, [two[0]]))

    with pytest.raises(AssertionError) as caught:
        compile_application(root)

    assert str(caught.value) == (
        "Each DAG should only have one unique InputNode. Share one between all nodes: with InputNode() as inp: ..."
    )


def test_an_input_smuggled_into_a_constructor_is_refused() -> None:
    smuggled: list[Any] = []
    root = Parent.bind(smuggled)
    with InputNode() as inp:
        smuggled.append(inp)

    with pytest.raises(ValueError, match="InputNode handles user dynamic input"):
        compile_application(root)


def test_graphs_may_be_thousands_of_nodes_deep() -> None:
    with InputNode() as inp:
        node: Any = func.bind(inp)
        for _ in range(5_000):
            node = combine.bind(node)

    application = compile_application(DAGDriver.bind(node))

    assert len(application.graphs[""].steps) == 5_001
    assert names(application)[-2] == "combine_4999"
    assert assign_names(bottom_up(node))[node] == "combine_4999"


def test_building_starts_nothing() -> None:
    plane, threads = current.installed, threading.enumerate()

    with InputNode() as inp:
        compile_application(DAGDriver.bind(Model.bind(func.bind()).forward.bind(inp)))

    assert current.installed is plane
    assert threading.enumerate() == threads


# how large a graph may be


def test_a_call_of_as_many_values_as_a_step_may_have_compiles_and_one_more_is_refused_by_its_name() -> None:
    with InputNode() as inp:
        values = [inp[number] for number in range(INPUTS_LIMIT + 1)]
    assert plan_of(func.bind(*values[:-1])).steps[0].needs == INPUTS_LIMIT
    assert plan_of(func.bind(*values[:-1], *values[:-1], 1, 2, 3)).steps[0].needs == INPUTS_LIMIT

    with pytest.raises(ValueError, match=r"call of 'func' .* takes 3001 values .* the limit is 3000\. Let other nodes"):
        plan_of(func.bind(*values))


@pytest.mark.slow
def test_a_graph_of_too_many_calls_is_refused_by_the_name_of_the_first_that_is_too_much() -> None:
    model = Model.bind(1)
    with InputNode() as inp:
        calls = [model.forward.bind(inp) for _ in range(STEPS_LIMIT)]
    groups = [combine.bind(*calls[first : first + INPUTS_LIMIT]) for first in range(0, STEPS_LIMIT, INPUTS_LIMIT)]

    with pytest.raises(ValueError, match=r"more than 10000 calls, which is the limit; .* 'Model'\. Let a deployment"):
        plan_of(combine.bind(*groups))


# -- arguments that do not fit ---------------------------------------------------------------------


class Scaler:
    def __init__(self, by: int, *, name: str = "") -> None: ...

    def scale(self, value: float, twice: bool = False) -> float: ...

    @staticmethod
    def plain(value: float) -> float: ...

    @classmethod
    def of_class(cls, value: float) -> float: ...

    @functools.wraps(scale)
    def wrapped(self, *args: Any) -> float: ...

    def nothing(self) -> None: ...


@deployment
def add(left: float, right: float = 0) -> float: ...


SCALER = deployment(Scaler)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda inp: SCALER.bind(),
            "Scaler.bind(...): missing a required argument: 'by'. Scaler takes (by: 'int', *, ",
        ),
        (lambda inp: SCALER.bind(1, 2).scale.bind(inp), "Scaler.bind(...): too many positional arguments"),
        (
            lambda inp: SCALER.bind(1, nam="x").scale.bind(inp),
            "Scaler.bind(...): got an unexpected keyword argument 'nam'",
        ),
        (
            lambda inp: SCALER.options(name="First").bind(1).scale.bind(),
            "First.scale.bind(...): missing a required argument: 'value'. First.scale takes (value: 'float', twice: ",
        ),
        (lambda inp: SCALER.bind(1).scale.bind(inp, 1, 2), "Scaler.scale.bind(...): too many positional arguments"),
        (lambda inp: SCALER.bind(1).scale.bind(inp, value=1), "multiple values for argument 'value'"),
        (lambda inp: SCALER.bind(1).plain.bind(inp, 1), "Scaler.plain takes (value: 'float')"),
        (lambda inp: SCALER.bind(1).of_class.bind(inp, 1), "Scaler.of_class takes (value: 'float')"),
        (lambda inp: SCALER.bind(1).nothing.bind(inp, 1), "Scaler.nothing takes ()"),
        (
            lambda inp: add.bind(),
            "add.bind(...): missing a required argument: 'left'. add takes (left: 'float', right: ",
        ),
        (lambda inp: add.bind(inp, 1, 2), "add.bind(...): too many positional arguments"),
        (lambda inp: add.bind(inp, self=1), "add.bind(...): got an unexpected keyword argument 'self'"),
        (
            lambda inp: SCALER.bind(1).scale.bind(add.bind(inp, wrong=1)),
            "add.bind(...): got an unexpected keyword argument",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused_when_the_graph_is_built(build: Any, words: str) -> None:
    with InputNode() as inp:
        node = build(inp)

    with pytest.raises(TypeError, match=re.escape(words)):
        compile_application(DAGDriver.bind(node))


@pytest.mark.parametrize(
    "build",
    [
        lambda inp: SCALER.bind(1, name="x").scale.bind(inp, twice=True),
        lambda inp: SCALER.bind(by=SCALER.bind(2)).plain.bind(value=inp),
        lambda inp: SCALER.bind(1).of_class.bind(inp.value),
        lambda inp: SCALER.bind(1).wrapped.bind(inp, 1, 2, 3),
        lambda inp: SCALER.bind(1).nothing.bind(inp),
        lambda inp: SCALER.bind(1).nothing.bind(),
        lambda inp: deployment(len).bind(inp),
    ],
)
def test_arguments_that_may_fit_are_left_to_the_call(build: Any) -> None:
    with InputNode() as inp:
        node = build(inp)

    compile_application(DAGDriver.bind(node))


def test_a_function_that_is_called_by_a_handle_needs_no_arguments() -> None:
    compile_application(SCALER.bind(add.bind()))
    compile_application(add.bind())


def test_a_driver_knows_the_graphs_whose_last_step_is_a_generator() -> None:
    @deployment
    class Lines:
        def items(self, value: Any) -> Iterator[Any]:
            yield value

        async def later(self, value: Any) -> AsyncIterator[Any]:
            yield value

        def whole(self, value: Any) -> Any:
            return value

    @deployment
    def words(value: Any) -> Iterator[str]:
        yield value

    lines = Lines.bind()
    with InputNode() as inp:
        graphs = {
            "/items": lines.items.bind(inp),
            "/later": lines.later.bind(inp),
            "/words": words.bind(inp),
            "/whole": lines.whole.bind(lines.items.bind(inp)),
        }
    driver = compile_application(DAGDriver.bind(graphs)).driver
    assert driver is not None
    assert driver.streams == ("/items", "/later", "/words")
