"""Pictures of graphs: every node and edge is there, in every format, whatever they are called."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes import Model, combine

from qserve.__main__ import main
from qserve.dag import DAGNode, InputNode, dag_to_dot
from qserve.drawing.dot import to_dot
from qserve.drawing.layout import Box, Graph, columns_of, lay_out, spread
from qserve.drawing.mermaid import to_mermaid
from qserve.drawing.picture import Picture, PictureEdge, PictureNode, picture_of, to_json
from qserve.drawing.svg import to_svg
from qserve.drivers import DAGDriver

SVG = "{http://www.w3.org/2000/svg}"


def two_models() -> DAGNode:
    m1, m2 = Model.bind(1), Model.options(num_replicas=3).bind(2)
    with InputNode() as inp:
        both = combine.bind(m1.forward.bind(inp[0]), m2.forward.bind(inp.user), last=inp["key"])
    node: DAGNode = DAGDriver.options(route_prefix="/my-dag").bind(both)
    return node


def drawn(picture: Picture) -> tuple[list[str], list[tuple[str, str]], ElementTree.Element]:
    """The ids of an SVG's boxes, its edges found by where they begin and end, and the whole."""
    root = ElementTree.fromstring(to_svg(picture))
    boxes: dict[str, Box] = {}
    for group in root.iter(f"{SVG}g"):
        if "node" in group.get("class", "").split():
            rect = group.findall(f"{SVG}rect")[-1]
            numbers = [float(rect.get(key, "")) for key in ("x", "y", "width", "height")]
            boxes[group.get("data-id", "")] = Box(*numbers)
    edges = []
    for path in root.iter(f"{SVG}path"):
        if "edge" in path.get("class", "").split():
            numbers = [float(one) for one in re.findall(r"-?\d+\.\d+", path.get("d", ""))]
            child = box_at(boxes, *numbers[:2])
            edges.append((child, box_at(boxes, numbers[-2] + 9, numbers[-1])))
    return list(boxes), edges, root


def box_at(boxes: dict[str, Box], x: float, y: float) -> str:
    found = [
        name for name, box in boxes.items() if box.x <= x <= box.x + box.width and box.y <= y <= box.y + box.height
    ]
    assert len(found) == 1, f"{found} at {x}, {y}"
    return found[0]


def pairs(picture: Picture) -> list[tuple[str, str]]:
    return [(edge.child, edge.user) for edge in picture.edges]


# -- what is in a picture ----------------------------------------------------------------------------


def test_a_picture_names_each_node_its_kind_and_its_deployment() -> None:
    assert [(one.id, one.label, one.kind, one.deployment) for one in picture_of(two_models()).nodes] == [
        ("DAGDriver", "DAGDriver", "driver", "DAGDriver"),
        ("combine", "combine", "function", "combine"),
        ("forward", "forward", "method", "Model"),
        ("INPUT_ATTRIBUTE_NODE", "input[0]", "input", None),
        ("INPUT_NODE", "input", "input", None),
        ("Model", "Model", "class", "Model"),
        ("forward_1", "forward", "method", "Model_1"),
        ("INPUT_ATTRIBUTE_NODE_1", "input.user", "input", None),
        ("Model_1", "Model_1", "class", "Model_1"),
        ("INPUT_ATTRIBUTE_NODE_2", "input['key']", "input", None),
    ]


def test_options_of_interest_are_those_that_were_set() -> None:
    options = {one.id: dict(one.options) for one in picture_of(two_models()).nodes if one.options}
    assert options == {"DAGDriver": {"route_prefix": "/my-dag"}, "Model_1": {"num_replicas": 3}}

    scaled = Model.options(num_replicas="auto", user_config={"a": 1}, ray_actor_options={"num_cpus": 2}).bind()
    assert picture_of(scaled).nodes[0].options == {
        "autoscaling_config": {"max_replicas": 100},
        "ray_actor_options": {"num_cpus": 2},
    }


def test_only_values_that_pass_with_a_request_are_data() -> None:
    model = Model.bind()
    with InputNode() as inp:
        node = Model.options(name="Outer").bind(model).forward.bind(inp, combine.bind(model))

    handles = [(edge.child, edge.user) for edge in picture_of(node).edges if not edge.is_data]
    assert handles == [("Model", "combine"), ("Outer", "forward"), ("Model", "Outer")]
    with InputNode() as inp:
        held = Model.bind(combine.bind(inp, inp), combine.bind())
    assert {edge.user for edge in picture_of(held).edges if not edge.is_data} == {"Model"}
    assert picture_of(DAGDriver.bind(model)).edges == (PictureEdge("Model", "DAGDriver"),)


def test_a_graph_that_cannot_be_served_can_be_drawn() -> None:
    twice = combine.bind(Model.options(name="m").bind().forward.bind(), Model.options(name="m").bind().forward.bind())

    assert [one.id for one in picture_of(twice).nodes] == ["combine", "forward", "m", "forward_1", "m_1"]


def test_only_nodes_have_a_picture() -> None:
    with pytest.raises(TypeError, match=r"only a node can be drawn, got Deployment\. Write \.bind"):
        picture_of(Model)  # type: ignore[arg-type]


# -- text formats ------------------------------------------------------------------------------------


def test_dot_is_that_of_dag_to_dot() -> None:
    node = two_models()

    assert to_dot(picture_of(node)) == dag_to_dot(node).to_string()


def test_a_mermaid_flowchart() -> None:
    with InputNode() as inp:
        node = DAGDriver.bind(combine.bind(Model.options(name='my "m" <#1>').bind().forward.bind(inp[0])))

    assert to_mermaid(picture_of(node)) == (
        "flowchart LR\n"
        '  n0{{"DAGDriver"}}:::driver_kind\n'
        '  n1["combine"]:::function_kind\n'
        '  n2("my #34;m#34; #60;#35;1#62;.forward"):::method_kind\n'
        '  n3(["input[0]"]):::input_kind\n'
        '  n4(["input"]):::input_kind\n'
        '  n5[["my #34;m#34; #60;#35;1#62;"]]:::class_kind\n'
        "  n1 --> n0\n"
        "  n2 --> n1\n"
        "  n3 --> n2\n"
        "  n4 --> n3\n"
        "  n5 -.-> n2\n"
        "  classDef input_kind fill:#f1f5f9,stroke:#64748b,color:#1e293b\n"
        "  classDef function_kind fill:#e6f6ee,stroke:#2f9266,color:#124a32\n"
        "  classDef method_kind fill:#e8f0fe,stroke:#3f74d6,color:#17356e\n"
        "  classDef class_kind fill:#f3edfd,stroke:#8257d3,color:#432379\n"
        "  classDef driver_kind fill:#fef2de,stroke:#c98410,color:#613d05\n"
    )


def test_json_holds_nodes_and_edges() -> None:
    node = combine.options(ray_actor_options={"object_store_memory": {1, 2}.__class__}).bind(Model.bind())
    view = json.loads(to_json(picture_of(node)))

    assert view["root"] == "combine"
    assert view["nodes"][1] == {
        "id": "Model", "label": "Model", "kind": "class", "deployment": "Model", "options": {},
    }  # fmt: skip
    assert view["nodes"][0]["options"] == {"ray_actor_options": {"object_store_memory": "<class 'set'>"}}
    assert view["edges"] == [{"from": "Model", "to": "combine", "data": False}]


# -- SVG ---------------------------------------------------------------------------------------------


def test_every_node_is_a_box_and_every_edge_leads_from_box_to_box() -> None:
    picture = picture_of(two_models())
    names, edges, root = drawn(picture)

    assert names == [one.id for one in picture.nodes]
    assert edges == pairs(picture)
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert texts.count("forward") == 2
    assert {"input['key']", "Model_1", "class · 3 replicas", "driver · /my-dag"} <= set(texts)
    assert len([one for one in root.iter(f"{SVG}path") if one.get("class") == "edge handle"]) == 2


def test_replicas_cast_a_shadow() -> None:
    for options, shadows in [({}, 0), ({"num_replicas": 2}, 1), ({"num_replicas": "auto"}, 1)]:
        assert to_svg(picture_of(Model.options(**options).bind())).count("shadow") == shadows
    assert "class · 1–100 replicas" in to_svg(picture_of(Model.options(num_replicas="auto").bind()))


def test_labels_are_escaped_and_shortened() -> None:
    name = "<b>&\"'\x00\ud800 " + "long" * 20
    _, _, root = drawn(picture_of(combine.options(name=name).bind()))

    (title, _) = (str(one.text) for one in root.iter(f"{SVG}text"))
    assert title.startswith("<b>&\"'\ufffd\ufffd long")
    assert len(title) == 30
    assert title.endswith("…")
    tooltip = [one.text for one in root.iter(f"{SVG}title")][-1]
    assert tooltip == f"function {name}".replace("\x00", "\ufffd").replace("\ud800", "\ufffd")


def test_a_single_node_is_a_picture_of_one_box() -> None:
    assert drawn(picture_of(combine.bind()))[:2] == (["combine"], [])


def test_svg_needs_nothing_from_elsewhere() -> None:
    text = to_svg(picture_of(two_models()))

    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\(|@import|href", text)
    assert "prefers-color-scheme:dark" in text
    assert all(rule.startswith((".qserve-graph", "@media", "}")) for rule in style_rules(text))


def style_rules(text: str) -> list[str]:
    style = text.partition("<style>")[2].partition("</style>")[0]
    return [line for line in style.splitlines() if line]


def test_notebooks_show_the_drawing() -> None:
    node = two_models()

    assert dag_to_dot(node)._repr_svg_() == to_svg(picture_of(node))


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    """Any graph without cycles, with labels of any text."""
    size = draw(st.integers(1, 25))
    labels = draw(st.lists(st.text(min_size=1, max_size=12), min_size=size, max_size=size))
    kinds = st.sampled_from(["input", "function", "method", "class", "driver"])
    nodes = tuple(PictureNode(f"n{index}", label, draw(kinds), "d") for index, label in enumerate(labels))
    numbers = st.integers(0, size - 1)
    edges = {
        PictureEdge(f"n{max(one, other)}", f"n{min(one, other)}")
        for one, other in draw(st.lists(st.tuples(numbers, numbers), max_size=40))
        if one != other
    }
    return Picture("n0", nodes, tuple(sorted(edges, key=lambda edge: (edge.child, edge.user))))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(pictures())
def test_any_graph_is_drawn_whole(picture: Picture) -> None:
    names, edges, root = drawn(picture)

    assert names == [one.id for one in picture.nodes]
    assert edges == pairs(picture)
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("x", "0")) + float(rect.get("width", "")) <= width
        assert float(rect.get("y", "0")) + float(rect.get("height", "")) <= height


# -- layout ------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(pictures())
def test_boxes_do_not_overlap_and_edges_lead_right(picture: Picture) -> None:
    names = [one.id for one in picture.nodes]
    layout = lay_out(dict.fromkeys(names, (100.0, 40.0)), pairs(picture), {"n0"})

    for child, user in pairs(picture):
        assert layout.boxes[child].x + 100 < layout.boxes[user].x
    for column in {box.x for box in layout.boxes.values()}:
        tops = sorted(box.y for box in layout.boxes.values() if box.x == column)
        assert all(below - above >= 61.9 for above, below in pairwise(tops))
    for points in layout.routes.values():
        assert all(one[0] <= other[0] for one, other in pairwise(points))


def test_a_chain_is_straight_and_a_diamond_symmetric() -> None:
    size = (80.0, 40.0)
    chain = lay_out(dict.fromkeys("abc", size), [("a", "b"), ("b", "c")], ())
    assert {box.y for box in chain.boxes.values()} == {0.0}

    edges = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    boxes = lay_out(dict.fromkeys("abcd", size), edges, ()).boxes
    assert boxes["a"].y == boxes["d"].y == pytest.approx((boxes["b"].y + boxes["c"].y) / 2)


def test_what_needs_no_input_stands_beside_its_users() -> None:
    edges = [("input", "f"), ("f", "g"), ("g", "call"), ("model", "call"), ("weights", "model")]
    nodes = ["input", "f", "g", "call", "model", "weights"]

    assert columns_of(nodes, edges, {"input"}) == {"input": 0, "f": 1, "g": 2, "call": 3, "model": 2, "weights": 1}


def test_crossings_that_can_be_avoided_are() -> None:
    edges = [("a", "y"), ("b", "x"), ("c", "z"), ("y", "end"), ("x", "end"), ("z", "end")]
    drawing = Graph(["end", "x", "y", "z", "a", "b", "c"], edges, ())
    drawing.arrange()

    order = {node: column.index(node) for column in drawing.columns for node in column}
    assert sorted("abc", key=order.__getitem__) == [
        child for user in sorted("xyz", key=order.__getitem__) for child, one in edges if one == user
    ]


def test_positions_are_the_nearest_that_keep_their_distances() -> None:
    assert spread([0, 0, 0], [0, 10, 10], [1, 1, 1]) == [-10, 0, 10]
    assert spread([0, 50, 51], [0, 10, 10], [1, 1, 1]) == [0, 45.5, 55.5]
    assert spread([5, 5], [0, 10], [3, 1]) == [2.5, 12.5]


@pytest.mark.slow
def test_deep_graphs_are_drawn() -> None:
    node = combine.bind()
    for _ in range(1_500):
        node = combine.bind(node)

    assert to_svg(picture_of(node)).count('class="node function"') == 1_501


# -- the command -------------------------------------------------------------------------------------

MODULE = """
from qserve.dag import InputNode
from qserve.define.deployments import deployment

@deployment
def square(x): return x * x

with InputNode() as inp:
    node = square.bind(inp)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(tmp_path))  # restores sys.path afterwards
    name = f"drawn_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    return name


def test_the_command_prints_dot(module: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["graph", f"{module}:node", "--app-dir", str(tmp_path)])

    assert (result.exit_code, result.output) == (0, "digraph G {\nrankdir=LR;\nINPUT_NODE -> square;\n}\n")


@pytest.mark.parametrize(
    ("file", "start"),
    [("a.svg", "<svg "), ("a.mmd", "flowchart LR"), ("a.json", "{"), ("a.dot", "digraph"), ("a.GV", "digraph")],
)
def test_the_suffix_chooses_the_format(module: str, tmp_path: Path, file: str, start: str) -> None:
    result = CliRunner().invoke(
        main, ["graph", f"{module}:node", "-o", str(tmp_path / file), "--app-dir", str(tmp_path)]
    )

    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / file).read_text().startswith(start)


def test_a_chosen_format_wins(module: str, tmp_path: Path) -> None:
    arguments = [f"{module}:node", "--format", "json", "-o", str(tmp_path / "a.svg"), "--app-dir", str(tmp_path)]
    CliRunner().invoke(main, ["graph", *arguments], catch_exceptions=False)

    assert json.loads((tmp_path / "a.svg").read_text())["root"] == "square"


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("{module}:square", [], "only a node can be drawn, got Deployment. Write .bind(...) first."),
        ("{module}:nothing", [], "has no 'nothing'; it has: "),
        ("{module}", [], "is not an import path"),
        ("broken_{module}:node", [], "cannot be loaded: ZeroDivisionError: division by zero"),
        ("{module}:node", ["-o", "graph.png"], "'.png' is not a known format"),
        ("{module}:node", ["-o", "no/such/folder.svg"], "cannot be written: No such file or directory"),
    ],
)
def test_mistakes_are_explained(module: str, tmp_path: Path, target: str, more: list[str], message: str) -> None:
    (tmp_path / f"broken_{module}.py").write_text("1 / 0\n")
    result = CliRunner().invoke(main, ["graph", target.format(module=module), *more, "--app-dir", str(tmp_path)])

    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
