"""The names of deployments."""

from __future__ import annotations

from typing import Any

import pytest
from nodes import Combine, Model, Parent, func

from qserve.define.compile import Numbering, assign_names
from qserve.deployment_graph import ClassNode, DAGNode, FunctionNode
from qserve.drivers import DAGDriver
from qserve.graph.nodes import bottom_up


def names_of(root: DAGNode) -> list[str]:
    return list(assign_names(bottom_up(root)).values())


def test_deployments_take_the_class_or_function_name() -> None:
    assert names_of(Parent.bind(func.bind())) == ["func", "Parent"]


def test_repeats_are_numbered_bottom_up_and_left_to_right() -> None:
    m1, m2 = Model.bind(1), Model.bind(2)

    named = assign_names(bottom_up(Combine.bind(m1, m2=m2)))

    assert list(named.items())[:2] == [(m1, "Model"), (m2, "Model_1")]
    assert list(named.values()) == ["Model", "Model_1", "Combine"]


def test_every_function_bind_is_its_own_deployment() -> None:
    root = Parent.bind(Parent.bind(func.bind()), func.bind(), func.bind())

    assert names_of(root) == ["func", "Parent", "func_1", "func_2", "Parent_1"]


def test_arguments_come_before_keywords_before_the_instance() -> None:
    a, b, c = Model.bind("a"), Model.bind("b"), Model.bind("c")
    node = c.forward.bind(a.forward.bind(), key=[b.forward.bind()])

    assert names_of(func.bind(node)) == ["Model", "Model_1", "Model_2", "func"]
    assert assign_names(bottom_up(node))[c] == "Model_2"


def test_a_node_used_twice_is_one_deployment() -> None:
    model = Model.bind()

    assert names_of(Combine.bind(model, m2=model)) == ["Model", "Combine"]


def test_numbering_starts_afresh_for_each_build() -> None:
    root = Combine.bind(Model.bind(), Model.bind())

    assert names_of(root) == names_of(root) == ["Model", "Model_1", "Combine"]


def test_a_chosen_name_is_used_as_it_is() -> None:
    assert names_of(Combine.bind(Model.options(name="Adder2").bind())) == ["Adder2", "Combine"]


def test_other_options_do_not_change_the_automatic_name() -> None:
    root = Combine.bind(Model.options(num_replicas=3).bind(1), Model.bind(2))

    assert names_of(root) == ["Model", "Model_1", "Combine"]


def test_a_chosen_name_uses_up_a_number() -> None:
    root = Combine.bind(Model.options(name="B").bind(), Model.bind())

    assert names_of(root) == ["B", "Model_1", "Combine"]


def test_an_automatic_name_makes_way_for_a_chosen_one() -> None:
    root = Combine.bind(Model.bind(), Model.bind(), func.options(name="Model_1").bind())

    assert names_of(root) == ["Model", "Model_2", "Model_1", "Combine"]


def test_the_same_chosen_name_twice_is_refused() -> None:
    root = Combine.bind(Model.options(name="x").bind(), func.options(name="x").bind())

    with pytest.raises(ValueError) as caught:
        names_of(root)

    assert str(caught.value) == (
        "two deployments of one application are named 'x': a bound 'Model' and a bound 'func'. "
        "Give one of them another name: func.options(name=...).bind(...), or bind it once and use "
        "that node twice."
    )


def test_the_drivers_deployment_is_named_dagdriver() -> None:
    assert DAGDriver.name == "DAGDriver"
    assert names_of(DAGDriver.bind(func.bind())) == ["func", "DAGDriver"]


def test_numbering_never_gives_a_word_twice() -> None:
    numbering = Numbering()

    given = [numbering.take(word) for word in ("f", "f", "f_1", "f", "f_1")]

    assert given == ["f", "f_1", "f_1_1", "f_2", "f_1_2"]


def test_a_cycle_through_a_changed_list_is_refused() -> None:
    loop: list[Any] = []
    node = func.bind(loop)
    loop.append(func.bind(node))

    with pytest.raises(ValueError, match="the graph has a cycle"):
        bottom_up(node)


def test_the_order_is_children_first_each_once() -> None:
    shared = func.bind()
    left, right = func.bind(shared), func.bind(shared)
    root = func.bind(left, [right, shared])

    assert bottom_up(root) == [shared, left, right, root]
    assert all(isinstance(node, FunctionNode | ClassNode) for node in bottom_up(root))
