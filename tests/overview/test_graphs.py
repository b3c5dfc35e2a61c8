"""Graphs are shown as they were deployed, from where requests come in to where responses leave."""

from __future__ import annotations

from dataclasses import replace

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


@deployment
class Front:
    def __init__(self, *models: object) -> None:
        pass

    def __call__(self, value: int) -> None:
        pass


def test_deployments_that_are_called_by_handle_are_shown_behind_those_that_were_bound_to_them() -> None:
    model = Model.bind()
    (graph,) = drawn(Front.options(name="Root").bind(func.bind(), Front.options(name="Second").bind(model, [model])))

    assert {node.kind for node in graph.nodes} == {"input", "handle"}
    assert edges(graph) == {("in", "Root"), ("Root", "func"), ("Root", "Second"), ("Second", "Model")}
    assert len(graph.edges) == 4


def test_steps_lead_to_what_they_call_by_handle() -> None:
    model = Model.bind()
    with InputNode() as request:
        answer = Front.bind(model).__call__.bind(model.forward.bind(request))
        (graph,) = drawn(DAGDriver.bind(func.bind(answer, Combine.bind())))

    kinds = {node.id: (node.kind, node.deployment) for node in graph.nodes}
    assert [(kinds[child][1], kinds[user][1]) for child, user in graph.edges if kinds[user][0] == "handle"] == [
        ("Front", "Model"),
        ("func", "Combine"),
    ]
    assert {("step", "Model"), ("handle", "Model")} <= {*kinds.values()}, (
        "it is a step as well, whose value Front takes"
    )


def test_a_version_that_was_deployed_before_handles_were_recorded_has_no_such_edges() -> None:
    record = record_of(compile_application(Front.bind(Model.bind())), Codec(Keyring(b"key")))
    (graph,) = graphs_of(replace(record, handles={}))

    assert edges(graph) == {("in", "Front")}
    assert {node.deployment for node in graph.nodes} == {"", "Front", "Model"}
