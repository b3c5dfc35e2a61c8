"""Drawings: the guide's texts to the letter, labels, numbers, and pictures."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from nodes import Combine, Model, Parent, combine, func

from qserve import dag
from qserve.dag import InputNode, dag_to_dot, plot
from qserve.drivers import DAGDriver


def edges(node: Any) -> list[str]:
    return str(dag_to_dot(node)).splitlines()[2:-1]


def test_the_guides_graph_is_drawn_to_the_letter() -> None:
    m1, m2 = Model.bind(1), Model.bind(2)
    with InputNode() as user_input:
        output = combine.bind(
            m1.forward.bind(user_input[0]),
            m2.forward.bind(user_input[1]),
            kwargs_output=user_input[2],
        )

    assert dag_to_dot(output).to_string() == (
        "digraph G {\n"
        "rankdir=LR;\n"
        "forward -> combine;\n"
        "INPUT_ATTRIBUTE_NODE -> forward;\n"
        "INPUT_NODE -> INPUT_ATTRIBUTE_NODE;\n"
        "Model -> forward;\n"
        "forward_1 -> combine;\n"
        "INPUT_ATTRIBUTE_NODE_1 -> forward_1;\n"
        "INPUT_NODE -> INPUT_ATTRIBUTE_NODE_1;\n"
        "Model_1 -> forward_1;\n"
        "INPUT_ATTRIBUTE_NODE_2 -> combine;\n"
        "INPUT_NODE -> INPUT_ATTRIBUTE_NODE_2;\n"
        "}\n"
    )


def test_edges_go_from_arguments_then_keywords_then_the_instance() -> None:
    model = Model.bind()
    with InputNode() as inp:
        node = DAGDriver.bind(model.forward.bind(inp, key=func.bind()))

    assert edges(node) == [
        "forward -> DAGDriver;",
        "INPUT_NODE -> forward;",
        "func -> forward;",
        "Model -> forward;",
    ]


def test_a_nodes_own_subtree_follows_its_first_edge() -> None:
    m1, m2 = Model.bind(), Model.bind()
    with InputNode() as inp:
        node = DAGDriver.bind(Combine.bind(m1, {"x": [m2]}).__call__.bind(inp))

    assert edges(node) == [
        "__call__ -> DAGDriver;",
        "INPUT_NODE -> __call__;",
        "Combine -> __call__;",
        "Model -> Combine;",
        "Model_1 -> Combine;",
    ]
    assert edges(Model.bind(1, other={"nested": [Model.bind(2)]})) == ["Model_1 -> Model;"]


def test_a_shared_node_is_expanded_once() -> None:
    shared = combine.bind(func.bind())

    assert edges(combine.bind(Combine.bind(shared), shared)) == [
        "Combine -> combine;",
        "combine_1 -> Combine;",
        "func -> combine_1;",
        "combine_1 -> combine;",
    ]


def test_functions_and_drivers_are_drawn_by_name() -> None:
    assert edges(Parent.bind(func.bind())) == ["func -> Parent;"]


def test_an_edge_used_twice_is_drawn_once() -> None:
    x = func.bind()

    assert edges(combine.bind(x, x)) == ["func -> combine;"]
    with InputNode() as inp:
        assert edges(combine.bind(inp, inp)) == ["INPUT_NODE -> combine;"]


def test_a_node_without_edges_is_drawn_as_itself() -> None:
    assert dag_to_dot(func.bind()).to_string() == "digraph G {\nrankdir=LR;\nfunc;\n}\n"
    assert edges(Model.options(name="mine").bind()) == ["mine;"]


def test_only_what_the_node_needs_is_drawn() -> None:
    model = Model.bind()
    model.forward.bind(1)

    assert edges(model.forward.bind(2)) == ["Model -> forward;"]


def test_names_and_labels_are_shown() -> None:
    node = Model.options(name="m").bind().forward.options(name="step").bind()

    assert edges(node) == ["m -> step;"]


def test_labels_that_dot_would_misread_are_quoted() -> None:
    node = combine.bind(Model.options(name='my "m"').bind(), combine.options(name="Graph").bind())

    assert edges(node) == ['"my \\"m\\"" -> combine;', '"Graph" -> combine;']


def test_a_driver_with_a_wrong_keyword_still_draws() -> None:
    assert edges(DAGDriver.bind(func.bind(), wrong=1)) == ["func -> DAGDriver;"]


def test_deep_graphs_are_drawn() -> None:
    node = func.bind()
    for _ in range(5_000):
        node = combine.bind(node)

    assert len(edges(node)) == 5_000


def test_only_nodes_are_drawn() -> None:
    unbound: Any = Model
    with pytest.raises(TypeError, match=r"only a node can be drawn, got Deployment\. Write \.bind"):
        dag_to_dot(unbound)


def test_the_old_name_is_kept() -> None:
    assert dag._dag_to_dot is dag_to_dot
    assert repr(dag_to_dot(func.bind())) == "Dot(root='func', edges=0)"


def test_plot_says_that_pydot_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pydot", None)

    for file in (None, str(tmp_path / "graph.png")):
        with pytest.raises(ImportError) as caught:
            plot(func.bind(), file)
        assert str(caught.value) == "plot() needs the package 'pydot': pip install pydot."


class Drawing(SimpleNamespace):
    def write(self, path: str, format: str) -> None:
        self.written.append((path, format))

    def create(self, format: str) -> bytes:
        return format.encode()


@pytest.fixture
def pydot(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = SimpleNamespace(drawn=[], written=[])

    def graph_from_dot_data(text: str) -> list[Drawing]:
        fake.drawn.append(text)
        return [Drawing(written=fake.written)]

    module: Any = ModuleType("pydot")
    module.graph_from_dot_data = graph_from_dot_data
    monkeypatch.setitem(sys.modules, "pydot", module)
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    return fake


def test_plot_says_that_graphviz_is_missing(pydot: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)

    with pytest.raises(ImportError, match="needs graphviz, and its program 'dot' is not"):
        plot(func.bind())


def test_plot_writes_the_format_of_the_suffix(pydot: SimpleNamespace, tmp_path: Path) -> None:
    plot(func.bind(), tmp_path / "a.svg")
    plot(func.bind(), str(tmp_path / "b"))

    assert pydot.written == [(str(tmp_path / "a.svg"), "svg"), (str(tmp_path / "b"), "png")]
    assert pydot.drawn[0] == str(dag_to_dot(func.bind()))


def test_plot_without_a_file_gives_a_picture_for_notebooks(
    pydot: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    display: Any = ModuleType("IPython.display")
    display.Image = lambda data: ("image", data)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert plot(func.bind()) == ("image", b"png")

    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ImportError, match=r"pip install ipython, or pass to_file='graph.png'"):
        plot(func.bind())
