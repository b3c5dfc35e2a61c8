"""The graphs of an application, from its record."""

from __future__ import annotations

from qserve.graph.plan import Plan
from qserve.overview.picture import Graph, Node
from qserve.wire.application import ApplicationRecord

INPUT, OUTPUT = "in", "out"
"""The IDs of the nodes where requests come in, and where responses leave."""


def graphs_of(record: ApplicationRecord) -> tuple[Graph, ...]:
    """Return its plans as graphs, with the deployments that their steps call by handle, and one of all others."""
    plans = [
        _with_handles(record, _from_plan(name, plan, _driver_of(record))) for name, (plan, _) in record.plans.items()
    ]
    shown = {node.deployment for graph in plans for node in graph.nodes}
    others = [name for name in record.replicated if name not in shown]
    return (*plans, _of_handles(record, others)) if others else tuple(plans)


def _with_handles(record: ApplicationRecord, graph: Graph) -> Graph:
    """Return a graph with the deployments that its own have handles of, each in a box that no value comes to."""
    nodes, edges = [*graph.nodes], [*graph.edges]
    ids = {node.deployment: node.id for node in nodes if node.kind == "handle"}
    for user in nodes:  # which grows meanwhile
        for name in record.handles.get(user.deployment, ()):
            if name not in ids:
                ids[name] = f"handle {name}"
                nodes.append(Node(ids[name], "handle", deployment=name))
            edges.append((user.id, ids[name]))
    return Graph(graph.name, tuple(nodes), tuple(edges))


def _driver_of(record: ApplicationRecord) -> str:
    """Return the driver whose replicas adapt requests; "" if the gateway does, or there is none."""
    return record.ingress if record.driver is not None and record.ingress in record.replicated else ""


def _from_plan(name: str, plan: Plan, driver: str) -> Graph:
    first = "driver" if driver else INPUT
    nodes, edges = [Node(INPUT, "input")], []
    if driver:
        nodes.append(Node(first, "driver", deployment=driver))
        edges.append((INPUT, first))
    nodes += [
        Node(f"step {number}", "step", number, step.deployment, step.method) for number, step in enumerate(plan.steps)
    ]
    for source, targets in plan.feeds.items():
        origin = f"step {source}" if isinstance(source, int) else first
        edges += [(origin, f"step {number}") for number, _ in targets]
    fed = {user for _, user in edges}
    edges += [(first, node.id) for node in nodes if node.kind == "step" and node.id not in fed]  # it takes no value
    nodes.append(Node(OUTPUT, "output"))
    edges.append((f"step {plan.output}" if isinstance(plan.output, int) else first, OUTPUT))
    return Graph(name, tuple(nodes), tuple(dict.fromkeys(edges)))


def _of_handles(record: ApplicationRecord, names: list[str]) -> Graph:
    """Return the deployments that no plan leads to: those that were bound to handles, and what they call."""
    nodes = [Node(f"handle {name}", "handle", deployment=name) for name in names]
    if record.ingress not in names or record.route_prefix is None:
        return _with_handles(record, Graph("", tuple(nodes), ()))
    edges = ((INPUT, f"handle {record.ingress}"),)
    return _with_handles(record, Graph("", (Node(INPUT, "input"), *nodes), edges))
