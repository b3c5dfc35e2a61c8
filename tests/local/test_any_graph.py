"""Random graphs, run for real, against plain Python."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from outcomes import outcome
from random_graphs import Graph, graphs
from serving import ServeRun, ask


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graphs())
def test_a_graph_gives_what_plain_python_gives(run_here: ServeRun, graph: Graph) -> None:
    assert ask(run_here(graph.bind()).predict, *graph.args, **graph.kwargs) == graph.run(outcome)


@pytest.mark.slow
@settings(
    max_examples=10,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(graphs())
def test_a_graph_gives_the_same_on_replicas(run_on_broker: ServeRun, graph: Graph) -> None:
    assert ask(run_on_broker(graph.bind()).predict, *graph.args, **graph.kwargs) == graph.run(outcome)
