"""Draw a graph as DOT text, without serving it.

    python visualization.py                              # in this folder; prints two drawings
    python visualization.py | head -12 | dot -Tpng -o graph.png      # makes a picture, with graphviz

`qserve.dag.plot(node, "graph.png")` makes the picture in Python (it needs pydot and graphviz).
"""

import qserve
from qserve.dag import InputNode, dag_to_dot


@qserve.deployment
class Model:
    """Multiply the input by the weight."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def forward(self, value: float) -> float:
        return value * self.weight


@qserve.deployment
def combine(first: float, second: float, kwargs_output: float = 0) -> float:
    """Add up the answers of the two models and a third number."""
    return first + second + kwargs_output


m1 = Model.bind(1)
m2 = Model.bind(2)

with InputNode() as user_input:
    m1_output = m1.forward.bind(user_input[0])
    m2_output = m2.forward.bind(user_input[1])
    graph = combine.bind(m1_output, m2_output, kwargs_output=user_input[2])

if __name__ == "__main__":
    print(dag_to_dot(graph).to_string())  # everything
    print(dag_to_dot(m2_output).to_string())  # only what the second model needs
