"""Graphs are shown as they were deployed, from where requests come in to where responses leave."""

from __future__ import annotations

from nodes import Combine, Model, func

import qserve
from qserve.base.keyring import Keyring
from qserve.define.compile import compile_application
from qserve.define.deployments import deployment
from qserve.define.drivers import DAGDriver
from qserve.deploy.registration import record_of
from qserve.graph.nodes import DAGNode, InputNode
from qserve.overview.graphs import graphs_of
from qserve.overview.picture import Graph
from qserve.wire.codec import Codec


def drawn(root: DAGNode) -> list[Graph]:
    return list(graphs_of(record_of(compile_application(root), Codec(Keyring(b"key")))))


def edges(graph: Graph) -> set[tuple[str, str]]:
    """The edges, with the deployment of each step in place of its ID."""
    names = {node.id: node.deployment or node.id for node in graph.nodes}
    return {(names[child], names[user]) for child, user in graph.edges}


def test_a_plan_leads_from_the_input_over_its_steps_to_the_output() -> None:
    model = Model.bind()
    with InputNode() as request:
        combined = Combine.bind().__call__.bind(model.forward.bind(request), func.bind(request))
    (graph,) = drawn(DAGDriver.bind(combined))

    assert edges(graph) == {
        ("in", "Model"),
        ("in", "func"),
        ("Model", "Combine"),
        ("func", "Combine"),
        ("Combine", "out"),
    }
    assert [(node.step, node.method) for node in graph.nodes if node.deployment == "Model"] == [(0, "forward")]


def test_each_route_of_a_driver_has_a_graph_of_its_own() -> None:
    with InputNode() as request:
        first, second = func.bind(request), Model.bind().forward.bind(request)
    graphs = drawn(DAGDriver.bind({"/a": first, "/b": second}))

    assert [(graph.name, edges(graph)) for graph in graphs] == [
        ("/a", {("in", "func"), ("func", "out")}),
        ("/b", {("in", "Model"), ("Model", "out")}),
    ]


def test_a_driver_with_replicas_stands_before_the_steps() -> None:
    def adapter(request: qserve.Request) -> int:
        return 1

    with InputNode() as request:
        (graph,) = drawn(DAGDriver.bind(func.bind(request), http_adapter=adapter))

    assert edges(graph) == {("in", "DAGDriver"), ("DAGDriver", "func"), ("func", "out")}


def test_a_step_that_takes_no_value_begins_with_the_request() -> None:
    with InputNode() as request:
        (graph,) = drawn(DAGDriver.bind(func.bind(Model.bind().forward.bind(), request)))

    assert {("in", "Model"), ("Model", "func"), ("in", "func")} <= edges(graph)


def test_deployments_that_are_called_by_handle_are_shown_without_what_only_their_code_knows() -> None:
    @deployment
    class Front:
        def __init__(self, model: object) -> None:
            pass

        def __call__(self) -> None:
            pass

    (graph,) = drawn(Front.bind(Model.bind()))

    assert {node.deployment for node in graph.nodes} == {"", "Front", "Model"}
    assert edges(graph) == {("in", "Front")}
