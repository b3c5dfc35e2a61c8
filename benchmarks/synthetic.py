"""Pictures of installations that do not exist: graphs of any size under any load, for benchmarks."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from qserve.overview.bottleneck import bottleneck_of
from qserve.overview.picture import Application, Broker, Deployment, Graph, Host, Node, Picture, Replica

_WORDS = ("Decode", "Detect", "Crop", "Embed", "Search", "Rank", "Classify", "Translate", "Score", "Render")


def graph_of(steps: int, width: int = 0) -> Graph:
    """Return a graph of so many steps in rows, each of which takes values of two before it."""
    chance, width = random.Random(steps), width or max(2, round(math.sqrt(steps) * 0.7))
    nodes = [Node(f"step {number}", "step", number, name_of(number), "__call__") for number in range(steps)]
    edges = []
    for number in range(steps):
        row = number // width
        before = [] if not row else chance.sample(range((row - 1) * width, row * width), 2)
        edges += [(f"step {other}", f"step {number}") for other in before] or [("in", f"step {number}")]
    last = steps - (steps % width or width)
    edges += [(f"step {number}", "out") for number in range(last, steps)]
    return Graph("", (Node("in", "input"), *nodes, Node("out", "output")), tuple(edges))


def name_of(number: int) -> str:
    return _WORDS[number % len(_WORDS)] + (str(number // len(_WORDS)) if number >= len(_WORDS) else "")


def picture_at(graph: Graph, seconds: float, rate: float = 10_000.0) -> Picture:
    """Return a picture in which every number changes; one step after the other holds the graph up."""
    steps = [node for node in graph.nodes if node.kind == "step"]
    slow = int(seconds / 10) % len(steps)
    deployments = tuple(
        Deployment(
            node.deployment,
            "HEALTHY",
            waiting=int(abs(math.sin(seconds + number)) * 40) + (5000 if number == slow else 0),
            running=int(abs(math.cos(seconds * 0.7 + number)) * 30),
            oldest_s=4.2 if number == slow else round(abs(math.sin(seconds + number)) * 0.08, 3),
            rate=rate * (1 + 0.1 * math.sin(seconds * 0.3 + number)),
            errors=0.4 if number % 17 == 3 else 0.0,
            p50_ms=4.0 + number % 50,
            p99_ms=30.0 + 5 * math.sin(seconds) + number % 90,
            wait_p50_ms=2.0,
            replicas={"RUNNING": 4},
            wanted=4,
            max_ongoing=8,
            utilisation=1.0 if number == slow else round(abs(math.cos(seconds * 0.7 + number)), 3),
        )
        for number, node in enumerate(steps)
    )
    app = Application("synthetic", "/", "RUNNING", "v1", "", 0.0, deployments, (graph,))
    replicas = tuple(
        Replica(f"{one.name}-{index}", app.name, one.name, "v1", "RUNNING", f"host-{index}", f"w{index}", 100 + index)
        for one in deployments
        for index in range(4)
    )
    hosts = tuple(Host(f"w{index}", f"host-{index}", len(steps), len(steps), (), False) for index in range(4))
    broker = Broker(True, 300 << 20, 1 << 30, 40, "", 0.3, 1.2)
    return Picture(1.7e9 + seconds, broker, (replace(app, bottleneck=bottleneck_of(deployments)),), replicas, hosts, 3)
