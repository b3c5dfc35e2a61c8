"""Nodes: binding, accessors, misuse, and the input node."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, defaultdict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from nodes import func

from qserve import dag, deployment_graph
from qserve.dag import InputNode
from qserve.define.deployments import deployment
from qserve.deployment_graph import (
    ClassMethodNode,
    ClassNode,
    FunctionNode,
    InputAttributeNode,
    MethodNode,
)
from qserve.graph.containers import DEPTH_LIMIT, find, is_deep, replace
from qserve.graph.plan import InputKey


@deployment
class Actor:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def ping(self, *args: Any, **kwargs: Any) -> str:
        return "pong"

    def forward(self, x: Any) -> Any:
        return x

    __call__ = forward


@deployment
class Silent:
    pass


class Pair(NamedTuple):
    left: Any
    right: Any


class Unpicklable:
    def __reduce__(self) -> Any:
        raise AssertionError("was pickled")


def test_bind_makes_the_three_kinds_of_nodes() -> None:
    assert isinstance(Actor.bind(), ClassNode)
    assert isinstance(func.bind(), FunctionNode)
    assert isinstance(Actor.bind().ping.bind(1), MethodNode)
    assert ClassMethodNode is MethodNode
    assert deployment_graph.InputNode is dag.InputNode


def test_one_deployment_makes_any_number_of_nodes() -> None:
    assert Actor.bind() is not Actor.bind()


def test_arguments_are_kept_as_bound() -> None:
    array, closure = np.ones(3), lambda: 1

    node = Actor.bind(array, closure, ratio=0.3)

    assert node.get_args()[0] is array
    assert node.get_args()[1] is closure
    assert node.get_kwargs() == {"ratio": 0.3}


def test_get_kwargs_returns_a_copy() -> None:
    node = Actor.bind(a=1)

    node.get_kwargs()["a"] = 2

    assert node.get_kwargs() == {"a": 1}


def test_special_methods_bind_like_any_other() -> None:
    node = Actor.bind().__call__.bind(1)

    assert node.get_method_name() == "__call__"


def test_a_method_binds_without_arguments() -> None:
    assert Actor.bind().ping.bind().get_args() == ()


def test_an_inherited_method_binds() -> None:
    class Child(Actor.func_or_class):  # type: ignore[name-defined, misc]
        pass

    assert deployment(Child).bind().ping.bind().get_method_name() == "ping"


def test_bind_does_not_check_the_signature() -> None:
    @deployment
    def one(x: int) -> int:
        return x

    assert one.bind(1, 2, wrong=3).get_args() == (1, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nope", "type object 'Actor' has no attribute 'nope'"),
        ("pong", "type object 'Actor' has no attribute 'pong'. Did you mean 'ping'?"),
        ("mro", "type object 'Actor' has no attribute 'mro'"),
        (
            "remote",
            "type object 'Actor' has no attribute 'remote': a node does not run yet. Start it by "
            "serve.run(node) and call its handle.",
        ),
    ],
)
def test_a_method_that_the_class_has_not_is_refused_at_once(name: str, words: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(Actor.bind(), name)

    assert str(caught.value) == words


def test_a_class_without_call_has_no_call_to_bind() -> None:
    node = Silent.bind()

    with pytest.raises(AttributeError, match="type object 'Silent' has no attribute '__call__'"):
        _ = node.__call__


def test_a_second_bind_is_refused() -> None:
    advice = "it is bound already; pass the node itself as an argument of another bind"
    for node, words in (
        (Actor.bind(), "ClassNode 'Actor'"),
        (func.bind(), "FunctionNode 'func'"),
        (Actor.bind().ping.bind(), "MethodNode 'ping'"),
        (InputNode(), "InputNode 'INPUT_NODE'"),
    ):
        with pytest.raises(AttributeError) as caught:
            node.bind()
        assert str(caught.value) == f".bind() cannot be used again on {words}: {advice}"


def test_remote_on_an_unbound_method_is_refused() -> None:
    with pytest.raises(AttributeError) as caught:
        Actor.bind().ping.remote()

    assert str(caught.value) == (
        ".remote() cannot be used on ClassMethodNodes. Use .bind() instead to express an symbolic "
        "actor call: Actor.ping.bind(...)"
    )


@pytest.mark.parametrize("node", [func.bind(), Actor.bind().ping.bind()])
def test_remote_on_a_bound_node_is_refused(node: Any) -> None:
    with pytest.raises(AttributeError, match=r"^\.remote\(\) cannot be used on (Function|Method)"):
        node.remote()


def test_remote_on_a_class_node_names_the_class() -> None:
    with pytest.raises(AttributeError, match="'Actor' has no attribute 'remote'"):
        Actor.bind().remote()


def test_calling_an_unbound_method_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="not callable"):
        Actor.bind().forward(1)


@pytest.mark.parametrize("node", [Actor.bind(), func.bind(), Actor.bind().ping.bind(), Actor.bind().ping, InputNode()])
def test_nodes_refuse_pickling(node: Any) -> None:
    with pytest.raises(ValueError, match=r"^DAGNode cannot be serialized"):
        pickle.dumps(node)
    with pytest.raises(ValueError, match=r"^DAGNode cannot be serialized"):
        copy.deepcopy(node)


def test_an_unbound_method_is_no_argument() -> None:
    words = "'func' was bound to the method 'Actor.ping', which is not bound itself. Write Actor.ping.bind(...)."
    with pytest.raises(TypeError) as caught:
        func.bind([Actor.bind().ping])
    assert str(caught.value) == words
    with pytest.raises(TypeError, match=r"'Actor' was bound to the method 'Actor\.ping'"):
        Actor.bind(Actor.bind().ping)
    with pytest.raises(TypeError, match=r"'ping' was bound to the method 'Actor\.ping'"):
        Actor.bind().ping.bind(Actor.bind().ping)


def test_children_are_found_in_order_without_repeats() -> None:
    a, b, c = func.bind(1), func.bind(2), func.bind(3)

    node = func.bind(a, [b, {"x": [(a, c)]}], key=b)

    assert node.get_toplevel_child_nodes() == [a, b]
    assert node.get_all_child_nodes() == [a, b, c]
    assert node._get_all_child_nodes() == [a, b, c]


def test_the_class_node_is_the_last_child_of_its_methods() -> None:
    actor, x, y = Actor.bind(), func.bind(1), func.bind(2)

    assert actor.ping.bind(x, y=y).get_all_child_nodes() == [x, y, actor]


def test_children_are_found_without_pickling_the_rest() -> None:
    node = func.bind([Unpicklable(), {"x": (Unpicklable(), func.bind())}])

    assert len(node.get_all_child_nodes()) == 1


def test_find_survives_a_list_that_holds_itself() -> None:
    loop: list[Any] = [1]
    loop.append(loop)

    assert find([loop], int) == [1]
    assert replace(loop, str, str.upper) is loop


def test_replace_keeps_containers_without_a_find_and_the_types_of_the_others() -> None:
    same = [1, 2]
    grouped = defaultdict(list, a="x")

    def upper(value: Any) -> Any:
        return replace(value, str, str.upper)

    assert upper(same) is same
    assert upper([same, "a"])[0] is same
    assert upper(Pair("a", 1)) == Pair("A", 1)
    assert type(upper(OrderedDict(k="a"))) is OrderedDict
    assert upper(grouped)["a"] == "X"
    assert upper(grouped)["missing"] == []
    assert upper({"a", "b"}) == {"A", "B"}
    assert upper(frozenset("ab")) == frozenset("AB")
    assert upper({"a": ("b",)}) == {"a": ("B",)}


def test_replacing_in_a_copy_makes_every_mutable_container_new() -> None:
    inner = [1]
    value = {"a": inner, "b": (inner, (1, 2))}

    copied = replace(value, str, str.upper, is_copy=True)

    assert copied == value
    assert copied["a"] is not inner
    assert copied["b"][0] is not inner
    assert copied["b"][1] is value["b"][1]


def test_subclasses_of_containers_are_refilled() -> None:
    class Names(list[Any]):
        def __init__(self, *, must: int) -> None:
            super().__init__()

    class Tags(set[Any]):
        pass

    names = Names(must=1)
    names.append("a")

    changed_names = replace(names, str, str.upper)
    changed_tags = replace(Tags("a"), str, str.upper)

    assert (changed_names, type(changed_names)) == (["A"], Names)
    assert (changed_tags, type(changed_tags)) == ({"A"}, Tags)


def test_options_label_a_method_node() -> None:
    assert Actor.bind().ping.options(name="x").bind().get_label() == "x"


def test_options_label_a_function_node() -> None:
    assert func.options(name="x").bind().get_label() == "x"


def test_reprs_are_short() -> None:
    assert repr(Actor.bind(1)) == "ClassNode('Actor')"
    assert repr(Actor.bind().ping) == "UnboundMethod('Actor.ping')"


def test_input_node_takes_no_arguments() -> None:
    for args, kwargs in (((0,), {}), ((), {"key": 1})):
        with pytest.raises(ValueError, match="InputNode should not take any args or kwargs"):
            InputNode(*args, **kwargs)


def test_input_type_is_accepted_and_ignored() -> None:
    for input_type in (str, {"a": str}, {0: int, "key": str}):
        with InputNode(input_type=input_type) as inp:
            assert isinstance(inp.a, InputAttributeNode)
            assert isinstance(inp["key"], InputAttributeNode)
        assert func.bind(inp).get_args() == (inp,)


def test_with_yields_the_node_and_leaving_changes_nothing() -> None:
    node = InputNode()
    with node as inp:
        assert inp is node

    assert func.bind(inp[0]).get_all_child_nodes() == [inp[0]]


def test_input_parts_know_what_they_are() -> None:
    with InputNode() as inp:
        assert inp[0].get_input_key() == InputKey("item", 0)
        assert inp["m1"].get_input_key() == InputKey("item", "m1")
        assert inp.field.get_input_key() == InputKey("attribute", "field")
        assert inp.remote.get_input_key() == InputKey("attribute", "remote")


def test_repeated_access_gives_the_same_part() -> None:
    with InputNode() as inp:
        assert inp[0] is inp[0]
        assert inp["a"] is inp["a"]
        assert inp.a is inp.a
        assert inp.a is not inp["a"]


@pytest.mark.parametrize("key", [(1, 2), 1.5, None])
def test_input_keys_are_int_or_str(key: Any) -> None:
    with (
        InputNode() as inp,
        pytest.raises(AssertionError, match="Please only use int index or str as first-level key"),
    ):
        inp[key]


def test_input_is_read_one_level_deep() -> None:
    with InputNode() as inp:
        with pytest.raises(TypeError, match="'InputAttributeNode' object is not subscriptable"):
            inp[0][1]
        with pytest.raises(AttributeError, match="object has no attribute 'b'"):
            _ = inp.a.b


def test_input_node_has_no_special_attributes() -> None:
    assert not hasattr(InputNode(), "__array__")


def test_input_cannot_reach_a_constructor() -> None:
    words = (
        "InputNode handles user dynamic input the the DAG, and cannot be used as args, kwargs, or "
        "other_args_to_resolve in ClassNode constructor because it is not available at class "
        "construction or binding time. Pass it to a method of 'Actor' instead: "
        "Actor.bind(...).method.bind(inp)."
    )
    with InputNode() as inp:
        for args, kwargs in (
            ((inp,), {}),
            (([inp],), {}),
            ((inp[0],), {}),
            ((), {"a": {"b": inp}}),
        ):
            with pytest.raises(ValueError) as caught:
                Actor.bind(*args, **kwargs)
            assert str(caught.value) == words


def test_other_arguments_may_hold_anything() -> None:
    assert func.bind(SimpleNamespace(x=1), None, ...).get_all_child_nodes() == []


@pytest.mark.parametrize(
    "wrap", [lambda value: [value], lambda value: (value,), lambda value: {"a": value}], ids=range(3)
)
def test_an_argument_that_is_nested_too_deeply_is_refused_where_it_is_bound(wrap: Any) -> None:
    value: Any = 1
    for _ in range(DEPTH_LIMIT):
        value = wrap(value)
    func.bind(value)
    Actor.bind(a=value)
    for _ in range(5000):
        value = wrap(value)
    for bind in (lambda: func.bind(value), lambda: Actor.bind(a=value)):
        with pytest.raises(ValueError, match=r"\.bind\(\.\.\.\): .* nested too deeply; the limit is 256 lists"):
            bind()
    with pytest.raises(ValueError, match="user_config .* nested too deeply; the limit is 256 lists"):
        deployment(user_config={"a": value})(type("Model", (), {}))


def test_a_container_that_is_there_many_times_is_walked_once() -> None:
    value: Any = [1]
    for _ in range(100):
        value = [value, value]
    value.append(value)
    assert not is_deep([value])
    assert replace(value, str, len) is value
    assert replace([value, "word"], str, len) == [value, 4]
